"""udl fit-prior, fit-outliers and fit-extractor: what is fitted after training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from udl_dist.commands import Verbs, new_verb, progress
from udl_dist.commands.use import VerbOptions, acting, load_model, model_verb
from udl_dist.inference.settings import ExtractorSettings


def add(verbs: Verbs) -> None:
    """Add the parsers of these verbs."""
    prior = model_verb(
        verbs,
        "fit-prior",
        "a mixture of Gaussians over a run's codes, to sample from",
        _fit_prior,
        VerbOptions(seed=True),
    )
    prior.add_argument("--components", type=int, default=10, help="Gaussians (10)")
    prior.add_argument("--turns", type=int, default=200, help="most iterations (200)")
    outliers = model_verb(
        verbs,
        "fit-outliers",
        "reference codes of training images, to score outliers",
        _fit_outliers,
        VerbOptions(),
    )
    outliers.add_argument(
        "--neighbours", type=int, default=10, help="of a code, for its density (10)"
    )
    fit = new_verb(
        verbs,
        "fit-extractor",
        ExtractorSettings,
        help="a small classifier of labelled images, for udl evaluate --extractor",
    )
    fit.add_argument("source", help="labelled shards, IDX files, an .npz or 'digits'")
    fit.add_argument("dest", type=Path, help="the safetensors file to write")
    fit.set_defaults(act=acting("fit-extractor", _fit_extractor, ExtractorSettings))


def _fit_extractor(asked: argparse.Namespace, wanted: ExtractorSettings) -> Any:
    from udl_dist.inference import extractor_fitting

    bar = progress("fitting", "steps")
    return extractor_fitting.fit_extractor(asked.source, asked.dest, wanted, bar)


def _fit_prior(asked: argparse.Namespace, _: None) -> Any:
    from udl_dist.inference import fitting

    model, bar = load_model(asked), progress("encoding")
    return fitting.fit_prior(model, asked.components, asked.turns, asked.seed, bar)


def _fit_outliers(asked: argparse.Namespace, _: None) -> Any:
    from udl_dist.inference import fitting

    return fitting.fit_outliers(load_model(asked), asked.neighbours, progress("encoding"))
