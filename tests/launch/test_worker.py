"""What a rank does with a run, without any launcher: resume, curves, checkpoints, pictures, a disk
that fills up.
"""

import itertools
import json
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from tests.training import gloo
from tests.training.learn import asked, packed
from udl_dist import methods
from udl_dist.data.packing.prepare import prepare
from udl_dist.errors import DataError, TrainingError
from udl_dist.experiment import Experiment
from udl_dist.launch import report_handler
from udl_dist.launch.worker import work
from udl_dist.methods.method import Loss, Phase
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint
from udl_dist.training.distributed import Ranks
from udl_dist.training.loop import Report


def wanted(method: str, source: Path, folder: Path, **flags: str) -> Experiment:
    folder.mkdir(parents=True, exist_ok=True)
    quiet = {"track__mode": "off", "train__report_images": "24", "evaluate__every_images": "60"}
    return asked(method, source, **({"run__folder": str(folder)} | quiet | flags))


def finished(experiment: Experiment, stop_after: int | None = None) -> dict[str, Any]:
    """Run `work` in this process; `stop_after` reports with a checkpoint, ask for a stop."""
    folder, heard = RunFolder(experiment.run.folder), itertools.count(1)

    def hear(report: Report) -> None:
        if next(heard) == stop_after:
            folder.ask_stop()

    with pytest.MonkeyPatch.context() as patched:
        if stop_after:  # these runs are shorter than the half second between two looks for a stop
            patched.setattr(report_handler, "LOOK_SECONDS", 0.0)
        return work(experiment, prepare(experiment.data), Ranks(), hear)


def manifest(folder: Path, images: int = 240) -> dict[str, Any]:
    """Sizes and hashes of a checkpoint's tensors."""
    files = json.loads(
        (checkpoint.path_of(folder / "checkpoints", images) / "manifest.json").read_text()
    )["files"]
    return {name: entry for name, entry in files.items() if name.endswith(".safetensors")}


def curves(folder: Path) -> list[dict[str, float]]:
    """The points of a run without what a clock measures."""
    return [
        {name: value for name, value in point.items() if not name.startswith("perf/")}
        for point in RunFolder(folder).points()
    ]


@pytest.mark.parametrize("method", ["ae", "vae", "gan"])
def test_a_run_that_was_stopped_ends_with_the_same_checkpoint_and_curves(
    method: str, source: Path, tmp_path: Path
) -> None:
    flags = {"train__average_half_life": "100", "run__keep_checkpoints": "9"}
    whole = finished(wanted(method, source, tmp_path / "whole", **flags))
    assert (whole["images"], whole["stopped"]) == (240, False)
    experiment = wanted(method, source, tmp_path / "parts", **flags)
    stopped = finished(experiment, stop_after=2)
    assert stopped["stopped"]
    assert 120 < stopped["images"] < 240
    (tmp_path / "parts" / "stop").unlink()
    again = finished(experiment)
    assert manifest(tmp_path / "parts") == manifest(tmp_path / "whole")
    assert again["figures"]["train/learning_rate"] == whole["figures"]["train/learning_rate"]
    assert curves(tmp_path / "parts") == curves(tmp_path / "whole")


def test_a_cut_between_a_point_and_its_checkpoint_loses_no_point(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = wanted("ae", source, tmp_path / "whole"), wanted("ae", source, tmp_path / "cut")
    finished(whole)
    real = RunFolder.add_point

    def cut_off(folder: RunFolder, images: int, figures: dict[str, float]) -> None:
        if images == 120:
            raise KeyboardInterrupt
        real(folder, images, figures)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunFolder, "add_point", cut_off)
        finished(cut)
    finished(cut)
    images = [
        [point["images"] for point in RunFolder(tmp_path / part).points()]
        for part in ("whole", "cut")
    ]
    assert images[0] == images[1]


def test_pictures_have_the_images_in_their_names_and_the_right_shape(
    source: Path, tmp_path: Path
) -> None:
    finished(wanted("vae", source, tmp_path))
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == [
        f"{kind}-{images:012d}.png"
        for kind in ("reconstruction", "samples")
        for images in (60, 120, 180, 240)
    ]
    with Image.open(tmp_path / "pictures" / names[0]) as picture:
        assert picture.mode == "L"
        assert picture.height < picture.width


def test_the_best_checkpoint_is_stored_next_to_the_newest(source: Path, tmp_path: Path) -> None:
    finished(wanted("ae", source, tmp_path, run__keep_checkpoints="1", train__learning_rate="0.5"))
    stored = [int(path.name) for path in checkpoint.complete(tmp_path / "checkpoints")]
    validated = {
        int(p["images"]): p["val/mse"] for p in RunFolder(tmp_path).points() if "val/mse" in p
    }
    assert stored == sorted({240, min(validated, key=validated.__getitem__)})


def test_a_run_cut_between_its_last_checkpoint_and_its_result_trains_nothing(
    source: Path, tmp_path: Path
) -> None:
    experiment = wanted("ae", source, tmp_path)
    before = finished(experiment)
    after = finished(experiment)
    assert after["images"] == 240
    assert after["figures"]["val/mse"] == before["figures"]["val/mse"]


def test_checkpoints_by_time_change_no_point_of_the_curves(source: Path, tmp_path: Path) -> None:
    """A checkpoint after each step, a stop between two points, another one: what is learned and
    drawn is the same.
    """
    flags = {"run__keep_checkpoints": "99", "train__average_half_life": "100"}
    finished(wanted("vae", source, tmp_path / "whole", **flags))
    experiment = wanted("vae", source, tmp_path / "often", run__checkpoint_seconds="1e-9", **flags)
    for after in (1, 7):
        assert finished(experiment, stop_after=after)["stopped"]
        (tmp_path / "often" / "stop").unlink()
    finished(experiment)
    assert len(checkpoint.complete(tmp_path / "often" / "checkpoints")) == 20
    assert manifest(tmp_path / "often") == manifest(tmp_path / "whole")
    assert curves(tmp_path / "often") == curves(tmp_path / "whole")


def test_the_checkpoints_of_another_method_are_refused_by_name(
    source: Path, tmp_path: Path
) -> None:
    finished(wanted("ae", source, tmp_path, train__total_images="120"))
    with pytest.raises(
        TrainingError, match="are of method ae, not vae: choose another --run.folder"
    ):
        finished(wanted("vae", source, tmp_path))


def test_a_run_whose_checkpoints_have_no_room_is_refused_before_the_first_step(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(
        TrainingError, match=r"4 more checkpoints do not fit .* \(No space left: 1\.0 MiB"
    ):
        finished(wanted("ae", source, tmp_path))
    assert not (tmp_path / "curves.jsonl").exists()


def test_another_latent_size_in_the_checkpoint_is_refused(source: Path, tmp_path: Path) -> None:
    finished(wanted("ae", source, tmp_path, train__total_images="120"))
    other = wanted("ae", source, tmp_path, method__latent_dim="5")
    with pytest.raises(TrainingError, match="the checkpoint is of other networks: .*size mismatch"):
        finished(other)


def test_other_images_under_the_same_path_are_refused_at_a_resume(tmp_path: Path) -> None:
    data = packed(tmp_path / "one")
    finished(wanted("ae", data, tmp_path / "run", train__total_images="120"))
    shutil.rmtree(data)
    other = packed(tmp_path / "two", records=80)
    other.rename(data)
    with pytest.raises(
        DataError, match=r"the first 120 images .* different ones \(shard .* was: 26 records"
    ):
        finished(wanted("ae", data, tmp_path / "run"))


def test_a_full_disk_at_a_checkpoint_is_reported_and_costs_nothing_else(
    source: Path, tmp_path: Path
) -> None:
    """A real failing write: the kernel refuses files beyond a limit (RLIMIT_FSIZE) from the first
    checkpoint on.
    """
    whole = wanted("ae", source, tmp_path / "whole")
    finished(whole)
    experiment = wanted("ae", source, tmp_path / "full")
    (outcome,) = gloo.run(1, on_a_disk_that_fills_for_a_while, experiment)
    assert outcome == ("", 240)
    lines = (tmp_path / "full" / "messages.log").read_text().splitlines()
    reported = [line for line in lines if "ALARM: no checkpoint" in line]
    assert len(reported) == 2
    assert "no checkpoint after 120 images: " in reported[0]
    assert "File too large" in reported[0]
    assert reported[0].endswith("training goes on, the last good checkpoint remains")
    assert [int(path.name) for path in checkpoint.complete(tmp_path / "full" / "checkpoints")] == [
        60,
        240,
    ]
    assert manifest(tmp_path / "full") == manifest(tmp_path / "whole")


def test_a_disk_that_stays_full_ends_the_run_by_name_and_keeps_the_last_good_one(
    source: Path, tmp_path: Path
) -> None:
    experiment = wanted("ae", source, tmp_path, evaluate__every_images="36")
    (outcome,) = gloo.run(1, on_a_disk_that_fills_for_a_while, experiment, 99)
    assert outcome[0].startswith("3 checkpoints in a row could not be written to ")
    assert [int(path.name) for path in checkpoint.complete(tmp_path / "checkpoints")] == [36]


def until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.002)


def written(folder: RunFolder, images: int) -> bool:
    return checkpoint.path_of(folder.checkpoints, images).exists()


def alarms(folder: RunFolder) -> int:
    return (
        folder.messages.read_text().count("ALARM: no checkpoint") if folder.messages.exists() else 0
    )


def on_a_disk_that_fills_for_a_while(experiment: Experiment, failing: int = 2) -> tuple[str, int]:
    """The error and images of a run whose checkpoints 2 … 1 + `failing` cannot be written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    heard, folder = itertools.count(1), RunFolder(experiment.run.folder)

    def hear(report: Report) -> None:
        number = next(heard)
        # it is written next to us
        until(lambda: written(folder, report.images) or 0 < number - 1 == alarms(folder))
        if number == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        if number == 1 + failing:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )

    try:
        return "", work(experiment, prepare(experiment.data), Ranks(), hear)["images"]
    except TrainingError as error:
        return str(error), 0


def resumed_alone(source: Path, folder: Path) -> int:
    """A rank with a run folder of its own, as on a machine that shares no disk: only rank 0's has a
    checkpoint.
    """
    ranks = Ranks()
    experiment = wanted("ae", source, folder / str(ranks.rank))
    started: list[int] = []
    work(experiment, prepare(experiment.data), ranks, lambda report: started.append(report.images))
    return started[0]


def test_on_resume_rank_zero_alone_reads_the_checkpoint(source: Path, tmp_path: Path) -> None:
    stopped = finished(wanted("ae", source, tmp_path / "0"), stop_after=2)["images"]
    (tmp_path / "0" / "stop").unlink()
    shutil.copytree(tmp_path / "0", tmp_path / "alone" / "0")
    assert all(first > stopped for first in gloo.run(3, resumed_alone, source, tmp_path))
    assert not list((tmp_path / "1").glob("checkpoints/*"))
    finished(wanted("ae", source, tmp_path / "alone" / "0"))
    one, three = (
        checkpoint.load(checkpoint.path_of(path / "checkpoints", 240))[0]["networks"]
        for path in (tmp_path / "alone" / "0", tmp_path / "0")
    )
    for name, value in one.items():
        assert (value - three[name]).abs().max() < 1e-5


def test_what_does_not_fit_into_memory_is_refused_with_what_helps(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator itself says no; to start again would end in the same place, so the run fails by
    name.
    """
    kind = methods.find("ae")
    phases = kind.phases

    def hungry(self: Any) -> tuple[Phase, ...]:
        (phase,) = phases(self)
        return (
            replace(
                phase,
                loss=lambda batch: Loss(
                    phase.loss(batch).value + torch.empty(10**15, device=batch.images.device).sum()
                ),
            ),
        )

    monkeypatch.setattr(kind, "phases", hungry)
    with pytest.raises(
        TrainingError,
        match=r"too small for 12 images at once, 6 should fit: set train\.accumulate = 2 \(.*\) or"
        r" train\.batch_size = 6, or",
    ):
        finished(wanted("ae", source, tmp_path))
    assert RunFolder(tmp_path).failure() is not None


def test_another_error_of_torch_stays_what_it_is(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = methods.find("ae")
    phases = kind.phases

    def wrong(self: Any) -> tuple[Phase, ...]:
        (phase,) = phases(self)
        return (replace(phase, loss=lambda batch: Loss(batch.images @ torch.ones(3, 2))),)

    monkeypatch.setattr(kind, "phases", wrong)
    with pytest.raises(RuntimeError, match="mat1|size|dimension"):
        finished(wanted("ae", source, tmp_path))


def test_after_200_steps_a_run_says_its_speed_time_to_go_and_memory_once(
    source: Path, tmp_path: Path
) -> None:
    """The figures are those of the first point of the curves behind 200 steps of 12 images."""
    flags = {
        "train__total_images": "3600",
        "train__report_images": "500",
        "evaluate__every_images": "3600",
    }
    finished(wanted("ae", source, tmp_path, **flags))
    folder = RunFolder(tmp_path)
    points = [point for point in folder.points() if point["images"] <= 2508]
    point = points[-1]
    assert point["images"] == 2508  # the first multiple of 12 from 2,500 on
    seconds = round((3600 - 2508) / point["perf/images_per_second"])
    peak = max(point["perf/memory_bytes"] for point in points)
    (said,) = [line for line in folder.messages.read_text().splitlines() if "images/s" in line]
    assert said.endswith(
        f"after 2,508 images: {point['perf/images_per_second']:,.0f} images/s,"
        f" {timedelta(seconds=seconds)} to go, peak memory of a worker {peak / 2**20:,.0f} MiB"
    )
