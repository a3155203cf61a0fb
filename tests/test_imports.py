"""Who imports whom: read from the syntax trees, so that a room cannot quietly learn what it must
not know.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "udl_dist"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each room may import of ours; settings and errors are everybody's. `cli` and `verbs` may
# import anything.
ALLOWED = {
    "networks": set[str](),
    "methods": {"networks"},
    "permutation": set[str](),
    "storage": set[str](),
    "images": {"permutation"},
    "shards": {"images", "storage"},
    "stream": {"permutation", "images", "shards", "storage"},
    "packing": {"images", "shards", "stream", "storage", "disk"},
    "checking": {"images", "shards", "stream", "packing", "storage"},
    "tracking": {"wandb_environment"},
    "disk": set[str](),
    "interfaces": set[str](),
    "runs": {"disk"},
    "signals": set[str](),
    "faults": {"runs"},
    "pulse": {"runs"},
    "watchdog": {"runs", "pulse"},
    "recovery": {"runs", "pulse", "watchdog"},
    "training": {"methods", "stream", "faults", "disk"},
    "evaluation": {"methods", "networks"},
    "experiment": {"methods", "stream", "training", "evaluation", "runs", "tracking"},
    "guardian": set[str](),
    "capacity": set[str](),
    "modules": {"nodes"},
    "ray_options": set[str](),
    "wandb_environment": set[str](),
    "clusters": {
        "capacity",
        "experiment",
        "guardian",
        "modules",
        "ray_options",
        "recovery",
        "training",
    },
    "nodes": {"mirror", "storage", "experiment", "recovery", "runs", "stream"},
    "plan": {"experiment", "evaluation", "methods", "packing", "storage"},
    "terminal": {"disk", "runs"},
    "scribe": {
        "mirror",
        "experiment",
        "methods",
        "stream",
        "training",
        "evaluation",
        "runs",
        "tracking",
        "disk",
        "storage",
    },
    "iterables": {"packing", "stream"},
    "mirror": {"disk", "pulse", "runs", "storage", "stream"},
    "environment": {"runs", "disk", "training"},
    "resume": {"experiment", "mirror", "models", "runs", "stream", "training"},
    "worker": {
        "resume",
        "environment",
        "faults",
        "watchdog",
        "scribe",
        "experiment",
        "methods",
        "mirror",
        "stream",
        "training",
        "evaluation",
        "runs",
        "tracking",
        "disk",
    },
    "growing": {"clusters", "pulse", "experiment", "runs"},
    "groups": {
        "disk",
        "clusters",
        "faults",
        "interfaces",
        "mirror",
        "recovery",
        "pulse",
        "experiment",
        "stream",
        "runs",
        "storage",
        "worker",
        "training",
    },
    "launch": {
        "clusters",
        "groups",
        "growing",
        "nodes",
        "recovery",
        "pulse",
        "watchdog",
        "experiment",
        "stream",
        "signals",
        "terminal",
    },
    "search": {
        "capacity",
        "tracking",
        "clusters",
        "disk",
        "evaluation",
        "experiment",
        "export",
        "faults",
        "launch",
        "methods",
        "models",
        "nodes",
        "packing",
        "permutation",
        "plan",
        "pulse",
        "recovery",
        "runs",
        "signals",
        "storage",
        "stream",
        "terminal",
        "training",
        "using",
        "worker",
    },
    "session": {
        "disk",
        "experiment",
        "faults",
        "groups",
        "launch",
        "methods",
        "mirror",
        "models",
        "packing",
        "plan",
        "runs",
        "storage",
        "stream",
        "terminal",
        "tracking",
        "training",
    },
    "submitting": {
        "clusters",
        "evaluation",
        "experiment",
        "nodes",
        "packing",
        "recovery",
        "search",
        "shards",
        "storage",
        "stream",
    },
    "models": {
        "disk",
        "evaluation",
        "experiment",
        "methods",
        "training",
        "runs",
        "images",
        "storage",
    },
    "using": {
        "models",
        "methods",
        "evaluation",
        "images",
        "iterables",
        "packing",
        "stream",
        "shards",
        "disk",
        "clusters",
        "training",
        "runs",
        "account",
    },
    "account": {"environment", "evaluation", "runs", "methods", "storage"},
    "report": {
        "account",
        "environment",
        "evaluation",
        "experiment",
        "runs",
        "search",
        "shards",
        "storage",
    },
    "export": {"account", "models", "using", "methods", "evaluation", "packing", "stream"},
}
# The only files that may import a library, by its first names.
ONLY_IN = {
    "ray.train": {"groups.py"},
    "ray.tune": {"search/tuning.py"},
    "optuna": {"search/tpe.py"},
    "ray": {
        "groups.py",
        "capacity.py",
        "ray_options.py",
        "clusters.py",
        "nodes.py",
        "search/tuning.py",
        "using/workers.py",
    },
    "wandb": {"tracking.py"},
    "torch.distributed": {"training/ranks.py"},
    "torch.nn.parallel": {"training/ranks.py"},
    "pyarrow": {"groups.py", "using/parts.py"},
    "obstore": {"storage/client.py"},
    "matplotlib": {"report/curves.py", "search/plots.py", "using/maps.py"},
    "sklearn": {"evaluation/representation.py"},
    "jinja2": {"report/page.py"},
    "onnxruntime": {"export/formats.py"},
    "torch.onnx": {"export/formats.py"},
    "torch.export": {"export/formats.py", "evaluation/foreign.py"},
    "pickle": set[str](),
}
# Files whose import must not bring in torch: it costs a second and a half.
SETTINGS_ONLY = {
    "experiment": {
        "stream.settings",
        "training.settings",
        "evaluation.settings",
        "runs",
        "tracking",
        "methods",
    },
    "plan": {
        "packing.survey",
        "packing.prepare",
        "packing.source",
        "methods",
        "experiment",
        "evaluation.settings",
    },
}


def imports(file: Path) -> set[str]:
    """Every module named by an import statement of the file, type checking included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def ours(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("udl_dist.")} - {
        "settings",
        "errors",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may(file: Path) -> None:
    room = room_of(file)
    if room in ("cli", "verbs", "__main__", "__init__"):
        return
    there = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    used = (ours(imports(file)) & there) - {room, "__version__"}
    assert used <= ALLOWED.get(room, set()), (
        f"{file.name} must not know {sorted(used - ALLOWED.get(room, set()))}"
    )
    assert not {"cli", "verbs"} & used


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_lives_in_one_room(library: str) -> None:
    found = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if any(name == library or name.startswith(library + ".") for name in imports(file))
    }
    assert found <= ONLY_IN[library]


@pytest.mark.parametrize("room", SETTINGS_ONLY)
def test_the_light_files_import_only_light_ones(room: str) -> None:
    names = imports(PACKAGE / f"{room}.py")
    nested = {
        name
        for name in names
        if name.startswith(
            (
                "udl_dist.data.loader",
                "udl_dist.data.packing",
                "udl_dist.training",
                "udl_dist.evaluation",
            )
        )
    }
    for name in nested:
        short = name.removeprefix("udl_dist.")
        assert any(
            short == light or short.startswith(light + ".") for light in SETTINGS_ONLY[room]
        ), name


def test_no_file_has_outgrown_its_room() -> None:
    long = {
        str(file.relative_to(PACKAGE)): count
        for file in FILES
        if (count := len(file.read_text(encoding="utf-8").splitlines())) > 250
    }
    assert not long


def test_no_method_is_asked_its_name_outside_the_methods() -> None:
    for file in FILES:
        if room_of(file) == "methods":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                values = [
                    part.value
                    for part in (node.left, *node.comparators)
                    if isinstance(part, ast.Constant)
                ]
                assert not {"ae", "vae", "gan"} & {
                    value for value in values if isinstance(value, str)
                }, file
