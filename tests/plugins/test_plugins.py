"""Methods of another package are trained, resumed, evaluated, sampled, exported and loaded."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import udl_dist
from tests.plugins import NAMES, install
from tests.trained import corners, finished
from tests.training.agreement import (
    WAYS,
    Worlds,
    of_worlds,
    refuse_other_bits,
    refuse_other_worlds,
)
from udl_dist import experiment as experiments
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.experiment import Experiment
from udl_dist.inference import evaluating
from udl_dist.inference.export import ExportSettings, export
from udl_dist.inference.model import Model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "corners.npz"
    corners(path)
    return path


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install(tmp_path / "site"))


def asked(name: str, source: Path, **flags: str) -> Experiment:
    """An experiment of 20 steps with a small network without ties or kinks."""
    small = {"method.network.kind": "dense", "method.network.widths": "16"}
    data = {"data.source": str(source), "data.readers": "0", "data.cache": str(source.parent)}
    data |= {"data.size": "8", "data.channels": "1", "data.held_out_fraction": "0.2"}
    train = {"train.batch_size": "12", "train.total_images": "240", "track.mode": "off"}
    dotted = {flag.replace("__", "."): value for flag, value in flags.items()}
    return experiments.load(None, {"method.name": name, **small, **data, **train, **dotted})


@pytest.fixture(scope="module")
def worlds(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(tmp_path_factory.mktemp("site")))
        return of_worlds([asked(name, source, **way) for name in NAMES for way in WAYS])


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_ranks_learns_the_same(name: str, worlds: Worlds) -> None:
    refuse_other_worlds(worlds, NAMES.index(name) * len(WAYS))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS, ids=["parts", "elastic"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_cut(
    name: str, way: dict[str, str], source: Path
) -> None:
    stops = random.Random(name).sample(range(12, 240, 12), 3)
    refuse_other_bits(asked(name, source, **way), stops)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_evaluated_sampled_exported_and_loaded(
    name: str, source: Path, tmp_path: Path
) -> None:
    experiment = asked(name, source, **{"run.folder": str(tmp_path / "run")})
    model = udl_dist.load(finished(experiment))
    wanted = MetricSettings(bound_samples=0)
    done: Any = evaluating.evaluate(model, wanted, tmp_path / "e.json", lambda done, total: None)
    assert done.as_dict()["figures"]
    if model.can("sample"):
        assert model.sample(5).shape == (5, *model.shape)
    export(model, tmp_path / "exported", ExportSettings())
    again: Model = udl_dist.load(tmp_path / "exported")
    for ability in ("encode", "reconstruct"):
        if model.can(ability):
            images = torch.rand(3, *model.shape) * 2 - 1
            labels = (
                {"labels": ["0", "1", "2"]}
                if ability != "encode" and name.startswith("lab")
                else {}
            )
            one, other = (getattr(each, ability)(images, **labels) for each in (model, again))
            torch.testing.assert_close(one, other)
    assert again.latent_shape == model.latent_shape
