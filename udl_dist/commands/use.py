"""udl sample, reconstruct, traverse, embed, score, evaluate and what they need: what a trained
model is good for.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from udl_dist.commands import Verbs, new_verb, progress, refuse_flags, show, tell
from udl_dist.core import config_schema as settings
from udl_dist.errors import UsageError
from udl_dist.evaluation.settings import FigureSettings
from udl_dist.inference.settings import EmbedSettings, ExtractorSettings

# Names of what is written where nobody says another.
SAMPLES, RECONSTRUCTION, TRAVERSE, SCORES = (
    "samples.png",
    "reconstruction.png",
    "traverse.png",
    "scores",
)


def add(verbs: Verbs) -> None:
    sample = _verb(verbs, "sample", "draw new images", _sample, out=SAMPLES)
    sample.add_argument("--n", type=int, default=64, help="how many (64)")
    sample.add_argument(
        "--prior",
        choices=("auto", "own", "mixture"),
        default="auto",
        help="where latents come from: the method's own, or the mixture of udl fit-prior",
    )

    rebuild = _verb(
        verbs,
        "reconstruct",
        "send images through a model and back",
        _reconstruct,
        "images",
        out=RECONSTRUCTION,
        chance=False,
    )
    rebuild.add_argument("--n", type=int, default=64, help="at most so many of them (64)")

    traverse = _verb(
        verbs,
        "traverse",
        "walk through the latents, or from one image to another",
        _traverse,
        out=TRAVERSE,
    )
    traverse.add_argument(
        "--axes", type=int, default=8, help="latents to walk along, a row each (8)"
    )
    traverse.add_argument("--steps", type=int, default=11, help="images in a row (11)")
    traverse.add_argument("--reach", type=float, default=3.0, help="deviations to either side (3)")
    traverse.add_argument(
        "--image", default="", help="where to start from; without it from the mean latent"
    )
    traverse.add_argument(
        "--from", dest="start", default="", help="interpolate: an image, or seed:N for a drawn one"
    )
    traverse.add_argument("--to", dest="end", default="", help="interpolate: its other end")

    embed = _verb(
        verbs,
        "embed",
        "the latents of all images of a source, with their keys",
        _embed,
        settings=EmbedSettings,
        chance=False,
    )
    embed.add_argument(
        "source", help="a folder of images, shards, IDX files, .npy/.npz or 'digits'"
    )
    embed.add_argument("dest", type=Path, help="the folder to make, or to go on with")

    score = _verb(
        verbs,
        "score",
        "how odd each image is, flagged against held-out ones",
        _score,
        "images",
        out=SCORES,
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
    score.add_argument(
        "--threshold", type=float, help="a score above which an image is flagged, instead"
    )

    evaluate = _verb(
        verbs,
        "evaluate",
        "figures on held-out images, each with its protocol and its floor",
        _evaluate,
        settings=FigureSettings,
        chance=False,
    )
    evaluate.add_argument(
        "--out", type=Path, help="the file to write (evaluation.json in the run folder)"
    )
    evaluate.add_argument(
        "--follow",
        action="store_true",
        help="every checkpoint as it is written, beside the training, until the run has ended",
    )
    evaluate.add_argument(
        "--best", default="", help="with --follow: a figure, whose best checkpoint is kept"
    )

    fit = new_verb(
        verbs,
        "fit-extractor",
        ExtractorSettings,
        help="a small classifier of labelled images, for udl evaluate --extractor",
    )
    fit.add_argument("source", help="labelled shards, IDX files, an .npz or 'digits'")
    fit.add_argument("dest", type=Path, help="the safetensors file to write")
    fit.set_defaults(act=_fit_extractor)

    prior = _verb(
        verbs, "fit-prior", "a mixture of Gaussians over a run's codes, to sample from", _fit_prior
    )
    prior.add_argument("--components", type=int, default=10, help="Gaussians (10)")
    prior.add_argument(
        "--turns", type=int, default=200, help="at most so many over all codes (200)"
    )

    outliers = _verb(
        verbs,
        "fit-outliers",
        "codes of training images, to tell outliers by",
        _fit_outliers,
        chance=False,
    )
    outliers.add_argument(
        "--neighbours", type=int, default=10, help="of a code, that its density is told by (10)"
    )


def _verb(
    verbs: Verbs,
    name: str,
    help: str,
    act: Any,
    images: str = "",
    out: str = "",
    settings: type | None = None,
    chance: bool = True,
) -> argparse.ArgumentParser:
    """A verb that takes a model, and perhaps images and a place for what it makes."""
    verb = new_verb(verbs, name, settings, help=help)
    verb.add_argument("model", metavar="RUN", help="a run folder or an exported model")
    if images:
        verb.add_argument(
            "images",
            nargs="+",
            metavar="IMAGES",
            help="image files, a folder of them, shards, IDX files, .npy or 'digits'",
        )
    if out:
        verb.add_argument("--out", type=Path, help=f"where to write it ({out} in the run folder)")
    if chance:
        verb.add_argument("--seed", type=int, default=0, help="where chance comes from (0)")
    verb.add_argument("--device", default="cpu", help="cpu, cuda or auto (cpu)")
    verb.add_argument(
        "--checkpoint", default="best", help="of a run: best, last, or a number of images (best)"
    )
    verb.set_defaults(act=act)
    return verb


def _model(asked: argparse.Namespace, flags: dict[str, str]) -> Any:
    """The model that was asked for; most of these verbs know no settings beside their own flags."""
    refuse_flags(flags, asked.act.__name__.strip("_").replace("_", "-"))
    from udl_dist.inference.model import load

    return load(asked.model, asked.device, asked.checkpoint)


def _out(model: Any, asked: argparse.Namespace, name: str) -> Path:
    """Where to write: as asked, else into the run folder; an exported model is left as it is, so
    the folder here.
    """
    if asked.out is not None:
        return Path(asked.out)
    return Path(model.origin.folder if model.origin.experiment else "") / name


def _sample(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.inference import drawing

    model = _model(asked, flags)
    done = drawing.sample(model, asked.n, asked.seed, asked.prior, _out(model, asked, SAMPLES))
    show(done.lines(), done.as_dict(), asked.json)
    return 0


def _reconstruct(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.inference import drawing

    model = _model(asked, flags)
    done = drawing.reconstruct(model, asked.images, asked.n, _out(model, asked, RECONSTRUCTION))
    show(done.lines(), done.as_dict(), asked.json)
    return 0


def _traverse(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.inference import drawing

    model = _model(asked, flags)
    if bool(asked.start) != bool(asked.end):
        raise UsageError("an interpolation has two ends: give both --from and --to")
    out = _out(model, asked, TRAVERSE)
    if asked.start:
        done = drawing.interpolate(model, asked.start, asked.end, asked.steps, asked.seed, out)
    else:
        done = drawing.traverse(
            model, asked.axes, asked.steps, asked.reach, asked.image, asked.seed, out
        )
    show(done.lines(), done.as_dict(), asked.json)
    return 0


def _embed(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.inference import embedding

    wanted = settings.from_flags(EmbedSettings, flags)
    done = embedding.embed(
        _model(asked, {}), asked.source, asked.dest, wanted, progress("embedding")
    )
    show(done.lines(), done.as_dict(), asked.json)
    return 0


def _score(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.inference import scoring

    model = _model(asked, flags)
    out = _out(model, asked, SCORES)
    done = scoring.score(
        model, asked.images, asked.by, asked.quantile, asked.threshold, asked.seed, out
    )
    show(done.lines(), done.as_dict(), asked.json)
    return 0


def _evaluate(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.inference import evaluating, following

    wanted, bar = settings.from_flags(FigureSettings, flags), progress("evaluating", "parts")
    if asked.follow:
        if asked.out or asked.checkpoint != "best":
            raise UsageError(
                "--follow measures every checkpoint into the run folder: leave --out and"
                " --checkpoint out"
            )
        done = following.follow(asked.model, asked.device, wanted, asked.best, bar, tell)
    elif asked.best:
        raise UsageError("--best chooses among checkpoints that --follow measures: give both")
    else:
        done = evaluating.evaluate(_model(asked, {}), wanted, asked.out, bar)
    show(done.lines(), done.as_dict(), asked.json)
    return 0


def _fit_extractor(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.inference import extracting

    wanted = settings.from_flags(ExtractorSettings, flags)
    done = extracting.fit_extractor(asked.source, asked.dest, wanted, progress("fitting", "steps"))
    show(done.lines(), done.as_dict(), asked.json)
    return 0


def _fit_prior(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.inference import fitting

    model = _model(asked, flags)
    done = fitting.fit_prior(model, asked.components, asked.turns, asked.seed, progress("encoding"))
    show(done.lines(), done.as_dict(), asked.json)
    return 0


def _fit_outliers(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.inference import outliers

    done = outliers.fit_outliers(_model(asked, flags), asked.neighbours, progress("encoding"))
    show(done.lines(), done.as_dict(), asked.json)
    return 0
