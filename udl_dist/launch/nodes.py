"""What every node of a cluster has: the same modules, the run folder and the data."""

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

PROBE_SECONDS = 60.0  # for a process to start on a busy node
COMPARED_MODULES = ("udl_dist", "torch", "numpy", "wandb")
ModuleFiles = dict[str, tuple[str, str]]  # module -> its file, and a digest of its content


def refuse_unshared(
    experiment: Experiment, prepared: Prepared, witness: Path | None = None
) -> None:
    """Raise ClusterError, with the nodes by name, if one sees another run folder or lacks the data.

    `witness` is a file that all must see alike, by default the experiment in the run folder. This
    node is not asked: its disk is the one that the others are compared with.
    """
    if not (others := _other_nodes()):
        return
    where = experiment.run.folder
    # Written before Ray was started, so every node that shares the folder sees it.
    file = witness or RunFolder(remote.working(where, "launcher")).experiment
    settings = file.read_bytes()
    # In object storage the nodes have no common path: they read the object.
    seen_by_nodes = joined(where, "experiment.toml") if is_remote(where) else str(file)
    # Only indexes on this disk are looked for; the others are in object storage.
    data = [path for path in (*prepared.train, *prepared.held_out) if Path(path).exists()]
    answers = _ask(others, _look, seen_by_nodes, data)
    if unlike := [name for name, (seen, _) in answers.items() if seen != settings]:
        raise ClusterError(
            f"run.folder {name_of(where)} is not the same on {_listed(unlike)}: "
            "choose one on a disk that all nodes share"
        )
    if without := [name for name, (_, missing) in answers.items() if missing]:
        first = answers[without[0]][1][0]
        raise ClusterError(
            f"{first} of the data is missing on {_listed(without)}: put the shards, and"
            " data.cache, on a disk that all nodes share"
        )


def refuse_other_modules() -> None:
    """Raise ClusterError, with both files, if a node would import another module than this process.

    A folder on a worker's path with another `udl_dist` or a `numpy.py` would be used silently.
    """
    look = _module_finder()
    here = look(COMPARED_MODULES)
    for node, there in _ask(_all_nodes(), look, COMPARED_MODULES).items():
        for name, (file, digest) in here.items():
            other, other_digest = there[name]
            # Not the paths: each node may have its own environment with the same releases.
            if digest != other_digest:
                raise ClusterError(
                    f"node {node} imports {name} from {other or 'nowhere'}, the command from"
                    f" {file}: install the same release there, and see to it that no file of that"
                    " name is on the path of the workers"
                )


def ask(look: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """`look(*arguments)` run on each other node with CPUs or GPUs, by the node's name."""
    return _ask(_other_nodes(), look, *arguments)


def _all_nodes() -> list[dict[str, Any]]:
    """The living nodes that workers may be placed on."""
    import ray

    # The head of a cluster often has neither, and no worker is ever placed there.
    return [
        node
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) + node["Resources"].get("GPU", 0) > 0
    ]


def _other_nodes() -> list[dict[str, Any]]:
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [node for node in _all_nodes() if node["NodeID"] != here]


def _ask(
    nodes: Sequence[dict[str, Any]], look: Callable[..., Any], *arguments: Any
) -> dict[str, Any]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # One task on each node, all at once: the wait is that for the slowest.
    task, pending, answers = ray.remote(look), {}, {}
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        # Without a CPU, as all may be in use; without retries, as a lost node must be named.
        on_node = task.options(num_cpus=0, scheduling_strategy=strategy, max_retries=0)
        address = f"{node['NodeManagerAddress']}, node {node['NodeID'][:8]}"
        pending[f"{node['NodeManagerHostname']} ({address})"] = on_node.remote(*arguments)
    for name, answer in pending.items():
        try:
            answers[name] = ray.get(answer, timeout=PROBE_SECONDS)
        except Exception as error:  # a node without the package, just lost, or too busy
            raise ClusterError(f"node {name} does not answer: {one_line(error)}") from None
    return answers


def _look(settings: str, data: list[str]) -> tuple[bytes, list[str]]:
    """Runs on a node: the settings in the run folder (empty: none), and the missing data."""
    missing = [path for path in data if not Path(path).exists()]
    if is_remote(settings):
        return read(settings), missing
    path = Path(settings)
    return path.read_bytes() if path.exists() else b"", missing


def _module_finder() -> Callable[[tuple[str, ...]], ModuleFiles]:
    """A function that finds modules without importing them."""

    # Nested, so that Ray sends its code. A function of the module would travel by name, and the
    # node would import the very package under suspicion.
    def find(names: tuple[str, ...]) -> ModuleFiles:
        import hashlib
        from importlib.util import find_spec
        from pathlib import Path

        found: ModuleFiles = {}
        for name in names:
            spec = find_spec(name)  # finds a file on the path, runs nothing of it
            file = Path(spec.origin) if spec and spec.origin else None
            files = [file] if file else []
            if file and name == "udl_dist":
                # Every file counts: two releases may have an equal __init__.py.
                files = sorted(file.parent.rglob("*.py"))
            digest = hashlib.sha256()
            for each in filter(Path.is_file, files):
                digest.update(each.read_bytes())
            found[name] = str(file or ""), digest.hexdigest()
        return found

    return find


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more nodes" if len(names) > 3 else ""
    return ", ".join(f"node {name}" for name in names[:3]) + more
