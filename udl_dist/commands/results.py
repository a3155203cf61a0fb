"""udl export, compare and report: what is handed to others."""

from __future__ import annotations

import argparse
from pathlib import Path

from udl_dist.commands import Verbs, new_verb, refuse_flags, show, tell


def add(verbs: Verbs) -> None:
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
    export.set_defaults(act=_export)

    compare = new_verb(
        verbs, "compare", help="what differs between runs, their figures and curves side by side"
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="two run folders or more")
    compare.add_argument(
        "--out", type=Path, default=Path("compared.png"), help="where curves go (compared.png)"
    )
    compare.set_defaults(act=_compare)

    report = new_verb(
        verbs,
        "report",
        help="one page about a run or a search: figures, curves, pictures, settings",
    )
    report.add_argument("run", help="a run folder, or that of a search")
    report.add_argument("--out", type=Path, help="the file to write (report.html in that folder)")
    report.add_argument(
        "--follow", action="store_true", help="write it anew while the run or search is at work"
    )
    report.set_defaults(act=_report)


def _export(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.inference.export import ExportSettings, export
    from udl_dist.inference.model import load

    refuse_flags(flags, "export")
    wanted = ExportSettings(asked.onnx, asked.torch_export, asked.license)
    done = export(load(asked.run, "cpu", asked.checkpoint), asked.dest, wanted)
    show(done.lines(), done.as_dict(), asked.json)
    return 0


def _compare(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.reporting.compare import compare

    refuse_flags(flags, "compare")
    compared = compare(asked.runs, asked.out)
    show(compared.lines(), compared.as_dict(), asked.json)
    return 0


def _report(asked: argparse.Namespace, flags: dict[str, str]) -> int:
    from udl_dist.reporting.report import follow, report

    refuse_flags(flags, "report")
    done = follow(asked.run, asked.out, tell) if asked.follow else report(asked.run, asked.out)
    show(done.lines(), done.as_dict(), asked.json)
    return 0
