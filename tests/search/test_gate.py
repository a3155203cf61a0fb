"""Where a trial waits for what is decided about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from udl_dist.runs.run_folder import RunFolder
from udl_dist.search import gate
from udl_dist.search.follow import Follower
from udl_dist.search.gate import Gate, decide, decisions


def test_it_opens_or_not_as_was_decided_for_all_rungs_that_are_passed(tmp_path: Path) -> None:
    asked = Gate(str(tmp_path), (12, 36))
    assert asked(6) is True, "no rung is passed"
    decide(tmp_path, 0, 12, True)
    assert asked(12) is True
    decide(tmp_path, 1, 36, False)
    decide(tmp_path, 1, 36, True)
    assert decisions(tmp_path) == [True, False], "said once, it stands"
    assert (asked(24), asked(36), asked(99)) == (True, False, False)


def test_it_says_not_yet_and_no_once_a_stop_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "PATIENCE_SECONDS", 0.02)
    asked = Gate(str(tmp_path), (12,))
    assert asked(12) is None
    RunFolder(tmp_path).ask_stop()
    assert asked(12) is False


def test_a_torn_decision_is_not_read(tmp_path: Path) -> None:
    decide(tmp_path, 0, 12, True)
    with (tmp_path / gate.NAME).open("a") as file:
        file.write('{"images": 36, "goes')
    assert decisions(tmp_path) == [True]


def test_each_validation_is_told_once_though_a_resumed_trial_writes_it_again(
    tmp_path: Path,
) -> None:
    folder = RunFolder(tmp_path)
    follower = Follower(folder.curves)
    assert follower.fresh() == []
    folder.add_point(12, {"train/loss": 1.0})
    folder.add_point(24, {"val/mse": 0.5, "train/loss": 1.0})
    folder.add_point(36, {"val/mse": 0.4})
    assert follower.fresh() == [(24, {"val/mse": 0.5}), (36, {"val/mse": 0.4})]
    folder.rewind(24)
    folder.add_point(36, {"val/mse": 0.4})
    folder.add_point(48, {"val/mse": 0.3})
    with folder.curves.open("a") as file:
        file.write('{"images": 60, "val/m')
    assert follower.fresh() == [(48, {"val/mse": 0.3})]
