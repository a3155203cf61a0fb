"""What a setting is: a field of a frozen dataclass with a default, a meaning and a range.

Owners declare their settings with `setting(...)`; this file converts plain dicts (a TOML file,
flags, a search axis) to such dataclasses and back, strictly: there is one converter, so a value is
refused in the same words wherever it came from.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import tomllib
import types
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import unquote

from udl_dist.errors import UsageError

T = TypeVar("T")
MOST_LISTED = 12  # names in a refusal
WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
# bound: (comparison that breaks it, its words in a refusal)
BOUNDS = {
    "low": (operator.lt, "at least"),
    "above": (operator.le, "greater than"),
    "high": (operator.gt, "at most"),
    "below": (operator.ge, "less than"),
}


def setting(  # noqa: PLR0913  (four bounds, each by its name)
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    filled: bool = False,
) -> Any:
    """Declare a setting: its default, one line of meaning, and bounds.

    `low` and `high` are inclusive, `above` and `below` exclusive; in a tuple they hold for each
    entry. Text that is `filled` must not be empty; otherwise "" means "none given". A dataclass as
    default (the class itself) makes a nested table.
    """
    bounds = {"low": low, "above": above, "high": high, "below": below}
    metadata = {"meaning": meaning, "filled": filled, **bounds}
    made = {"default_factory" if isinstance(default, type) else "default": default}
    return dataclasses.field(**made, metadata=metadata)


def from_dict(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build the dataclass `cls` from nested plain values; raise UsageError for an invalid one."""
    # A key in the wrong table is refused: ignored, it would silently train with the default.
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise UsageError(f"unknown setting {prefix}{name}: {nearest(name, known)}")
    hints = hints_of(cls)  # type: ignore[arg-type]
    made = {
        name: _value(hints[name], value, prefix + name, known[name].metadata)
        for name, value in values.items()
    }
    return cls(**made)


def as_path(text: str) -> Path:
    """The absolute path that text or a file:// URI names, with `~` for a home folder."""
    if not text:
        raise UsageError(
            "the name of a file or folder is empty: is a variable of the shell not set?"
        )
    # RFC 8089: file://localhost/x is file:///x, and %20 stands for a space.
    if text.lower().startswith("file://"):
        text = unquote(text[len("file://") :].removeprefix("localhost"))
    try:
        # Absolute, because Ray's workers may run in another folder.
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise UsageError(f"{text!r}: there is no such user: write the whole path") from None


def from_flags(cls: type[T], flags: Mapping[str, str]) -> T:
    """Build the dataclass `cls` from flags, dotted names with their values as text."""
    known = kinds(cls)
    # An unknown name passes as text, so that `from_dict` refuses it with the nearest one.
    values = {name: from_text(name, known.get(name, str), text) for name, text in flags.items()}
    return from_dict(cls, nest(values))


@lru_cache(256)
def hints_of(cls: Any) -> dict[str, Any]:
    """The types of the fields of `cls`; cached, because a look-up takes milliseconds."""
    return get_type_hints(cls)


def kinds(cls: type, prefix: str = "") -> dict[str, Any]:
    """The type of every setting below `cls` by its dotted name."""
    found: dict[str, Any] = {}
    hints = hints_of(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        below = dataclasses.is_dataclass(kind)
        found |= kinds(kind, f"{prefix}{field.name}.") if below else {prefix + field.name: kind}
    return found


class NoValue(str):
    """The text of a flag given without a value: "true", for a boolean setting only."""


def from_text(name: str, kind: Any, text: str) -> Any:
    """The value of a flag: TOML, or text, or a list without brackets: `64,32` and `a,b`."""
    if isinstance(text, NoValue) and kind is not bool:
        raise UsageError(f"--{name} needs a value: is a variable of the shell not set?")
    # Text stays as it is: a folder called 2024 is not a number, and needs no quotes.
    if kind is str or (
        get_origin(kind) is Literal and all(isinstance(choice, str) for choice in get_args(kind))
    ):
        return text
    # In a list of texts TOML would ask for quotes around each.
    if get_origin(kind) is tuple and get_args(kind)[0] is str and not text.startswith(("[", '"')):
        return [part.strip() for part in text.split(",") if part.strip()]
    # All else is read as TOML, so that a value means the same in a flag and in a file.
    lists = get_origin(kind) is tuple or (get_origin(kind) is types.UnionType and "," in text)
    bracketed = f"[{text}]" if lists and not text.startswith("[") else text
    try:
        return tomllib.loads(f"value = {bracketed}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # the converter refuses it by name


def to_dict(settings: Any) -> dict[str, Any]:
    """A settings dataclass as a nested dict, defaults included; `from_dict` reads it back."""
    # TOML and JSON have lists only; `_value` makes them tuples again.
    return dataclasses.asdict(
        settings,
        dict_factory=lambda pairs: {
            name: list(value) if isinstance(value, tuple) else value for name, value in pairs
        },
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one dict with dotted names: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`; a name that is both a value and a table is refused."""
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        *tables, name = dotted.split(".")
        table = nested
        for part in tables:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UsageError(f"{dotted}: {part} is a value, not a table")
        table[name] = value
    return nested


def describe(cls: type, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """Every setting below `cls`, for help texts: (dotted name, type, default, meaning)."""
    hints = hints_of(cls)
    for field in dataclasses.fields(cls):
        name, kind = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from describe(kind, f"{name}.")  # type: ignore[arg-type]
        else:
            yield name, in_words(kind), field.default, field.metadata.get("meaning", "")


def nearest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """Advice about an unknown name: the nearest known one, else all, or the nearest few of many."""
    if close := difflib.get_close_matches(name, list(known), n=1, cutoff=0.5):
        return f"did you mean {close[0]}?"
    if len(known) <= MOST_LISTED:
        return f"there are {', '.join(known)}"
    # By the last part alone: names in other tables would differ in what comes before it.
    last = name.rpartition(".")[2]
    few = sorted(
        known,
        key=lambda one: -difflib.SequenceMatcher(None, last, one.rpartition(".")[2]).ratio(),
    )[:4]
    names = ", ".join(few)
    return f"there are {len(known)}, the nearest are {names} (--settings or --help lists them)"


def in_words(kind: Any) -> str:
    """A type as a person reads it."""
    if get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    if get_origin(kind) is types.UnionType:
        return " or ".join(in_words(part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list of {in_words(get_args(kind)[0])}s"
    return WORDS.get(kind, str(kind))


def _value(kind: Any, value: Any, name: str, limits: Mapping[str, Any]) -> Any:
    """`value` as `kind`, or a UsageError that names the setting."""
    if dataclasses.is_dataclass(kind):
        if dataclasses.is_dataclass(value):
            return value
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} is a table of settings, not {value!r}")
        return from_dict(kind, value, name + ".")  # type: ignore[arg-type]
    if isinstance(value, list | tuple):  # a list where a number or a list may stand
        kind = next((part for part in get_args(kind) if get_origin(part) is tuple), kind)
    if get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_value(get_args(kind)[0], entry, name, limits) for entry in value)
    # `1` will do for a float, `true` will not: bool is a subclass of int, hence `type`.
    if type(value) is int and not _fits(kind, value) and _fits(kind, float(value)):
        value = float(value)
    if not _fits(kind, value):
        raise UsageError(f"{name} must be {in_words(kind)}, not {value!r}")
    if type(value) in (int, float):
        _check_range(value, name, limits)
    if value == "" and limits.get("filled"):
        raise UsageError(f"{name} is empty: is a variable of the shell not set?")
    return value


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        # The type too, because True == 1.
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if get_origin(kind) is types.UnionType:
        return any(_fits(part, value) for part in get_args(kind))
    return type(value) is kind  # isinstance would take true for a whole number


def _check_range(value: float, name: str, limits: Mapping[str, Any]) -> None:
    # First, because NaN breaks no bound: every comparison with it is false.
    if value != value or abs(value) == math.inf:
        raise UsageError(f"{name} must be a finite number, not {value}")
    for bound, (breaks, words) in BOUNDS.items():
        if limits.get(bound) is not None and breaks(value, limits[bound]):
            raise UsageError(f"{name} must be {words} {limits[bound]}, not {value}")
