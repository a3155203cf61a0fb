"""Whether workers import the same modules as this process: asked of every node before anything is
trained.

A folder on a worker's path that holds another `udl_dist` or a `numpy.py` would otherwise be used
without a word.
"""

from __future__ import annotations

from collections.abc import Callable

from udl_dist.errors import ClusterError
from udl_dist.launch import nodes

COMPARED = ("udl_dist", "torch", "numpy", "wandb")
Found = dict[str, tuple[str, str]]  # by module: its file, and a digest of what it holds


def refuse_others() -> None:
    """Raise ClusterError, with both files, if a node would import another module than this
    process.
    """
    look = _finder()
    here = look(COMPARED)
    for node, there in nodes.ask_all(look, COMPARED).items():
        for name, (file, digest) in here.items():
            other, other_digest = there[name]
            if digest != other_digest:
                raise ClusterError(
                    f"node {node} imports {name} from {other or 'nowhere'}, the command from"
                    f" {file}: install the same release there, and see to it that no file of that"
                    " name lies on the path of the workers"
                )


def _finder() -> Callable[[tuple[str, ...]], Found]:
    """What finds modules without importing them; defined here so that it travels whole, not by the
    name of a module.
    """

    def found(names: tuple[str, ...]) -> Found:
        import hashlib
        from importlib.util import find_spec
        from pathlib import Path

        places: Found = {}
        for name in names:
            spec = find_spec(name)
            file = Path(spec.origin) if spec and spec.origin else None
            whole = hashlib.sha256()
            # Of our own package every file counts: the first one may well be the same in two
            # releases.
            files = (
                sorted(file.parent.rglob("*.py"))
                if file and name == "udl_dist"
                else [file]
                if file
                else []
            )
            for each in filter(Path.is_file, files):
                whole.update(each.read_bytes())
            places[name] = str(file or ""), whole.hexdigest()
        return places

    return found
