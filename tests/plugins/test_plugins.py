"""Methods of another package are trained, resumed, evaluated, sampled, exported and loaded."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import udl_dist
from tests.plugins import NAMES, install
from tests.trained import corners, finished
from tests.training import gloo
from tests.training.learn import Run
from udl_dist import experiment as experiments
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.experiment import Experiment
from udl_dist.inference import evaluating
from udl_dist.inference.export import ExportSettings, export
from udl_dist.inference.model import Model
from udl_dist.training.distributed import Ranks
from udl_dist.training.loop import LoopState

# Of each way to add up a step: by DDP in parts, clipped, with an average; and elastic.
WAYS = ({"train.accumulate": "2", "train.average_half_life": "60"}, {"run.determinism": "elastic"})


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
    return experiments.load(None, {"method.name": name, **small, **data, **train, **flags})


def trained(wanted: list[Experiment]) -> list[tuple[torch.Tensor, str]]:
    """Every number of the state and its hash after each training, on this rank."""
    found = []
    for experiment in wanted:
        run = Run(experiment, Ranks())
        list(run.reports(every=120, validate=120))
        state = run.learning.method.saved_tensors()
        found.append((torch.cat([v.double().flatten() for v in state.values()]), run.hash()))
    return found


@pytest.fixture(scope="module")
def worlds(
    source: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, list[tuple[torch.Tensor, str]]]:
    """What each number of ranks learned: of every method the plain and the elastic way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(tmp_path_factory.mktemp("site")))
        wanted = [asked(name, source, **way) for name in NAMES for way in WAYS]
        return {world: gloo.run(world, trained, wanted, seconds=300)[0] for world in (1, 2, 3)}


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_ranks_learns_the_same(
    name: str, worlds: dict[int, list[tuple[torch.Tensor, str]]]
) -> None:
    place = NAMES.index(name) * len(WAYS)
    alone = worlds[1]
    for world in (2, 3):
        plain, _ = worlds[world][place]
        assert (plain - alone[place][0]).abs().max() <= 1e-6, f"{world} ranks"
        assert worlds[world][place + 1][1] == alone[place + 1][1], f"{world} ranks, elastic"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS, ids=["parts", "elastic"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_cut(
    name: str, way: dict[str, str], source: Path
) -> None:
    experiment = asked(name, source, **way)
    whole = Run(experiment)
    reports = whole.reports(every=240, validate=240)
    list(reports)
    for stop in random.Random(name).sample(range(12, 240, 12), 3):
        first = Run(experiment)
        state, kept = LoopState(), {}
        for report in first.reports(every=240, validate=240, save_requested=lambda: True):
            if report.images == stop:
                state, kept = report.state, first.state()
                break
        second = Run(experiment)
        second.learning.restore(kept)
        list(second.reports(stop, every=240, validate=240, resumed=state))
        assert second.hash() == whole.hash(), f"cut after {stop} images"


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
