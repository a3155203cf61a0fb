"""The README and docs/: their methods train, and what they name exists."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

import udl_dist
from tests import trained
from tests.methods import test_methods
from tests.methods.cases import CASES
from tests.training.learn import SMALL, packed
from udl_dist import cli, experiment, methods
from udl_dist.core import config_schema
from udl_dist.search.config import SearchSettings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "cluster" / "README.md"]
CONTRACT = (
    test_methods.test_each_phase_touches_every_parameter_of_its_learner_and_no_other,
    test_methods.test_each_phase_lowers_its_own_loss,
)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@pytest.mark.parametrize(
    ("page", "name", "abilities"),
    [
        ("README.md", "rae", ("encode", "reconstruct", "score")),
        ("docs/methods.md", "tiny_vqvae", ("encode", "reconstruct")),
        ("docs/methods.md", "hinge_gan", ("sample",)),
    ],
)
def test_the_methods_of_the_pages_train_as_installed_packages(
    page: str,
    name: str,
    abilities: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    code = next(block for block in blocks if block.startswith(f"# {name}.py\n"))
    installed = tmp_path / "site" / f"{name}-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "entry_points.txt").write_text(f"[udl_dist.methods]\n{name} = {name}\n")
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (installed.parent / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(installed.parent)
    monkeypatch.setitem(SMALL, name, {})  # default settings
    monkeypatch.setitem(CASES, name, (name, {}))

    assert name in methods.names()
    for contract in CONTRACT:
        contract(name)
    run = trained.run(name, packed(tmp_path / "data"), tmp_path / "run")
    model = udl_dist.load(run)
    assert all(model.can(ability) for ability in abilities)
    images = model.sample(3) if model.can("sample") else model.reconstruct(trained.images(3))
    assert images.shape == (3, 1, 8, 8)
    assert images.std() > 0


@every_page
def test_links_modules_and_files_exist(page: Path) -> None:
    text = page.read_text()
    links = {link for link in re.findall(r"\[[^\]\"]*\]\(([^)#]+)", text) if "://" not in link}
    assert not {link for link in links if not (page.parent / link).exists()}
    benches = set(re.findall(r"tests\.bench\.(\w+)", text))
    assert not {name for name in benches if not (ROOT / "tests" / "bench" / f"{name}.py").exists()}
    named = set(re.findall(r"`((?:udl_dist|tests|jobs|cluster|docs)/[\w/.-]+)`", text))
    named |= set(re.findall(r"\b((?:\w+/)+\w+\.py)\b", text))
    places = (ROOT, ROOT / "udl_dist")
    assert not {name for name in named if not any((place / name).exists() for place in places)}


@every_page
def test_commands_and_their_flags_exist(page: Path) -> None:
    parsers = verbs()
    for line in re.findall(r"\budl ([a-z][a-z-]*(?: [^`\n|]*)?)", page.read_text()):
        verb, _, rest = line.partition(" ")
        assert verb in parsers, line
        usage = parsers[verb].format_help().replace("_", "-")
        if verb == "submit":  # of a run folder: what udl evaluate takes
            usage += parsers["evaluate"].format_help().replace("_", "-")
        for flag in re.findall(r"--([a-z][\w-]*)(?![\w.-])", rest.partition("#")[0]):
            assert f"--{flag.replace('_', '-')}" in usage, line


@every_page
def test_settings_exist(page: Path) -> None:
    known = set(config_schema.kinds(SearchSettings, "search."))
    for name in methods.names():
        known |= set(experiment.kinds(name))
    written = r"(?:`|--|\")((?:method|data|train|evaluate|run|track|search)\.[a-z][\w.-]*)"
    for name in re.findall(written, page.read_text()):
        plain = name.replace("-", "_").rstrip(".")
        assert any(plain == one or one.startswith(f"{plain}.") for one in known), name


def verbs() -> Mapping[str, argparse.ArgumentParser]:
    return cli._parser()[1]
