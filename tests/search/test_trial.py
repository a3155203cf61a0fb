"""A trial in a process that trains others after it."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from tests.search.asked import wanted
from tests.search.simulated import conductor, trained
from udl_dist.search import trial


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
        trained(conductor(wanted(source, tmp_path, trials=3, scheduler="none")))
        assert open_below(source) == before
    finally:
        gc.enable()


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="there is a GPU here: this is about having none"
)
def test_a_trial_that_asks_for_a_gpu_is_not_trained_on_a_cpu(source: Path, tmp_path: Path) -> None:
    search = wanted(source, tmp_path, flags={"run__device": "cuda"}, scheduler="none")
    turn = conductor(search).next()
    assert turn
    outcome = trial.train(turn, None, lambda: None)
    assert outcome.state == "failed" and "PyTorch sees no GPU here" in outcome.why
