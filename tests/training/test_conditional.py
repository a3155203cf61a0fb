"""Conditional methods learn the same in any number of ranks, and a run makes the class it is asked
for.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import udl_dist
from tests.test_cli import refused, udl
from tests.trained import corners, finished
from tests.training import gloo
from tests.training.learn import Run, packed
from udl_dist import experiment as experiments
from udl_dist.errors import UsageError
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.experiment import Experiment
from udl_dist.inference import evaluating
from udl_dist.inference.export import ExportSettings, export
from udl_dist.inference.model import Model
from udl_dist.training.distributed import Ranks

# Networks without ties or kinks, where rounding would become a step of Adam.
SMOOTH = {"method.network.kind": "dense", "method.network.widths": "16"}
METHODS = {
    "vae": SMOOTH,
    "gan": SMOOTH
    | {"method.generator": "conv", "method.discriminator": "conv"}
    | {"train.average_half_life": "60", "train.warmup_images": "0"},
}
WAYS = ({"train.accumulate": "2"}, {"run.determinism": "elastic"})
CLASSES = ["ash", "elm", "oak", "yew"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with a folder for each class."""
    folder = tmp_path_factory.mktemp("data")
    corners(folder / "corners.npz")
    with np.load(folder / "corners.npz") as stored:
        for number, (image, label) in enumerate(
            zip(stored["images"], stored["labels"], strict=True)
        ):
            path = folder / "trees" / CLASSES[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder / "trees"


def asked(name: str, source: Path, **flags: str) -> Experiment:
    data = {"data.source": str(source), "data.readers": "0", "data.held_out_fraction": "0.2"}
    data |= {"data.size": "8", "data.channels": "1", "data.cache": str(source.parent / "cache")}
    train = {"train.batch_size": "12", "train.total_images": "240", "track.mode": "off"}
    own = {"method.name": name, "method.conditional": "true", **METHODS[name]}
    return experiments.load(None, {**own, **data, **train, **flags})


def learned(wanted: list[Experiment]) -> list[tuple[torch.Tensor, str]]:
    """Every weight and a hash of all that is learned after each training, on this rank."""
    found = []
    for experiment in wanted:
        run = Run(experiment, Ranks())
        list(run.reports(every=120, validate=120))
        found.append((run.weights(), run.hash()))
    return found


@pytest.fixture(scope="module")
def worlds(source: Path) -> dict[int, list[tuple[torch.Tensor, str]]]:
    wanted = [asked(name, source, **way) for name in METHODS for way in WAYS]
    return {world: gloo.run(world, learned, wanted, seconds=300)[0] for world in (1, 2, 3)}


@pytest.mark.parametrize("name", METHODS)
def test_any_number_of_ranks_learns_the_same(
    name: str, worlds: dict[int, list[tuple[torch.Tensor, str]]]
) -> None:
    place, alone = list(METHODS).index(name) * len(WAYS), worlds[1]
    for world in (2, 3):
        assert (worlds[world][place][0] - alone[place][0]).abs().max() <= 1e-6, f"{world} ranks"
        assert worlds[world][place + 1][1] == alone[place + 1][1], f"{world} ranks, elastic"


@pytest.fixture(scope="module")
def runs(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: finished(asked(name, source, **{"run.folder": str(folder / name)}))
        for name in METHODS
    }


@pytest.mark.parametrize("name", METHODS)
def test_the_label_chooses_and_without_one_classes_come_in_turn(
    name: str, runs: dict[str, Path]
) -> None:
    model: Model = udl_dist.load(runs[name])
    elm = model.sample(5, labels="elm")
    torch.testing.assert_close(elm, model.sample(5, labels=[1] * 5))
    assert not any(map(torch.allclose, elm, model.sample(5, labels="oak")))
    torch.testing.assert_close(
        model.sample(5), model.sample(5, labels=["ash", "elm", "oak", "yew", "ash"])
    )
    torch.testing.assert_close(model.sample(2, start=3), model.sample(5)[3:])
    latents = torch.rand(2, *model.latent_shape)
    assert model.decode(latents, "elm").shape == (2, *model.shape)
    with pytest.raises(UsageError, match="makes images of a class: name one of ash, elm, oak, yew"):
        model.decode(latents)
    with pytest.raises(UsageError, match=r"there is no class 'olm': did you mean elm\?"):
        model.sample(2, labels="olm")
    for wrong in (4, [0, -1]):
        with pytest.raises(UsageError, match="there is no class .*: their numbers are 0 to 3"):
            model.sample(2, labels=wrong)
    with pytest.raises(UsageError, match="there is no class ''"):
        model.sample(2, labels="")
    with pytest.raises(UsageError, match="2 labels for 3 images: give one for each"):
        model.sample(3, labels=["elm", "oak"])


def test_a_conditional_vae_reconstructs_within_a_class(runs: dict[str, Path]) -> None:
    model, images = udl_dist.load(runs["vae"]), torch.rand(3, 1, 8, 8) * 2 - 1
    one = model.reconstruct(images, labels=["ash", "elm", "oak"])
    torch.testing.assert_close(one[1:2], model.reconstruct(images[1:2], "elm"))
    with pytest.raises(UsageError, match="makes images of a class: name one of ash"):
        model.reconstruct(images)


def test_an_image_is_scored_within_its_class(runs: dict[str, Path]) -> None:
    model = udl_dist.load(runs["vae"])
    images = model.sample(3, labels="ash")
    own = model.score(images, "reconstruction", labels=["ash", "elm", "oak"])
    errors = (model.reconstruct(images, ["ash", "elm", "oak"]) - images).div(2).square()
    torch.testing.assert_close(own, errors.flatten(1).mean(1).double())
    with pytest.raises(UsageError, match="makes images of a class: name one of ash, elm"):
        model.score(images, "reconstruction")


def test_a_model_without_classes_takes_no_label(trained: dict[str, Path]) -> None:
    model = udl_dist.load(trained["vae"])
    with pytest.raises(UsageError, match="makes images of no class: give no label"):
        model.sample(2, labels="ash")
    with pytest.raises(UsageError, match="makes images of no class: give no label"):
        model.reconstruct(-torch.rand(2, 1, 8, 8), 0)


@pytest.mark.parametrize("name", METHODS)
def test_it_is_evaluated_exported_and_loaded(
    name: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    model = udl_dist.load(runs[name])
    wanted = MetricSettings(bound_samples=2)
    done: Any = evaluating.evaluate(model, wanted, tmp_path / "e.json", lambda done, total: None)
    assert done.as_dict()["figures"]
    export(model, tmp_path / "exported", ExportSettings())
    again = udl_dist.load(tmp_path / "exported")
    torch.testing.assert_close(again.sample(3, labels="yew"), model.sample(3, labels="yew"))


def test_the_command_draws_the_class_it_names(runs: dict[str, Path], tmp_path: Path) -> None:
    for label in ("elm", "oak"):
        out = str(tmp_path / f"{label}.png")
        done = udl("sample", str(runs["gan"]), "--label", label, "--n", "4", "--out", out)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "elm.png").read_bytes() != (tmp_path / "oak.png").read_bytes()
    refused(
        udl("sample", str(runs["gan"]), "--label", "oka"), 2, "no class 'oka': did you mean oak?"
    )


def test_data_without_classes_are_refused(tmp_path: Path) -> None:
    experiment = asked("vae", packed(tmp_path))
    with pytest.raises(UsageError, match="method.conditional needs a label for every image"):
        Run(experiment)
