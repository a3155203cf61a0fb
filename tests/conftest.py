"""Shared by all tests: one torch thread (tiny tensors gain nothing from more, and lose much on a busy machine)."""

from __future__ import annotations

import os

from hypothesis import settings

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # before torch is imported, here and in child processes
    os.environ[name] = "1"

# No test is timed: a busy machine fails nobody.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
