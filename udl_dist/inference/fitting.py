"""`udl fit-prior`: a run's images to codes in a file, a mixture fitted to them, kept in the run
folder.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from udl_dist.core import files
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.loader.reader import Stream
from udl_dist.data.packing.prepare import prepare
from udl_dist.errors import UsageError
from udl_dist.inference import mixture
from udl_dist.inference.inputs import scaled
from udl_dist.inference.layout import PRIOR
from udl_dist.inference.loading import PRIOR_FACTS
from udl_dist.inference.model import BATCH_IMAGES, Model
from udl_dist.inference.outcome import Outcome, outcome, writing

FLOOR = "held_out_log_likelihood_one_gaussian"
Progress = Callable[[int, int], None]


def fit_prior(model: Model, components: int, turns: int, seed: int, progress: Progress) -> Outcome:
    """Fit a mixture to the codes of the run's training images; `udl sample --prior mixture` draws
    from it.

    A code is what `encode` gives: of a VAE the mean of its posterior (as in Ghosh et al. 2020,
    section 4).
    """
    model.require("encode")
    origin = model.origin
    if origin.experiment is None:
        raise UsageError(
            f"{origin.folder} is an exported model: fit the mixture to its run, and export it again"
        )
    if components < 1 or turns < 1:
        raise UsageError(f"--components {components} --turns {turns}: give at least one of each")
    stream, held_out = open_streams(prepare(origin.experiment.data), origin.experiment.train.seed)
    with (
        writing(origin.folder),
        tempfile.TemporaryDirectory(prefix=".codes-", dir=origin.folder) as place,
    ):
        codes = _codes(model, stream, Path(place) / "codes", progress)
        fitted = mixture.fit(codes, components, seed, turns)
        single = mixture.fit(codes, 1, seed, 2).mixture
        facts: dict[str, Any] = {
            "weights": origin.weights,
            "images": origin.images,
            "data": origin.data,
            "codes": len(codes),
            "components": components,
            "seed": seed,
            "turns": fitted.turns,
            "converged": fitted.converged,
            "log_likelihood": fitted.log_likelihood,
        }
        if held_out:
            others = _codes(model, held_out, Path(place) / "held_out", lambda done, total: None)
            facts |= {"held_out": len(others)} | {
                name: mixture.mean_log_density(one, others)
                for name, one in (("held_out_log_likelihood", fitted.mixture), (FLOOR, single))
            }
        kept = Path(place) / PRIOR
        fitted.mixture.save(kept)
        (origin.folder / PRIOR_FACTS).unlink(missing_ok=True)  # of the one before
        kept.replace(origin.folder / PRIOR)
        files.write_whole(origin.folder / PRIOR_FACTS, json.dumps(facts, indent=1))
    return outcome(model, _said(facts), **facts)


def _codes(
    model: Model, stream: Stream, path: Path, progress: Progress
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The codes of every image once, in a file that is mapped: however many there are, they take no
    memory.
    """
    codes: np.ndarray[Any, np.dtype[np.float32]] = np.memmap(
        path, np.float32, "w+", shape=(stream.records, model.latent_dim)
    )
    done = 0
    for records in stream.once(BATCH_IMAGES):
        codes[done : done + len(records.images)] = model.encode(scaled(records.images)).numpy()
        done += len(records.images)
        progress(done, stream.records)
    return codes


def _said(facts: dict[str, Any]) -> list[str]:
    ended = "" if facts["converged"] else ", not yet settled: raise --turns"
    lines = [
        f"{facts['components']} Gaussians over {facts['codes']:,} codes after {facts['turns']}"
        f" turns{ended}"
    ]
    if "held_out" in facts:
        lines.append(
            f"{facts['held_out']:,} held-out codes: {facts['held_out_log_likelihood']:.4g} nats"
            f" each, under one Gaussian {facts[FLOOR]:.4g}"
        )
    return [*lines, "draw from it: udl sample RUN --prior mixture"]
