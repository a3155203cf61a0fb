"""A model with latents [C, h, w] does all that one with rows does."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import udl_dist
from tests import trained
from udl_dist.evaluation.settings import EmbedSettings, MetricSettings
from udl_dist.inference.drawing import Draw, Walk, interpolate, sample, traverse
from udl_dist.inference.embedding import embed
from udl_dist.inference.evaluating import evaluate
from udl_dist.inference.export import ExportSettings, export
from udl_dist.inference.fitting import fit_outliers, fit_prior
from udl_dist.inference.model import Model


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a KL autoencoder, whose latents are maps [2, 4, 4]."""
    short = {"train__total_images": "24", "evaluate__every_images": "0"}
    return trained.run("kl", source, tmp_path_factory.mktemp("runs") / "kl", **short)


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """The run, to be written to."""
    return Path(shutil.copytree(folder, tmp_path / "run"))


def silent(done: int, total: int) -> None:
    """Progress that no one reads."""


def test_images_become_maps_or_rows_and_come_back(folder: Path) -> None:
    model, images = udl_dist.load(folder), trained.images(5)
    latents, codes = model.encode(images), model.codes(images)
    assert (model.latent_shape, model.latent_dim) == ((2, 4, 4), 32)
    assert latents.shape == (5, 2, 4, 4)
    assert torch.equal(codes, latents.flatten(1))
    assert torch.equal(model.decode(latents), model.decode(codes))
    assert torch.equal(model.decode(codes.numpy()), model.reconstruct(images))


def test_a_mixture_is_fitted_and_drawn_from(own: Path, tmp_path: Path) -> None:
    fit_prior(udl_dist.load(own), 2, 50, 0, silent)
    model = udl_dist.load(own)
    assert model.sample(3, seed=4).shape == (3, 1, 8, 8)
    sample(model, Draw(4), tmp_path / "grid.png")
    assert (tmp_path / "grid.png").is_file()


def test_reference_codes_give_outlier_factors(own: Path) -> None:
    fit_outliers(udl_dist.load(own), 5, silent)
    model = udl_dist.load(own)
    assert model.scores == ("reconstruction", "code_outlier_factor")
    factors = model.score(trained.images(20))
    assert factors.shape == (20,)
    assert model.reference_codes is not None
    by_hand = model.reference_codes.outlier_factors(model.codes(trained.images(20)))
    torch.testing.assert_close(factors, by_hand)


def test_it_is_evaluated_with_latents_as_rows(own: Path, tmp_path: Path) -> None:
    done = evaluate(udl_dist.load(own), MetricSettings(), tmp_path / "evaluation.json", silent)
    figures = done.as_dict()["figures"]
    assert "PCA of 32 numbers" in figures["mse"]["floor"]


def test_its_latents_are_walked_along(folder: Path, source: Path, tmp_path: Path) -> None:
    done = traverse(udl_dist.load(folder), Walk(3, 5, 2.0), "", 0, tmp_path / "walk.png")
    assert len(done.as_dict()["axes"]) == 3
    image = str(source.parent / "images.npy")
    interpolate(udl_dist.load(folder), (image, image), Walk(1, 4, 1.0), 0, tmp_path / "between.png")
    assert (tmp_path / "between.png").is_file()


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_its_embedding_has_a_row_for_each_image(
    form: Any, folder: Path, source: Path, tmp_path: Path
) -> None:
    model = udl_dist.load(folder)
    asked = EmbedSettings(part_images=30, format=form)
    done = embed(model, str(source), tmp_path / "out", asked, silent).as_dict()
    assert done["records"] == 52
    if form == "npy":
        rows = [np.load(path) for path in sorted((tmp_path / "out").glob("*latent*.npy"))]
        assert sum(map(len, rows)) == 52 and all(part.shape[1:] == (32,) for part in rows)


def test_an_exported_model_gives_the_same(folder: Path, tmp_path: Path) -> None:
    model = udl_dist.load(folder)
    export(model, tmp_path / "model", ExportSettings())
    again: Model = udl_dist.load(tmp_path / "model")
    assert again.latent_shape == (2, 4, 4)
    images = trained.images(4)
    assert torch.equal(again.encode(images), model.encode(images))
    assert torch.equal(again.reconstruct(images), model.reconstruct(images))
