"""What udl doctor says of what the nodes answers: a line each, the node by name, and a cure."""

import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.commands.test_job import JOBS
from udl_dist.commands import job as jobs
from udl_dist.commands.doctor import judged
from udl_dist.commands.probe import HEAD, _packable, survey

OTHER = "worker-1 (10.0.0.2, node 1234abcd)"


def answers(**other: Any) -> dict[str, Any]:
    """What a healthy cluster of two nodes tells, but for `other` on the second."""
    node = {
        "python": platform.python_version(),
        "ray": version("ray"),
        "torch": version("torch").partition("+")[0],
        "time": time.time(),
        "folders": {"/runs/a": ""},
        "free_bytes": 2**34,
        "sources": {"/shards": ""},
        "key": "",
    }
    return {
        "places": "",
        "indexed": ["/shards"],
        "sources": ["/shards"],
        "nodes": {HEAD: node, OTHER: node | other},
    }


def bad(found: dict[str, Any], **flags: str) -> list[str]:
    job = jobs.load(
        JOBS / "ae_digits.toml", {name.replace("__", "."): text for name, text in flags.items()}
    )
    return [check.line() for check in judged(job, found, time.time()) if not check.good]


def test_a_healthy_cluster_is_reported_line_by_line() -> None:
    job = jobs.load(JOBS / "ae_digits.toml", {"track.key_file": "/key"})
    lines = [check.line() for check in judged(job, answers(), time.time())]
    assert len(lines) == 10
    assert all(line.startswith("ok  ") for line in lines)
    assert "ok   folder     /runs/a on all 2 nodes" in lines


def test_another_release_on_a_node_is_reported() -> None:
    assert bad(answers(ray="2.9.0")) == [
        f"BAD  ray        2.9.0 on {OTHER}, {version('ray')} here: install the same on all of them"
    ]
    assert bad(answers(python="3.9.1"))[0].startswith(f"BAD  python     3.9.1 on {OTHER}")
    assert not bad(answers(python=platform.python_version().rpartition(".")[0] + ".99"))


def test_a_folder_and_shards_that_a_node_does_not_see_are_reported_with_the_node() -> None:
    [line] = bad(answers(folders={"/runs/a": "is not on a disk that is shared"}))
    assert (
        line == f"BAD  folder     /runs/a on {OTHER}: is not on a disk that is shared: "
        "choose one on a disk that all nodes share and can write to, or s3://…"
    )
    [line] = bad(answers(sources={"/shards": "no shards there"}))
    assert line.startswith(f"BAD  data       /shards on {OTHER}: no shards there: put the shards")


def test_what_else_fails_has_its_line() -> None:
    assert bad(answers(free_bytes=2**20)) == [
        "BAD  space      0.0 GiB free at least: make room for checkpoints"
    ]
    assert (
        "of worker-1 (10.0.0.2, node 1234abcd) is 600 s off"
        in bad(answers(time=time.time() - 600))[0]
    )
    assert "/key on worker-1" in bad(answers(key="no such file"), track__key_file="/key")[0]
    few = answers() | {"places": "run.workers = 4 needs 4 GPUs"}
    assert bad(few) == [
        "BAD  workers    do not fit: run.workers = 4 needs 4 GPUs; nodes that an autoscaler starts:"
        " run.place_seconds"
    ]
    assert not bad(few, run__place_seconds="60")
    # A missing index costs time and is no failure.
    job = jobs.load(JOBS / "ae_digits.toml", {})
    lines = [check.line() for check in judged(job, answers() | {"indexed": []}, time.time())]
    assert (
        "ok   index      none for /shards: the job makes it first; or make it with udl index"
        in lines
    )


def test_a_node_looks_for_itself(tmp_path: Path) -> None:
    (tmp_path / ".doctor-x").write_text("x")
    key = tmp_path / "key"
    found = survey([str(tmp_path)], "x", [str(tmp_path / "none")], str(key))
    assert found["folders"] == {str(tmp_path): ""}
    assert found["sources"] == {str(tmp_path / "none"): "no shards there"}
    assert _packable("digits") == ""
    assert _packable(str(tmp_path / "none")) == "does not exist there"
    assert found["key"]
    assert survey([str(tmp_path)], "another", [], "")["folders"][str(tmp_path)].startswith(
        "is not on a disk"
    )
    assert (
        survey([str(tmp_path / "a" / "b")], "x", [], "")["folders"][str(tmp_path / "a" / "b")]
        == "does not exist there"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".doctor-x"], "it tidies up"
    json.dumps(found)


def test_doctor_without_a_cluster_is_one_line(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(JOBS.parent)}
    command = [sys.executable, "-m", "udl_dist"]
    for verb in ("doctor", "submit"):
        done = subprocess.run(
            [*command, verb, str(JOBS / "ae_digits.toml"), "--address", "127.0.0.1:1"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (5, "")
        assert done.stderr.startswith(
            "udl: no Ray dashboard at http://127.0.0.1:1 (connection refused): is it up"
        )
