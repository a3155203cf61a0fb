"""The model card: what a hub shows, and what whoever takes the model has to know. Everything from
data is escaped.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from udl_dist import __version__, account
from udl_dist.account import Account
from udl_dist.evaluation.written import shared_protocols
from udl_dist.models.layout import CROWD, PRIOR
from udl_dist.models.model import Model

FITTED = {
    PRIOR: "is a mixture of Gaussians over the codes of training images",
    CROWD: (
        "holds the codes of training images themselves, to tell what lies outside of them: "
        "`model.score(images)`, the local outlier factor"
    ),
}
LIMITS = """\
* It was trained on images of one size and kind; images that differ from them are squeezed into what it knows.
* It has learned whatever the data holds: also what is wrong, private or unfair in it.
* The figures are of the held-out images named above and of no others; no person has judged the pictures.
"""


@dataclass(frozen=True)
class Seen:
    """What is known of the data: counts and licence in words, empty where the data cannot be
    read.
    """

    images: str = ""
    held_out: str = ""
    license: str = ""


def written(model: Model, license: str, files: Sequence[str], seen: Seen, title: str = "") -> str:
    """The text of README.md; its title is the name of the run folder unless there is another."""
    title, limits = (
        f"# {plain(title or model.origin.folder.name)}",
        "## Limits\n\n" + LIMITS.rstrip(),
    )
    parts = [_front(model, license), title, _about(model), _use(model, files), _data(model, seen)]
    about = account.read(model.origin.folder)
    parts += [
        _figures(model, seen, about),
        _evaluation(about),
        _pictures(files),
        limits,
        _reproduce(about),
    ]
    parts.append(_settings(model))
    return "\n\n".join(part for part in parts if part) + "\n"


def plain(text: object) -> str:
    """Text that came from data or a name, in Markdown: no markup, no control characters, one
    line.
    """
    printable = "".join(
        letter if letter.isprintable() else "�" for letter in " ".join(str(text).split())
    )
    return "".join(
        f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in html.escape(printable)
    )


def _front(model: Model, license: str) -> str:
    task = "unconditional-image-generation" if model.can("sample") else "image-feature-extraction"
    facts = {
        "license": license,
        "library_name": "udl-dist",
        "pipeline_tag": task,
        "tags": ["udl-dist", model.origin.method, "image", "unsupervised", "safetensors"],
    }
    return "\n".join(
        ["---", *(f"{name}: {json.dumps(value)}" for name, value in facts.items()), "---"]
    )


def _about(model: Model) -> str:
    channels, height, width = model.shape
    averaged = " The weights are a moving average over training." if model.origin.averaged else ""
    can = ", ".join(
        name for name in ("encode", "decode", "reconstruct", "sample", "score") if model.can(name)
    )
    parameters = sum(value.numel() for value in model.method.networks.parameters())
    return (
        f"A model of method `{model.origin.method}` for images of {height} × {width} pixels in"
        f" {'gray' if channels == 1 else 'colour'}: {parameters:,} parameters, latents of"
        f" {model.latent_dim} numbers, trained on {model.origin.images:,} images by udl-dist"
        f" {__version__}.{averaged} It can {can}."
    )


def _use(model: Model, files: Sequence[str]) -> str:
    lines = [
        "import udl_dist",
        "",
        "model = udl_dist.load(FOLDER)    # safetensors and JSON, no pickle",
    ]
    if model.can("encode"):
        lines.append(
            "codes = model.encode(images)       # uint8, floats in [-1, 1] or PIL images -> [N, Z]"
        )
    if model.can("reconstruct"):
        lines.append("again = model.reconstruct(images)  # [N, C, H, W] in [-1, 1]")
    if model.can("sample"):
        lines.append("drawn = model.sample(16, seed=0)   # [N, C, H, W] in [-1, 1]")
    others = [name for name in files if name.endswith((".onnx", ".pt2"))]
    more = (
        f"\n\nFor other programs: {', '.join(f'`{name}`' for name in others)}, images or latents in"
        " any number."
    )
    kept = "".join(f"\n\n`{name}` {what}." for name, what in FITTED.items() if name in files)
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```" + more * bool(others) + kept


def _data(model: Model, seen: Seen) -> str:
    """The data that could be read at the time of the export; without it what the settings say."""
    experiment = model.origin.experiment
    assert experiment
    data = experiment.data
    rows = [
        ("source", ", ".join(plain(_last(source)) for source in (data.source, *data.more_sources))),
        ("images", seen.images),
        ("held out", seen.held_out),
        ("licence of the images", plain(seen.license)),
        ("fingerprint", plain(model.origin.data)),
        ("brought to", f"{data.size} px, {data.fit}"),
        ("seen in training", f"{model.origin.images:,} images"),
    ]
    return "## Data\n\n" + _table(("", ""), [row for row in rows if row[1]])


def _figures(model: Model, seen: Seen, about: Account) -> str:
    if not model.origin.figures:
        return "## Figures\n\nNone: nothing was held out."
    rows = [(f"`{name}`", f"{value:.6g}") for name, value in model.origin.figures.items()]
    count = f"{about.held_out_images:,}" if about.held_out_images else seen.held_out
    held_out = " ".join(filter(None, ["all" * (count == seen.held_out), count, "held-out"]))
    protocol = (
        f"Means over {held_out} images of the data above, after {model.origin.images:,} images of"
        f" training ({plain(model.origin.chosen)}), one run."
    )
    return f"## Figures\n\n{protocol}\n\n" + _table(("held-out figure", "value"), rows)


def _evaluation(about: Account) -> str:
    """The figures of `udl evaluate`, each with what stands beside it; what their protocols share is
    said once.
    """
    figures = about.evaluation
    if not figures:
        return ""
    of_all, of_some = shared_protocols(figure.protocol for figure in figures.values())
    said = [f"Protocol of all of these: {_pairs(of_all)}."] * bool(of_all)
    said += [f"Where it is named: {_pairs(of_some)}."] * bool(of_some)
    rows = ["| figure | value | beside it | further protocol |", "|---|---|---|---|"]
    for name, figure in figures.items():
        spread = f" ± {figure.deviation:.3g}" if figure.deviation is not None else ""
        own = [
            plain(key) if key in of_some else _pairs({key: value})
            for key, value in figure.protocol.items()
            if key not in of_all
        ]
        rows.append(
            f"| {plain(name)} | {figure.value:.6g}{spread} | {_pairs(figure.floor)} |"
            f" {', '.join(own) or '–'} |"
        )
    return "\n\n".join(["### Evaluation", *said, "\n".join(rows)])


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{plain(name)} {plain(value)}" for name, value in values.items()) or "–"


def _pictures(files: Iterable[str]) -> str:
    about = {
        "reconstruction.png": "held-out images over their reconstructions",
        "samples.png": "drawn images, and real ones beside them",
    }
    shown = [f"![{about[name]}]({name})" for name in files if name in about]
    return "## Pictures\n\n" + "\n\n".join(shown) if shown else ""


def _reproduce(about: Account) -> str:
    trained = [
        f"* From {images:,} images on: {plain(words)}." for images, words in about.environments
    ]
    return (
        "## Reproduce\n\nSave the settings below as `job.toml`, let `data.source` name the images,"
        " then `udl train job.toml --run.folder runs/again`."
        + "\n\nIt was trained with:\n\n" * bool(trained)
        + "\n".join(trained)
    )


def _settings(model: Model) -> str:
    """What the weights depend on; what tells of somebody's machine stays there."""
    assert model.origin.experiment
    tables = model.origin.experiment.to_dict()
    told = {name: tables[name] for name in ("method", "data", "train")}
    told["data"] = {
        name: value
        for name, value in told["data"].items()
        if name not in ("cache", "storage", "readers")
    }
    for name in ("source", "held_out", "keys"):
        told["data"][name] = _last(told["data"][name])
    told["train"]["init_from"] = _last(told["train"]["init_from"])
    told["data"]["more_sources"] = [_last(source) for source in told["data"]["more_sources"]]
    return "## Settings\n\n```toml\n" + _shown(tomli_w.dumps(told)).rstrip() + "\n```"


def _last(source: str) -> str:
    """The last part of a path or an address: where it lies is nobody else's business."""
    return source.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]


def _shown(toml: str) -> str:
    """TOML that cannot end its own block."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else "�" for letter in toml
    ).replace("```", "'''")


def _table(head: tuple[str, str], rows: Iterable[tuple[str, Any]]) -> str:
    return "\n".join(
        [
            f"| {head[0]} | {head[1]} |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
        ]
    )
