"""A run over damaged or slow data: it ends complete and lists what was damaged, or is refused alike
on every rank.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.loader.made import encoded, tar
from tests.launch.test_worker import finished, wanted
from tests.training import gloo
from tests.training.learn import packed
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.shards.index import Index
from udl_dist.errors import DataError
from udl_dist.experiment import Experiment
from udl_dist.launch.worker import work
from udl_dist.training.distributed import Ranks

BROKEN = (2, 11, 30)


def spoilt(folder: Path, records: tuple[int, ...]) -> Path:
    """A packed data set with one bit of some training images flipped."""
    source = packed(folder)
    index = Index.open(source / "train")
    for record in records:
        path = Path(index.shard_path(int(index.shard_of(np.array([record]))[0])))
        data = bytearray(path.read_bytes())
        data[int(index.rows["offset"][record]) + int(index.rows["length"][record]) - 1] ^= 16
        path.write_bytes(data)
    return source


def ranked(experiment: Experiment) -> str:
    """What a rank ends with: the images, or the refusal and its exit code."""
    try:
        return str(work(experiment, prepare(experiment.data), Ranks())["images"])
    except DataError as error:
        return f"{error.exit_code} {error}"


def listed(folder: Path) -> list[str]:
    return sorted((folder / "damaged.txt").read_text("utf-8").splitlines())


@pytest.mark.long
def test_damaged_records_are_listed_once_after_a_resume_and_with_two_ranks_alike(
    tmp_path: Path,
) -> None:
    source = spoilt(tmp_path / "data", BROKEN)
    flags = {"data__damaged": "skip", "data__damaged_limit": "0.5"}
    assert finished(wanted("ae", source, tmp_path / "whole", **flags))["images"] == 240
    keys = [Index.open(source / "train").key(record) for record in BROKEN]
    assert len(listed(tmp_path / "whole")) == 3
    assert all(any(repr(key) in line for line in listed(tmp_path / "whole")) for key in keys)
    resumed = wanted("ae", source, tmp_path / "parts", **flags)
    assert finished(resumed, stop_after=2)["stopped"]
    (tmp_path / "parts" / "stop").unlink()
    assert finished(resumed)["images"] == 240
    assert gloo.run(2, ranked, wanted("ae", source, tmp_path / "two", **flags)) == ["240", "240"]
    assert listed(tmp_path / "parts") == listed(tmp_path / "two") == listed(tmp_path / "whole")


def test_too_many_damaged_records_are_refused_on_every_rank(tmp_path: Path) -> None:
    source = spoilt(tmp_path / "data", BROKEN)
    experiment = wanted(
        "ae", source, tmp_path / "run", data__damaged="skip", data__damaged_limit="0.01"
    )
    said = gloo.run(2, ranked, experiment)
    assert said[0] == said[1]
    assert said[0].startswith("3 ")
    assert "data.damaged_limit = 0.01" in said[0]


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_waits_for_its_images_says_what_is_slow(tmp_path: Path) -> None:
    """Photos of nine megapixels, read in the training loop itself, for a network of 16 units."""
    noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), dtype=np.uint8)
    photo = encoded(Image.fromarray(noise), "JPEG", quality=60)
    tar(tmp_path / "data" / "0.tar", {f"{number}.jpg": photo for number in range(12)})
    flags = {
        "train__total_images": "36",
        "train__report_images": "12",
        "data__held_out_fraction": "0",
    }
    finished(wanted("ae", tmp_path / "data", tmp_path / "run", **flags))
    advised = [
        line
        for line in (tmp_path / "run" / "messages.log").read_text().splitlines()
        if "waits" in line
    ]
    assert len(advised) == 1, "said once a run"
    assert "decode: raise data.readers from 0" in advised[0]


def test_decoded_bytes_that_hold_nothing_are_said_and_the_run_goes_on(tmp_path: Path) -> None:
    source = packed(tmp_path / "data")
    for amount, said in (("0", False), ("10", True), ("auto", False)):
        folder = tmp_path / amount
        flags = {"data__decoded_bytes": amount, "train__total_images": "24"}
        assert finished(wanted("ae", source, folder, **flags))["images"] == 24
        messages = folder / "messages.log"
        line = "data.decoded_bytes = 10 is more memory than is free, or less than an image takes"
        assert (messages.exists() and line in messages.read_text()) == said
