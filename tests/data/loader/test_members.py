"""What is read in sequence follows the same rules for members as what is indexed."""

from __future__ import annotations

from pathlib import Path

from tests.data.loader.made import tar
from tests.data.shards.test_naming import LEFT, RIGHT
from udl_dist.data.loader.sequence import entries
from udl_dist.data.shards.naming import Naming
from udl_dist.storage.fetching import Limits


def test_the_image_of_a_record_read_in_sequence_is_named_too(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "0.tar",
        {"._x.png": b"x", "x.left.png": LEFT, "x.right.png": RIGHT, "y.input.png": LEFT},
    )
    first, second = entries(f"pipe:cat {path}", Limits())
    assert "has 2 images" in first.fault and second.payload == LEFT
    named = list(entries(f"pipe:cat {path}", Limits(), Naming("right.png")))
    assert named[0].payload == RIGHT and named[1].fault
    dotted = list(entries(f"pipe:cat {path}", Limits(), Naming(key_dot="last")))
    assert [entry.key for entry in dotted] == [b"x.left", b"x.right", b"y.input"]
