"""Shared by all tests: one torch thread (tiny tensors gain nothing from more, and lose much on a busy machine)."""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is imported, here and in child processes
    os.environ[name] = "1"
