"""`udl fit-prior` and `udl fit-outliers`: scikit-learn fits the codes of a run's images."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udl_dist.core import files, rng
from udl_dist.data.loader.reader import Stream
from udl_dist.errors import DataError, UsageError
from udl_dist.evaluation.distribution import Distribution
from udl_dist.evaluation.fitted import MOST_CODES, Mixture, ReferenceCodes
from udl_dist.evaluation.metric_group import sklearn_missing
from udl_dist.evaluation.similarity import gaussian
from udl_dist.inference.inputs import scaled
from udl_dist.inference.layout import CODES, PRIOR, PRIOR_FACTS
from udl_dist.inference.model import BATCH_IMAGES, OUTLIER_FACTOR, Model
from udl_dist.inference.outcome import Outcome, Progress, outcome, writing
from udl_dist.inference.sources import at_most, open_run
from udl_dist.methods.metrics import descriptor
from udl_dist.methods.metrics.frechet import between

MOST_COMPARED = 1000  # held-out images that samples are compared with
MOST_FITTED = 200_000  # codes of a mixture: 100 MB for latents of 64 numbers
# What a mixture has to exceed: the same codes under a single Gaussian.
FLOOR = "held_out_log_likelihood_one_gaussian"


@dataclass(frozen=True)
class FittedMixture:
    """A mixture, the mean log-density of its codes before the last iteration, and how it ended."""

    mixture: Mixture
    log_likelihood: float
    iterations: int
    converged: bool


def fit_mixture(codes: Tensor, components: int, seed: int, iterations: int) -> FittedMixture:
    """Fit scikit-learn's GaussianMixture to codes [N, Z]; raise DataError if it cannot be
    fitted.
    """
    from sklearn.mixture import GaussianMixture

    # Fewer leave components with a single code, whose covariance is the ridge alone.
    if len(codes) < 2 * components:
        raise DataError(
            f"{len(codes)} images are too few for {components} components: lower --components"
        )
    # In float64: covariances of nearly equal codes lose their digits in float32.
    rows = codes.double().numpy()
    variance = float(rows.var(0).mean())
    if not np.isfinite(variance) or variance <= 0:
        raise DataError(
            "the codes of all images are the same: there is nothing to fit a mixture to"
        )
    # A millionth of the mean variance keeps a component from collapsing onto a single code.
    fitted: Any = GaussianMixture(
        components, reg_covar=1e-6 * variance, max_iter=iterations, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `converged` reports what it warns of
        fitted.fit(rows)
    weights, means, covariances = (
        torch.from_numpy(array) for array in (fitted.weights_, fitted.means_, fitted.covariances_)
    )
    # Cholesky factors are what drawing and densities need, and reg_covar made them exist.
    mixture = Mixture(weights, means, torch.linalg.cholesky(covariances))
    return FittedMixture(
        mixture, float(fitted.lower_bound_), int(fitted.n_iter_), bool(fitted.converged_)
    )


def fit_prior(
    model: Model,
    components: int,
    iterations: int,
    seed: int,
    progress: Progress,
    most: int = MOST_FITTED,
) -> Outcome:
    """Fit a mixture to the codes of a run's training images, at most `most`, drawn at random.

    `udl sample --prior mixture` draws from it, and `udl sample` alone where its images are nearer
    to held-out ones than those of the method's own prior. A code is what `encode` gives: of a VAE
    the mean of its posterior (as in Ghosh et al. 2020, section 4).
    """
    stream, held_out = _streams(model, "fit the mixture to its run")
    origin = model.origin
    if components < 1 or iterations < 1:
        raise UsageError(
            f"--components {components} --turns {iterations}: give at least one of each"
        )
    # Training images: held-out ones test the mixture below.
    codes = _codes(model, stream, most, progress)
    fitted = fit_mixture(codes, components, seed, iterations)
    facts: dict[str, Any] = {
        "weights": origin.weights,
        "images": origin.images,
        "data": origin.data,
        "codes": len(codes),
        "components": components,
        "seed": seed,
        "turns": fitted.iterations,
        "converged": fitted.converged,
        "log_likelihood": fitted.log_likelihood,
    }
    ended = "" if fitted.converged else ", not yet converged: raise --turns"
    said = [
        f"{components} Gaussians over {len(codes):,} codes after {fitted.iterations} iterations"
        f"{ended}"
    ]
    if held_out:
        others = _codes(model, held_out, MOST_FITTED, lambda done, total: None)
        # One Gaussian is fitted by the first iteration; the second only finds that it has
        # converged.
        single = fit_mixture(codes, 1, seed, 2).mixture
        own, floor = (float(one.log_density(others).mean()) for one in (fitted.mixture, single))
        facts |= {"held_out": len(others), "held_out_log_likelihood": own, FLOOR: floor}
        said.append(
            f"{len(others):,} held-out codes: {own:.4g} nats each, under one Gaussian {floor:.4g}"
        )
        # The covariance of fewer images says nothing, and of one there is none.
        if model.method.can("sample") and held_out.records >= Distribution.least:
            facts |= _compared(model, fitted.mixture, held_out)
            said.append(
                f"Fréchet distance of samples to held-out images: {facts['frechet_mixture']:.4g},"
                f" from the method's own prior {facts['frechet_own']:.4g}"
            )
    with writing(origin.folder):
        (origin.folder / PRIOR_FACTS).unlink(missing_ok=True)  # of the mixture before
        # A mixture counts only with its facts, which are removed first and written last: a process
        # that dies between leaves none rather than one of another checkpoint.
        temporary = origin.folder / f".{PRIOR}.writing"
        fitted.mixture.save(temporary)
        temporary.replace(origin.folder / PRIOR)
        files.write_whole(origin.folder / PRIOR_FACTS, json.dumps(facts, indent=1))
    draw = "udl sample RUN" if facts.get("preferred") else "udl sample RUN --prior mixture"
    return outcome(model, [*said, f"draw from it: {draw}"], **facts)


def _compared(model: Model, mixture: Mixture, held_out: Stream) -> dict[str, Any]:
    """How far images from the mixture and from the method's own prior are from held-out ones."""
    count = min(held_out.records, MOST_COMPARED)
    real: list[Tensor] = []
    labels: list[Tensor] = []
    for records in held_out.once(BATCH_IMAGES):
        real.append(descriptor.describe(scaled(records.images)))
        labels.append(torch.from_numpy(records.labels))
        if len(real) * BATCH_IMAGES >= count:
            break
    known, asked = gaussian(torch.cat(real)[:count]), None
    if model.method.conditional:
        asked = torch.cat(labels)[:count].tolist()
    keys = rng.keys(0, count)
    drawn = model.decode(mixture.draw(keys), asked)
    own = model.sample(count, prior="own", labels=asked)
    distances = {
        name: between(*known, *gaussian(descriptor.describe(images)))
        for name, images in (("frechet_mixture", drawn), ("frechet_own", own))
    }
    return distances | {"preferred": distances["frechet_mixture"] < distances["frechet_own"]}


def fit_outliers(model: Model, neighbours: int, progress: Progress) -> Outcome:
    """Store the codes of at most 30,000 training images, and how dense they lie.

    `udl score` then has the local outlier factor of a code (Breunig et al. 2000) among as many
    neighbours.
    """
    stream, _ = _streams(model, "store the codes of its run")
    if neighbours < 1:
        raise UsageError(f"--neighbours {neighbours}: give 1 or more")
    count = min(stream.records, MOST_CODES)
    # A code is not its own neighbour.
    if count <= neighbours:
        raise UsageError(
            f"{count} training images are too few for {neighbours} neighbours: lower --neighbours"
        )
    codes = ReferenceCodes.fit(_codes(model, stream, MOST_CODES, progress), neighbours)
    path = model.origin.folder / CODES
    # The hash of the weights goes into the file: codes of another checkpoint are ignored.
    with writing(model.origin.folder), files.whole_file(path) as file:
        file.write(codes.as_bytes(model.origin.weights))
    said = [
        f"{count:,} codes, {neighbours} neighbours: {path}",
        f"use it: udl score RUN IMAGES --by {OUTLIER_FACTOR}",
    ]
    return outcome(model, said, codes=count, neighbours=neighbours, path=str(path))


def _streams(model: Model, cure: str) -> tuple[Stream, Stream | None]:
    """The images of a run without augmentation; raise UsageError where nothing can be fitted."""
    model.require("encode")
    origin = model.origin
    if origin.experiment is None:
        raise UsageError(f"{origin.folder} is an exported model: {cure}, and export it again")
    if why := sklearn_missing():
        raise UsageError(f"nothing can be fitted to the codes of {origin.folder}: {why}")
    return open_run(origin.experiment)


def _codes(model: Model, stream: Stream, most: int, progress: Progress) -> Tensor:  # [N, Z]
    """The codes of all images, or of `most` of them drawn at random."""
    count = min(stream.records, most)
    codes: list[Tensor] = []
    for records in at_most(stream, most):
        codes.append(model.codes(scaled(records.images)))
        # The last batch may hold fewer.
        progress(min(len(codes) * BATCH_IMAGES, count), count)
    return torch.cat(codes)
