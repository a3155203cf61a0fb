"""udl fit-prior, fit-outliers and fit-extractor; export, compare and report: after a training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from udl_dist.commands import Verbs, acting, new_verb, progress, tell
from udl_dist.commands.use import VerbOptions, load_model, model_verb
from udl_dist.evaluation.settings import ExtractorSettings


def add(verbs: Verbs) -> None:
    """Add the parsers of these verbs."""
    _add_fits(verbs)
    export = new_verb(
        verbs, "export", help="a trained model as a folder: safetensors, configuration, card"
    )
    export.add_argument("run", help="a run folder")
    export.add_argument("dest", type=Path, help="the folder to make")
    export.add_argument(
        "--checkpoint", default="best", help="best, last, or a number of images (best)"
    )
    export.add_argument(
        "--format",
        choices=("udl", "diffusers"),
        default="udl",
        help="of the folder: udl, or what from_pretrained of diffusers loads (udl)",
    )
    export.add_argument("--onnx", action="store_true", help="also as ONNX")
    export.add_argument("--torch-export", action="store_true", help="also as .pt2, by torch.export")
    export.add_argument(
        # Hubs take identifiers of their own list; `other` is valid and promises nothing.
        "--license",
        default="other",
        help="of the model, as a hub names it: apache-2.0 (other)",
    )
    export.set_defaults(act=acting("export", _export))

    compare = new_verb(
        verbs, "compare", help="what differs between runs, their metrics and curves side by side"
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="two run folders or more")
    compare.add_argument(
        "--out",
        type=Path,
        # In the working directory, since it belongs to no single run.
        default=Path("compared.png"),
        help="the picture of curves (compared.png)",
    )
    compare.set_defaults(act=acting("compare", _compare))

    report = new_verb(
        verbs,
        "report",
        help="one page about a run or a search: metrics, curves, pictures, settings",
    )
    report.add_argument("run", help="a run folder, or that of a search")
    report.add_argument("--out", type=Path, help="the file to write (report.html in that folder)")
    report.add_argument(
        "--follow",
        action="store_true",
        help="write it again and again while the run or search is at work",
    )
    report.set_defaults(act=acting("report", _report))


def _add_fits(verbs: Verbs) -> None:
    prior = model_verb(
        verbs,
        "fit-prior",
        "a mixture of Gaussians over a run's codes, to sample from",
        _fit_prior,
        VerbOptions(seed=True),
    )
    prior.add_argument("--components", type=int, default=10, help="Gaussians (10)")
    # The name of the first releases, which scripts use.
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


def _export(asked: argparse.Namespace, _: None) -> Any:
    from udl_dist.inference.export import ExportSettings, export
    from udl_dist.inference.model import load

    wanted = ExportSettings(asked.onnx, asked.torch_export, asked.license, format=asked.format)
    # An export is always made on the CPU: its files must open everywhere.
    return export(load(asked.run, "cpu", asked.checkpoint), asked.dest, wanted)


def _compare(asked: argparse.Namespace, _: None) -> Any:
    from udl_dist.reporting.compare import compare

    return compare(asked.runs, asked.out)


def _report(asked: argparse.Namespace, _: None) -> Any:
    from udl_dist.reporting.report import follow, report

    return follow(asked.run, asked.out, tell) if asked.follow else report(asked.run, asked.out)
