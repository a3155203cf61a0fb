"""Fault points: calls that do nothing, unless the environment names a function for them.

Tests set UDL_FAULT_HOOK=module:function to break a run at a known place; Ray's workers inherit the
variable.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

HOOK = "UDL_FAULT_HOOK"


def fault_point(name: str, **where: Any) -> None:
    """Call the hook, if there is one, with the name of this point and what is known there."""
    if hook := os.environ.get(HOOK):
        module, _, function = hook.partition(":")
        # Imported here: the package itself knows none of the tests' faults.
        getattr(importlib.import_module(module), function)(name, **where)
