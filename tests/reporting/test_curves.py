"""Curves are drawn so that a glance tells how a run went, in the colours of the page, whatever
their names are.
"""

import re
from pathlib import Path

import pytest
from PIL import Image

from udl_dist.reporting import curves

FALLING = (list(range(0, 2000, 20)), [1000 / (1 + images) + 5 for images in range(0, 2000, 20)])


def test_a_start_that_would_flatten_the_rest_lies_outside() -> None:
    low, high = curves.settled({"loss": FALLING}) or (0, 0)
    assert low < min(FALLING[1]) < high < 20
    assert curves.settled({"loss": ([1, 2, 3], [3.0, 2.0, 1.0])}) is None
    assert curves.settled({"loss": ([1, 100, 200], [9.0, 1.0, 1.0])}) is None
    assert curves.settled({"loss": ([5], [1.0])}) is None


def test_an_svg_takes_the_colours_of_the_page_and_brings_no_name_of_another(tmp_path: Path) -> None:
    one, two = (
        curves.as_svg({"train/x": FALLING, "_hidden $x_1^{$ <b>": FALLING}, number)
        for number in (1, 2)
    )
    assert "currentColor" in one
    assert "var(--line)" in one
    assert curves.INK not in one
    assert "<b>" not in one
    assert "&lt;b&gt;" in one
    names = [
        set(re.findall(r'<(?:clipPath|path|g) id="(p[0-9a-f]+|m[0-9a-f]+)"', svg))
        for svg in (one, two)
    ]
    assert names[0]
    assert not names[0] & names[1]


def test_panels_become_one_picture(tmp_path: Path) -> None:
    curves.as_png(
        {"val/$x": {"a": FALLING}, "val/y": {"a": FALLING, "b": FALLING}},
        tmp_path / "new" / "all.png",
    )
    with Image.open(tmp_path / "new" / "all.png") as picture:
        assert picture.width == pytest.approx(1210, abs=2)
