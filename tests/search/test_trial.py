"""A trial in a process that trains others after it."""

import gc
import os
from pathlib import Path

import pytest
import torch

from tests.search.asked import wanted
from tests.search.simulated import controller, trained
from udl_dist.runs.run_folder import RunFolder
from udl_dist.search import trial
from udl_dist.search.trial import ValidationReader


def open_below(folder: Path) -> list[str]:
    """The files below a folder that this process holds open."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [
        path
        for path in (os.readlink(link) for link in links if os.path.islink(link))
        if str(folder) in path
    ]


def test_trials_leave_no_file_open_however_many_there_are(source: Path, tmp_path: Path) -> None:
    gc.collect()
    before = open_below(source)
    gc.disable()
    try:
        trained(controller(wanted(source, tmp_path, trials=3, scheduler="none")))
        assert open_below(source) == before
    finally:
        gc.enable()


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU here: this is about having none"
)
def test_a_trial_that_asks_for_a_gpu_is_not_trained_on_a_cpu(source: Path, tmp_path: Path) -> None:
    search = wanted(source, tmp_path, flags={"run__device": "cuda"}, scheduler="none")
    task = controller(search).next()
    assert task
    outcome = trial.train(task, None, lambda: None)
    assert outcome.state == "failed" and "PyTorch sees no GPU here" in outcome.why


def test_each_validation_is_read_once_though_a_resumed_trial_writes_it_again(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path)
    reader = ValidationReader(folder)
    assert reader.new() == []
    folder.add_point(12, {"train/loss": 1.0})
    folder.add_point(24, {"val/mse": 0.5, "train/loss": 1.0})
    folder.add_point(36, {"val/mse": 0.4})
    assert reader.new() == [(24, {"val/mse": 0.5}), (36, {"val/mse": 0.4})]
    folder.rewind(24)
    folder.add_point(36, {"val/mse": 0.4})
    folder.add_point(48, {"val/mse": 0.3})
    with folder.curves.open("a") as file:
        file.write('{"images": 60, "val/m')
    assert reader.new() == [(48, {"val/mse": 0.3})]
