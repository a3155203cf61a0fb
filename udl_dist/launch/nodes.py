"""What each node of a cluster sees of the disk, asked of all of them before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from udl_dist.data.loader.opening import Prepared
from udl_dist.errors import ClusterError
from udl_dist.experiment import Experiment
from udl_dist.launch.recovery import one_line
from udl_dist.runs import remote
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage.objects import read
from udl_dist.storage.uris import is_remote, joined, name_of

PROBE_SECONDS = 60.0  # for a process to start on a node that is busy


def refuse_unshared(
    experiment: Experiment, prepared: Prepared, witness: Path | None = None
) -> None:
    """Raise ClusterError, with the nodes by name, if one of them sees another run folder or not the
    data.

    `witness` is a file that all must see alike; None: the experiment in the run folder. Asked of
    every node but this one, whose disk is the one that counts; without other nodes nothing is
    asked.
    """
    if not (others := _others()):
        return
    where = experiment.run.folder
    kept = witness or RunFolder(remote.working(where, "launcher")).experiment
    settings = kept.read_bytes()
    # others are far away
    data = [path for path in (*prepared.train, *prepared.held_out) if Path(path).exists()]
    answers = _ask(
        others, _look, joined(where, "experiment.toml") if is_remote(where) else str(kept), data
    )
    if unlike := [name for name, (seen, _) in answers.items() if seen != settings]:
        raise ClusterError(
            f"run.folder {name_of(where)} is not the same on {_listed(unlike)}: "
            "choose one on a disk that all nodes share"
        )
    if without := [name for name, (_, missing) in answers.items() if missing]:
        first = answers[without[0]][1][0]
        raise ClusterError(
            f"{first} of the data is not there on {_listed(without)}: put the shards, and"
            " data.cache, on a disk that all nodes share"
        )


def ask(look: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """What `look(*arguments)` finds on each node that has CPUs or GPUs, by the node's name; this
    one is not asked.
    """
    return _ask(_others(), look, *arguments)


def ask_all(look: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """The same of every node that workers may be placed on, this one included."""
    return _ask(_all(), look, *arguments)


def _all() -> list[dict[str, Any]]:
    import ray

    return [
        node
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) + node["Resources"].get("GPU", 0) > 0
    ]


def _others() -> list[dict[str, Any]]:
    """The nodes that workers may be placed on, but for this one."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [node for node in _all() if node["NodeID"] != here]


def _ask(
    nodes: Sequence[dict[str, Any]], look: Callable[..., Any], *arguments: Any
) -> dict[str, Any]:
    """What each node sees, by its name."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = ray.remote(look)
    questions = {}
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        name = (
            f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, node"
            f" {node['NodeID'][:8]})"
        )
        questions[name] = asked.options(
            num_cpus=0, scheduling_strategy=strategy, max_retries=0
        ).remote(*arguments)
    answers = {}
    for name, question in questions.items():
        try:
            answers[name] = ray.get(question, timeout=PROBE_SECONDS)
        except Exception as error:  # a node without the package, one that is just lost, or too busy
            raise ClusterError(f"node {name} does not answer: {one_line(error)}") from None
    return answers


def _look(settings: str, data: list[str]) -> tuple[bytes, list[str]]:
    """Runs on a node: the settings in the run folder (empty: none), and what of the data is
    missing.
    """
    if is_remote(settings):
        return read(settings), [each for each in data if not Path(each).exists()]
    path = Path(settings)
    return path.read_bytes() if path.exists() else b"", [
        each for each in data if not Path(each).exists()
    ]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more nodes" if len(names) > 3 else ""
    return ", ".join(f"node {name}" for name in names[:3]) + more
