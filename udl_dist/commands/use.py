"""udl sample, reconstruct, traverse, embed, score and evaluate: a trained model in use."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_dist.commands import Verbs, acting, new_verb, progress, tell
from udl_dist.errors import UsageError
from udl_dist.evaluation.settings import EmbedSettings, MetricSettings

# What --out defaults to, in the run folder.
SAMPLES, RECONSTRUCTION = "samples.png", "reconstruction.png"
TRAVERSE, SCORES = "traverse.png", "scores"


@dataclass(frozen=True)
class VerbOptions:
    """Which of the common arguments a verb takes."""

    settings: type | None = None  # declared settings that are its flags
    images: bool = False
    out: str = ""  # where it writes by default, if it takes --out
    seed: bool = False
    label: bool = False  # whether it makes images of a class, in a conditional model


def add(verbs: Verbs) -> None:
    """Add the parsers of these verbs."""
    drawn = VerbOptions(out=SAMPLES, seed=True, label=True)
    sample = model_verb(verbs, "sample", "draw new images", _sample, drawn)
    sample.add_argument("--n", type=int, default=64, help="how many (64)")
    sample.add_argument(
        "--prior",
        choices=("auto", "own", "mixture"),
        default="auto",
        help="of latents: the method's own, or the mixture of udl fit-prior",
    )
    rebuild = model_verb(
        verbs,
        "reconstruct",
        "send images through a model and back",
        _reconstruct,
        VerbOptions(images=True, out=RECONSTRUCTION, label=True),
    )
    rebuild.add_argument("--n", type=int, default=64, help="most images (64)")
    walk = model_verb(
        verbs,
        "traverse",
        "walk through the latents, or from one image to another",
        _traverse,
        VerbOptions(out=TRAVERSE, seed=True, label=True),
    )
    walk.add_argument("--axes", type=int, default=8, help="latents to walk along, a row each (8)")
    walk.add_argument("--steps", type=int, default=11, help="images in a row (11)")
    walk.add_argument("--reach", type=float, default=3.0, help="std to either side (3)")
    walk.add_argument("--image", default="", help="where to start from (the mean latent)")
    walk.add_argument(
        "--from",
        # `from` is a keyword of Python.
        dest="start",
        default="",
        help="interpolate: an image, or seed:N for a drawn one",
    )
    walk.add_argument("--to", dest="end", default="", help="interpolate: its other end")
    embed = model_verb(
        verbs,
        "embed",
        "the latents of all images of a source, with their keys",
        _embed,
        VerbOptions(EmbedSettings),
    )
    embed.add_argument(
        "source", help="a folder of images, shards, IDX files, .npy/.npz or 'digits'"
    )
    embed.add_argument("dest", type=Path, help="the folder to make, or to go on with")
    _add_scores(verbs)


def _add_scores(verbs: Verbs) -> None:
    score = model_verb(
        verbs,
        "score",
        "an anomaly score of each image, flagged against held-out ones",
        _score,
        VerbOptions(images=True, out=SCORES, seed=True),
    )
    score.add_argument(
        "--by",
        default="auto",
        help="reconstruction, the method's bound, code_outlier_factor; auto: its last",
    )
    score.add_argument(
        "--quantile",
        type=float,
        default=0.99,
        help="part of the run's held-out images that is not flagged (0.99)",
    )
    score.add_argument("--threshold", type=float, help="a score above which images are flagged")
    evaluate = model_verb(
        verbs,
        "evaluate",
        "metrics on held-out images, each with its protocol and its floor",
        _evaluate,
        VerbOptions(MetricSettings),
    )
    evaluate.add_argument("--out", type=Path, help="the file (evaluation.json in the run folder)")
    evaluate.add_argument(
        "--follow",
        action="store_true",
        help="every checkpoint as it is written, during training, until the run has ended",
    )
    evaluate.add_argument(
        "--best", default="", help="with --follow: a metric, whose best checkpoint is copied"
    )


def model_verb(
    verbs: Verbs, name: str, about: str, use: Any, options: VerbOptions
) -> argparse.ArgumentParser:
    """A verb that takes a model, and what `options` say."""
    verb = new_verb(verbs, name, options.settings, help=about)
    verb.add_argument("model", metavar="RUN", help="a run folder or an exported model")
    if options.images:
        verb.add_argument(
            "images",
            nargs="+",
            metavar="IMAGES",
            help="image files, a folder of them, shards, IDX files, .npy or 'digits'",
        )
    if options.out:
        verb.add_argument(
            "--out", type=Path, help=f"where to write ({options.out} in the run folder)"
        )
    if options.seed:
        verb.add_argument("--seed", type=int, default=0, help="of random numbers (0)")
    if options.label:
        verb.add_argument(
            "--label", metavar="NAME", default="", help="of a conditional model: the class"
        )
    verb.add_argument("--device", default="cpu", help="cpu, cuda or auto (cpu)")
    verb.add_argument(
        "--checkpoint", default="best", help="of a run: best, last, or a number of images (best)"
    )
    verb.set_defaults(act=acting(name, use, options.settings))
    return verb


def load_model(asked: argparse.Namespace) -> Any:
    # Imports torch (1.5 s), so only where a model is opened.
    from udl_dist.inference.model import load

    return load(asked.model, asked.device, asked.checkpoint)


def _out(model: Any, asked: argparse.Namespace, name: str) -> Path:
    """--out, else the run folder; an exported model is not changed, so the working directory."""
    if asked.out is not None:
        return Path(asked.out)
    # A run folder is ours to write into; an exported one is verified by sha256 and stays as it is.
    return Path(model.origin.folder if model.origin.experiment else "") / name


def _sample(asked: argparse.Namespace, _: None) -> Any:
    from udl_dist.inference import drawing

    model = load_model(asked)
    draw = drawing.Draw(asked.n, asked.seed, asked.prior, asked.label)
    return drawing.sample(model, draw, _out(model, asked, SAMPLES))


def _reconstruct(asked: argparse.Namespace, _: None) -> Any:
    from udl_dist.inference import drawing

    model = load_model(asked)
    out = _out(model, asked, RECONSTRUCTION)
    return drawing.reconstruct(model, asked.images, asked.n, out, asked.label)


def _traverse(asked: argparse.Namespace, _: None) -> Any:
    from udl_dist.inference import drawing

    model = load_model(asked)
    # With one end alone the other options of the verb would apply, and it would be ignored.
    if bool(asked.start) != bool(asked.end):
        raise UsageError("an interpolation has two ends: give both --from and --to")
    out, seed = _out(model, asked, TRAVERSE), asked.seed
    walk = drawing.Walk(asked.axes, asked.steps, asked.reach, asked.label)
    if asked.start:
        return drawing.interpolate(model, (asked.start, asked.end), walk, seed, out)
    return drawing.traverse(model, walk, asked.image, seed, out)


def _embed(asked: argparse.Namespace, wanted: EmbedSettings) -> Any:
    from udl_dist.inference import embedding

    bar = progress("embedding")
    return embedding.embed(load_model(asked), asked.source, asked.dest, wanted, bar)


def _score(asked: argparse.Namespace, _: None) -> Any:
    from udl_dist.inference import scoring

    model = load_model(asked)
    threshold = scoring.Threshold(asked.quantile, asked.threshold)
    out = _out(model, asked, SCORES)
    return scoring.score(model, asked.images, asked.by, threshold, asked.seed, out)


def _evaluate(asked: argparse.Namespace, wanted: MetricSettings) -> Any:
    from udl_dist.inference import evaluating, following

    # Parts, not images: the passes over training and held-out images have different lengths.
    bar = progress("evaluating", "parts")
    if not asked.follow:
        if asked.best:
            # An option without effect is an error, here and below.
            raise UsageError("--best chooses among checkpoints that --follow measures: give both")
        return evaluating.evaluate(load_model(asked), wanted, asked.out, bar)
    if asked.out or asked.checkpoint != "best":
        raise UsageError(
            "--follow measures every checkpoint into the run folder: leave --out and --checkpoint "
            "out"
        )
    return following.follow(asked.model, asked.device, wanted, asked.best, bar, tell)
