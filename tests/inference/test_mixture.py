"""Fitting a mixture: the turns of scikit-learn, whatever the parts; then an autoencoder can be
drawn from.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import udl_dist
from udl_dist.core import rng
from udl_dist.errors import DataError, UsageError
from udl_dist.inference import mixture
from udl_dist.inference.drawing import sample
from udl_dist.inference.fitting import fit_prior
from udl_dist.inference.prior import Mixture
from udl_dist.training import checkpoint


def codes(count: int = 1500) -> np.ndarray:
    """Three clusters in three dimensions."""
    random = np.random.default_rng(0)
    centres = np.array([[0, 0, 0], [4, 1, -2], [-3, 5, 1]])
    scales = np.array([[1, 0.5, 2], [0.3, 1, 1], [1, 1, 0.2]])
    which = random.integers(3, size=count)
    return (centres[which] + scales[which] * random.standard_normal((count, 3))).astype(np.float32)


@pytest.mark.filterwarnings("ignore")  # it says that one turn is not the end
def test_each_turn_is_scikit_learn_s() -> None:
    sklearn = pytest.importorskip("sklearn.mixture")
    points = codes()
    now = mixture.start(points, 3, 0, 0.0)
    theirs = sklearn.GaussianMixture(
        3,
        max_iter=5,
        tol=0,
        reg_covar=0,
        weights_init=now.weights.numpy(),
        means_init=now.means.numpy(),
        precisions_init=torch.linalg.inv(now.factors @ now.factors.mT).numpy(),
    ).fit(points.astype(np.float64))
    for _ in range(5):
        now, _ = mixture.step(now, points, 0.0)
    np.testing.assert_allclose(now.weights, theirs.weights_, rtol=1e-6)
    np.testing.assert_allclose(now.means, theirs.means_, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(
        now.factors @ now.factors.mT, theirs.covariances_, rtol=1e-6, atol=1e-9
    )
    ours = now.log_density(torch.from_numpy(points).double())
    np.testing.assert_allclose(ours, theirs.score_samples(points.astype(np.float64)), rtol=1e-6)


def test_the_size_of_the_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mixture.fit(codes(), 3, 0, 20)
    monkeypatch.setattr(mixture, "PART", 37)
    parts = mixture.fit(codes(), 3, 0, 20)
    torch.testing.assert_close(parts.mixture.means, whole.mixture.means)
    assert parts.log_likelihood == pytest.approx(whole.log_likelihood)
    assert whole.converged


def test_what_is_drawn_is_spread_as_what_was_fitted() -> None:
    fitted = mixture.fit(codes(), 3, 0, 50).mixture
    drawn = fitted.draw(rng.keys(1, 20_000))
    np.testing.assert_allclose(drawn.mean(0), codes().mean(0), atol=0.15)
    np.testing.assert_allclose(np.cov(drawn.T.numpy()), np.cov(codes().T), atol=0.4)
    torch.testing.assert_close(fitted.draw(rng.keys(1, 3, 5)), drawn[5:8])


def test_too_few_or_equal_codes_are_refused() -> None:
    with pytest.raises(DataError, match="5 images are too few for 3 components"):
        mixture.fit(codes(5), 3, 0, 20)
    with pytest.raises(DataError, match="codes of all images are the same"):
        mixture.fit(np.zeros((50, 3), np.float32), 3, 0, 20)


def test_codes_that_repeat_are_fitted_all_the_same() -> None:
    few = np.repeat(codes(4), 20, 0)
    assert torch.isfinite(mixture.fit(few, 6, 0, 20).mixture.factors).all()


@pytest.fixture
def run(trained: dict[str, Path], tmp_path: Path) -> Path:
    """An autoencoder's run of its own, to be written to."""
    shutil.copytree(trained["ae"], tmp_path / "run")
    return tmp_path / "run"


def test_an_autoencoder_is_drawn_from_once_a_mixture_was_fitted(run: Path, tmp_path: Path) -> None:
    done = fit_prior(udl_dist.load(run), 2, 50, 0, lambda done, total: None)
    assert done.figures["held_out_log_likelihood"] > -100
    assert not list(run.glob(".codes*"))
    model = udl_dist.load(run)
    assert model.can("sample")
    assert torch.equal(model.sample(3, seed=4), model.sample(3, seed=4, prior="mixture"))
    sample(model, 4, 0, "auto", tmp_path / "grid.png")
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
        DataError, match="is no mixture .*: delete it, then run udl fit-prior again"
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
