"""Faults on purpose: a strict grammar, asked for twice, each once in a run; and what they do to a
process.
"""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.test_cli import refused, udl
from udl_dist.core import faults
from udl_dist.core.faults import Fault
from udl_dist.errors import UsageError
from udl_dist.runs.run_folder import RunFolder


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm("", RunFolder("nowhere"), 0)


def test_the_grammar_says_what_where_and_when() -> None:
    first, second, third, fourth, fifth = faults.parse(
        "kill  rank 1 at image 12,000; freeze rank 0 at image 5 in validation always; kill driver"
        " at image 7;stall writer 0.5 s; eio at save 3;"
    )
    assert first == Fault("kill rank 1 at image 12,000", "kill", 1, 12000)
    assert (second.act, second.rank, second.image, second.place, second.always) == (
        "freeze",
        0,
        5,
        "validation",
        True,
    )
    assert (third.act, third.rank, third.image) == ("kill", -1, 7)
    assert (fourth.act, fourth.save, fourth.seconds) == ("stall", 1, 0.5)
    assert (fifth.act, fifth.save) == ("eio", 3)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("kil rank 1 at image 3", "what is 'kil rank 1 at image 3'"),
        ("kill rank 1", "what is 'kill rank 1'"),
        ("kill rank one at image 3", "what is"),
        ("kill rank 1 at image -3", "what is"),
        (
            "kill rank 1 at image 3 in kitchen",
            "no place 'kitchen': there are data, phase, validation, save",
        ),
        ("freeze driver at image 3", "the driver can only be killed"),
        ("stall writer 5", "what is 'stall writer 5'"),
        ("kill rank 1 at image 3, enospc at save 3", "what is"),
        ("enospc at save", "what is"),
    ],
)
def test_a_typo_is_refused_in_one_line(text: str, named: str) -> None:
    with pytest.raises(UsageError, match=named.replace("(", r"\(")) as caught:
        faults.parse(text)
    assert "\n" not in str(caught.value)


def test_faults_are_asked_for_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UDL_FAULTS", raising=False)
    job = Path(__file__).parent.parent.parent / "jobs" / "ae_digits.toml"
    asked = ("train", str(job), "--run.folder", str(tmp_path), "--faults", "kill rank 0 at image 1")
    refused(udl(*asked), 2, "set UDL_FAULTS=1 in the environment too")
    monkeypatch.setenv("UDL_FAULTS", "1")
    refused(udl(*asked[:-1], "kill rank 0"), 2, "what is 'kill rank 0'")
    assert not list(tmp_path.iterdir())


def test_unarmed_points_do_nothing() -> None:
    faults.reach(10**9, "phase")
    faults.reach_save()


def test_a_fault_happens_once_in_a_run_and_always_each_time(tmp_path: Path) -> None:
    text = "raise rank 1 at image 24 in phase; raise rank 1 at image 48 always"
    for turn in range(2):  # two processes of one run
        faults.arm(text, RunFolder(tmp_path), 1)
        faults.reach(12, "phase")
        faults.reach(24, "data")
        with pytest.raises(faults.RaisedOnPurpose) if turn == 0 else nullcontext():
            faults.reach(24, "phase")
        faults.reach(36, "phase")
        with pytest.raises(faults.RaisedOnPurpose):
            faults.reach(60, "data")
    faults.arm(text, RunFolder(tmp_path), 0)
    faults.reach(60, "phase")
    assert (
        "on purpose: raise rank 1 at image 24 in phase" in (tmp_path / "messages.log").read_text()
    )


def test_the_third_save_finds_the_disk_full(tmp_path: Path) -> None:
    faults.arm("enospc at save 3", RunFolder(tmp_path), 0)
    faults.reach_save()
    faults.reach_save()
    with pytest.raises(OSError, match="No space left") as caught:
        faults.reach_save()
    assert caught.value.errno == errno.ENOSPC
    faults.reach_save()


@pytest.mark.parametrize(
    ("act", "status"), [("kill", -signal.SIGKILL), ("segfault", -signal.SIGSEGV), ("exit", 1)]
)
def test_a_process_ends_as_was_asked(act: str, status: int, tmp_path: Path) -> None:
    code = (
        "from udl_dist.core import faults as faults; from udl_dist.runs.run_folder import"
        f" RunFolder\nfaults.arm('{act} rank 0 at image 3', RunFolder({str(tmp_path)!r}),"
        " 0)\nfaults.reach(3, 'data')"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == status
