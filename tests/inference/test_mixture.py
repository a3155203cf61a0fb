"""A mixture over codes: fitted by scikit-learn, used without it, so that an autoencoder samples."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import udl_dist
from tests.trained import images
from tests.trained import run as train
from udl_dist.core import rng
from udl_dist.errors import DataError, UsageError
from udl_dist.evaluation.fitted import Mixture
from udl_dist.inference.drawing import Draw, sample
from udl_dist.inference.fitting import fit_mixture, fit_outliers, fit_prior
from udl_dist.training import checkpoint


def codes(count: int = 1500) -> torch.Tensor:
    """Three clusters in three dimensions."""
    random = np.random.default_rng(0)
    centres = np.array([[0, 0, 0], [4, 1, -2], [-3, 5, 1]])
    scales = np.array([[1, 0.5, 2], [0.3, 1, 1], [1, 1, 0.2]])
    which = random.integers(3, size=count)
    points = centres[which] + scales[which] * random.standard_normal((count, 3))
    return torch.from_numpy(points.astype(np.float32))


def test_its_density_is_that_of_scikit_learn_wherever_rows_are_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sklearn = pytest.importorskip("sklearn.mixture")
    points = codes().double()
    fitted = fit_mixture(points, 3, 0, 50)
    reg_covar = 1e-6 * float(points.var(0, correction=0).mean())
    theirs = sklearn.GaussianMixture(3, reg_covar=reg_covar, random_state=0).fit(points.numpy())
    assert fitted.converged and fitted.iterations == theirs.n_iter_
    covariances = fitted.mixture.factors @ fitted.mixture.factors.mT
    np.testing.assert_allclose(covariances, theirs.covariances_, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr("udl_dist.evaluation.fitted.MIXTURE_ROWS", 37)
    densities = fitted.mixture.log_density(points)
    np.testing.assert_allclose(densities, theirs.score_samples(points.numpy()), rtol=1e-6)
    assert fitted.log_likelihood == pytest.approx(float(densities.mean()), abs=1e-2)


def test_what_is_drawn_is_spread_as_what_was_fitted() -> None:
    fitted = fit_mixture(codes(), 3, 0, 50).mixture
    drawn = fitted.draw(rng.keys(1, 20_000))
    np.testing.assert_allclose(drawn.mean(0), codes().mean(0), atol=0.15)
    np.testing.assert_allclose(np.cov(drawn.T.numpy()), np.cov(codes().T), atol=0.4)
    torch.testing.assert_close(fitted.draw(rng.keys(1, 3, 5)), drawn[5:8])


def test_too_few_or_equal_codes_are_refused() -> None:
    with pytest.raises(DataError, match="5 images are too few for 3 components"):
        fit_mixture(codes(5), 3, 0, 20)
    with pytest.raises(DataError, match="codes of all images are the same"):
        fit_mixture(torch.zeros(50, 3), 3, 0, 20)


def test_codes_that_repeat_are_fitted_all_the_same() -> None:
    few = codes(4).repeat(20, 1)
    assert torch.isfinite(fit_mixture(few, 6, 0, 20).mixture.factors).all()


@pytest.fixture
def run(trained: dict[str, Path], tmp_path: Path) -> Path:
    """An autoencoder's run of its own, to be written to."""
    shutil.copytree(trained["ae"], tmp_path / "run")
    return tmp_path / "run"


def test_an_autoencoder_is_drawn_from_once_a_mixture_was_fitted(run: Path, tmp_path: Path) -> None:
    done = fit_prior(udl_dist.load(run), 2, 50, 0, lambda done, total: None)
    assert done.values["held_out_log_likelihood"] > -100
    model = udl_dist.load(run)
    assert model.can("sample")
    assert torch.equal(model.sample(3, seed=4), model.sample(3, seed=4, prior="mixture"))
    sample(model, Draw(4), tmp_path / "grid.png")
    from udl_dist.inference.export import ExportSettings, export

    export(model, tmp_path / "model", ExportSettings())
    assert torch.equal(udl_dist.load(tmp_path / "model").sample(3, seed=4), model.sample(3, seed=4))


def test_a_mixture_of_another_checkpoint_is_left_alone_with_a_word(run: Path) -> None:
    fit_prior(udl_dist.load(run), 2, 5, 0, lambda done, total: None)
    other = min(int(path.name) for path in checkpoint.complete(run / "checkpoints"))
    model = udl_dist.load(run, checkpoint=other)
    assert not model.can("sample")
    assert "run udl fit-prior again" in model.origin.notes[0]


def test_a_damaged_mixture_is_refused(run: Path) -> None:
    fit_prior(udl_dist.load(run), 2, 5, 0, lambda done, total: None)
    (run / "prior.safetensors").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(
        DataError, match="is not a valid mixture .*: delete it, then run udl fit-prior again"
    ):
        udl_dist.load(run)
    Mixture(torch.ones(1), torch.zeros(1, 9), torch.eye(9)[None]).save(run / "prior.safetensors")
    with pytest.raises(DataError, match="a mixture over other latents than 4"):
        udl_dist.load(run)
    facts = json.loads((run / "prior.json").read_text())
    assert facts["codes"] == 52


def test_what_cannot_be_fitted_is_refused(trained: dict[str, Path], run: Path) -> None:
    with pytest.raises(UsageError, match="cannot encode"):
        fit_prior(udl_dist.load(trained["gan"]), 2, 5, 0, lambda done, total: None)
    with pytest.raises(DataError, match="too few for 100 components"):
        fit_prior(udl_dist.load(run), 100, 5, 0, lambda done, total: None)
    with pytest.raises(UsageError, match="--components 0"):
        fit_prior(udl_dist.load(run), 0, 5, 0, lambda done, total: None)


@pytest.mark.parametrize("held_out", [1, 60])
def test_samples_are_compared_where_enough_images_are_held_out(
    held_out: int, tmp_path: Path
) -> None:
    for name, count in (("train", 80), ("held_out", held_out)):
        np.save(tmp_path / f"{name}.npy", images(count, seed=count))
    source = tmp_path / "train.npy"
    folder = train("vae", source, tmp_path / "run", data__held_out=str(tmp_path / "held_out.npy"))
    facts = fit_prior(udl_dist.load(folder), 2, 5, 0, lambda done, total: None).values
    model = udl_dist.load(folder)
    assert model.mixture
    if held_out == 1:
        assert "preferred" not in facts
        assert not model.mixture.preferred
        return
    assert facts["preferred"] == (facts["frechet_mixture"] < facts["frechet_own"])
    assert model.mixture.preferred == facts["preferred"]
    chosen = model.sample(3)
    assert torch.equal(chosen, model.sample(3, prior="mixture")) == facts["preferred"]
    assert torch.equal(chosen, model.sample(3, prior="own")) == (not facts["preferred"])


def test_few_codes_are_drawn_of_many_images(run: Path) -> None:
    fitted = fit_prior(udl_dist.load(run), 2, 5, 0, lambda done, total: None, most=30)
    assert fitted.values["codes"] == 30


def test_without_scikit_learn_fitting_is_refused_and_use_goes_on(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_prior(udl_dist.load(run), 2, 5, 0, lambda done, total: None)
    fit_outliers(udl_dist.load(run), 5, lambda done, total: None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model = udl_dist.load(run)
    assert len(model.sample(3)) == len(model.score(images(3))) == 3
    extra = r"it needs scikit-learn: pip install 'udl-dist\[evaluate\]'"
    with pytest.raises(UsageError, match=extra):
        fit_prior(model, 2, 5, 0, lambda done, total: None)
    with pytest.raises(UsageError, match=extra):
        fit_outliers(model, 5, lambda done, total: None)
