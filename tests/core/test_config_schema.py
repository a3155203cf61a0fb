"""Settings are read strictly, in the same words from a file and from a flag."""

from dataclasses import dataclass
from typing import Literal

import pytest

from udl_dist.core import config_schema
from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError


@dataclass(frozen=True)
class Inner:
    widths: tuple[int, ...] = setting((8, 4), "widths", low=1)
    kind: Literal["a", "b"] = setting("a", "kind")
    channels: Literal[1, 3] = setting(1, "channels")


@dataclass(frozen=True)
class Outer:
    count: int = setting(1, "a count", low=1, high=9)
    rate: float = setting(0.5, "a rate", above=0)
    on: bool = setting(False, "a switch")
    name: str = setting("", "a name")
    inner: Inner = setting(Inner, "a table")


def test_a_dict_and_back_is_the_same() -> None:
    wanted = config_schema.from_dict(Outer, {"count": 3, "inner": {"widths": [5, 6], "kind": "b"}})
    assert wanted == Outer(count=3, inner=Inner((5, 6), "b"))
    assert config_schema.from_dict(Outer, config_schema.to_dict(wanted)) == wanted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, "unknown setting cuont: did you mean count?"),
        ({"inner": {"width": 1}}, "unknown setting inner.width: did you mean widths?"),
        ({"count": "3"}, "count must be whole number, not '3'"),
        ({"count": 3.0}, "count must be whole number, not 3.0"),
        ({"count": True}, "count must be whole number, not True"),
        ({"count": 0}, "count must be at least 1, not 0"),
        ({"count": 10}, "count must be at most 9, not 10"),
        ({"rate": 0}, "rate must be greater than 0, not 0.0"),
        ({"rate": float("nan")}, "rate must be a finite number, not nan"),
        ({"on": 1}, "on must be true or false, not 1"),
        ({"name": 5}, "name must be text, not 5"),
        ({"inner": 5}, "inner is a table of settings, not 5"),
        ({"inner": {"kind": "c"}}, "inner.kind must be 'a' or 'b', not 'c'"),
        ({"inner": {"channels": True}}, "inner.channels must be 1 or 3, not True"),
        ({"inner": {"widths": [3, 0]}}, "inner.widths must be at least 1, not 0"),
        ({"inner": {"widths": 3}}, "inner.widths must be a list of whole numbers, not 3"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        config_schema.from_dict(Outer, values)
    assert str(refusal.value) == message


def test_flags_are_read_as_their_types_ask() -> None:
    flags = {"count": "2", "rate": "1e-3", "on": "true", "name": "17", "inner.widths": "64,32"}
    assert config_schema.from_flags(Outer, flags) == Outer(2, 1e-3, True, "17", Inner((64, 32)))
    assert config_schema.from_flags(Outer, {"inner.widths": "[7]"}).inner.widths == (7,)
    with pytest.raises(UsageError, match="count must be whole number, not 'two'"):
        config_schema.from_flags(Outer, {"count": "two"})


def test_a_name_cannot_be_a_value_and_a_table() -> None:
    with pytest.raises(UsageError, match="rate is a value, not a table"):
        config_schema.nest({"rate": 1, "rate.deep": 2})


def test_every_setting_is_described_once() -> None:
    names = [name for name, *_ in config_schema.describe(Outer)]
    assert names == ["count", "rate", "on", "name", "inner.widths", "inner.kind", "inner.channels"]
    assert list(config_schema.kinds(Outer)) == names


def test_the_home_of_an_unknown_user_is_not_a_path() -> None:
    assert config_schema.as_path("~/a").is_absolute() and config_schema.as_path("a").is_absolute()
    with pytest.raises(UsageError, match="'~no-such-user/a': there is no such user"):
        config_schema.as_path("~no-such-user/a")


def test_an_empty_name_is_not_a_path() -> None:
    with pytest.raises(UsageError, match="the name of a file or folder is empty"):
        config_schema.as_path("")
