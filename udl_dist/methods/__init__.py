"""What is learned: one file, one method, found by its name.

A file of this folder, or a module that an installed package names in the entry-point group
`udl_dist.methods`, holds one subclass of `Method` with its own `Settings`. PyTorch is imported when
a method is looked up, not before (importing it takes 1.5 s).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from typing import TYPE_CHECKING

from udl_dist.core.config_schema import nearest
from udl_dist.errors import UsageError

if TYPE_CHECKING:
    from udl_dist.methods.method import Method

# What else lies in this folder.
HELPERS = (
    "gan_settings",
    "losses",
    "method",
    "metrics",
    "networks",
    "pixels",
    "tokenizer",
    "vae_settings",
)


def names() -> list[str]:
    """The names of all methods: files of this folder and entry points of installed packages."""
    return sorted({*_here(), *_installed()})


def find(name: str) -> type[Method]:
    """The method class called `name`; raise UsageError with the nearest name if there is none.

    A job file cannot name code: only these files and entry points are ever imported.
    """
    # Our own files come first: no installed package can replace a method by taking its name.
    module_name = _here().get(name) or _installed().get(name)
    if module_name is None:
        raise UsageError(f"unknown method.name {name!r}: {nearest(name, names())}")
    from udl_dist.methods.method import Method

    module = importlib.import_module(module_name)
    # Those that a module imports, to derive from them, are not its own.
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Method)
        and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise UsageError(
            f"method {name}: {module_name} must define one subclass of Method, found {len(found)}"
        )
    return found[0]


def _here() -> dict[str, str]:
    return {
        module.name: f"{__name__}.{module.name}"
        for module in pkgutil.iter_modules(__path__)
        if module.name not in HELPERS
    }


def _installed() -> dict[str, str]:
    return {
        entry.name: entry.module
        for entry in importlib.metadata.entry_points(group="udl_dist.methods")
    }
