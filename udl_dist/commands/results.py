"""udl export, compare and report: results for others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from udl_dist.commands import Verbs, new_verb, tell
from udl_dist.commands.use import acting


def add(verbs: Verbs) -> None:
    """Add the parsers of these verbs."""
    export = new_verb(
        verbs, "export", help="a trained model as a folder: safetensors, configuration, card"
    )
    export.add_argument("run", help="a run folder")
    export.add_argument("dest", type=Path, help="the folder to make")
    export.add_argument(
        "--checkpoint", default="best", help="best, last, or a number of images (best)"
    )
    export.add_argument("--onnx", action="store_true", help="also as ONNX")
    export.add_argument("--torch-export", action="store_true", help="also as .pt2, by torch.export")
    export.add_argument(
        "--license", default="other", help="of the model, as a hub names it: apache-2.0 (other)"
    )
    export.set_defaults(act=acting("export", _export))

    compare = new_verb(
        verbs, "compare", help="what differs between runs, their metrics and curves side by side"
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="two run folders or more")
    compare.add_argument(
        "--out",
        type=Path,
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


def _export(asked: argparse.Namespace, _: None) -> Any:
    from udl_dist.inference.export import ExportSettings, export
    from udl_dist.inference.model import load

    wanted = ExportSettings(asked.onnx, asked.torch_export, asked.license)
    return export(load(asked.run, "cpu", asked.checkpoint), asked.dest, wanted)


def _compare(asked: argparse.Namespace, _: None) -> Any:
    from udl_dist.reporting.compare import compare

    return compare(asked.runs, asked.out)


def _report(asked: argparse.Namespace, _: None) -> Any:
    from udl_dist.reporting.report import follow, report

    return follow(asked.run, asked.out, tell) if asked.follow else report(asked.run, asked.out)
