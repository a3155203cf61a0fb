"""Which package may import which, read from the syntax trees."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "udl_dist"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each package may import of ours, next to `errors`. `cli` and `commands` may import anything.
ALLOWED = {
    "core": set[str](),
    "storage": {"core"},
    "data": {"core", "storage"},
    "methods": {"core"},
    "training": {"core", "data", "methods"},
    "evaluation": {"core", "methods"},
    "runs": {"core", "storage", "data", "training"},
    "experiment": {"core", "data", "methods", "training", "evaluation", "runs"},
    "inference": {
        "core",
        "storage",
        "data",
        "methods",
        "training",
        "evaluation",
        "runs",
        "experiment",
    },
}
ALLOWED["launch"] = ALLOWED["inference"] | {"inference"}
ALLOWED["search"] = ALLOWED["launch"] | {"launch"}
ALLOWED["reporting"] = {
    "core",
    "storage",
    "data",
    "methods",
    "evaluation",
    "runs",
    "experiment",
    "search",
}
# Single files that may import one package more.
EXCEPTIONS = {"inference/ray_workers.py": {"launch"}}
# The only files that may import a library, by its first names.
ONLY_IN = {
    "ray.train": {"launch/train_group.py"},
    "ray.tune": {"search/tuner.py"},
    "optuna": {"search/samplers.py"},
    "ray": {
        "launch/train_group.py",
        "launch/capacity.py",
        "launch/process_group.py",
        "launch/ray_options.py",
        "launch/ray_runtime.py",
        "launch/nodes.py",
        "search/tuner.py",
        "inference/ray_workers.py",
    },
    "wandb": {"runs/tracking.py"},
    "torch.distributed": {"training/distributed.py"},
    "torch.nn.parallel": {"training/distributed.py"},
    "pyarrow": {"launch/ray_options.py", "inference/embedding.py"},
    "obstore": {"storage/client.py"},
    "matplotlib": {"inference/evaluating.py", "reporting/curves.py", "search/plots.py"},
    "sklearn": {"evaluation/fitted.py", "evaluation/representation.py", "inference/fitting.py"},
    "jinja2": {"inference/card.py", "reporting/page.py"},
    "onnxruntime": {"inference/formats.py"},
    "diffusers": {"inference/hub_folder.py"},
    "torch.onnx": {"inference/formats.py"},
    "torch.export": {"inference/formats.py", "methods/networks/code_files.py"},
    "pickle": set[str](),
}
# What these files may import of packages that need torch, which takes 1.5 s to import.
WITHOUT_TORCH = {
    "experiment.py": {
        "data.settings",
        "training.settings",
        "evaluation.settings",
        "runs.settings",
        "methods",
    },
    "launch/plan.py": {
        "data.packing.prepare",
        "data.packing.sources",
        "evaluation.settings",
        "methods",
    },
}


def imports(file: Path, at_import_only: bool = False) -> set[str]:
    """The modules that import statements of the file name: all, or those at its top level."""
    names: set[str] = set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if at_import_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def package_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def ours(names: set[str]) -> set[str]:
    """The packages and modules at the root that these names begin with."""
    there = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    return {name.split(".")[1] for name in names if name.startswith("udl_dist.")} & there - {
        "errors"
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_package_imports_only_what_it_may(file: Path) -> None:
    package = package_of(file)
    if package in ("cli", "commands", "__main__", "__init__"):
        return
    allowed = (
        ALLOWED.get(package, set())
        | EXCEPTIONS.get(str(file.relative_to(PACKAGE)), set())
        | {package}
    )
    assert ours(imports(file)) <= allowed


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_by_these_files_alone(library: str) -> None:
    found = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if any(name == library or name.startswith(library + ".") for name in imports(file))
    }
    assert found <= ONLY_IN[library]


@pytest.mark.parametrize("file", WITHOUT_TORCH)
def test_what_reads_settings_imports_no_torch(file: str) -> None:
    heavy = ("udl_dist.data.", "udl_dist.training.", "udl_dist.evaluation.", "udl_dist.runs.")
    for name in imports(PACKAGE / file, at_import_only=True):
        if name.startswith(heavy):
            short = name.removeprefix("udl_dist.")
            light = WITHOUT_TORCH[file]
            assert any(short == module or short.startswith(module + ".") for module in light), name


def test_no_file_is_too_long() -> None:
    long = {
        str(file.relative_to(PACKAGE)): count
        for file in FILES
        if (count := len(file.read_text(encoding="utf-8").splitlines())) > 250
    }
    assert not long


def test_no_method_is_asked_its_name_outside_the_methods() -> None:
    for file in FILES:
        if package_of(file) == "methods":
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
