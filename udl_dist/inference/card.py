"""The model card: what a hub shows, and what users of the model must know; data is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from udl_dist import __version__
from udl_dist.evaluation import io
from udl_dist.inference.layout import CROWD, PRIOR
from udl_dist.inference.model import ABILITIES, Model
from udl_dist.runs import environment
from udl_dist.runs.run_folder import RunFolder

MOST_ENVIRONMENTS = 20  # the last ones
FITTED = {
    PRIOR: "is a mixture of Gaussians over the codes of training images",
    CROWD: "holds the codes of training images themselves, to score outliers: "
    "`model.score(images)`, the local outlier factor",
}
PICTURES = {
    "reconstruction.png": "held-out images over their reconstructions",
    "samples.png": "drawn images, and real ones next to them",
}
LIMITS = """\
* It was trained on images of one size and kind; other images are resized to fit them.
* It has learned whatever the data holds: also what is wrong, private or unfair in it.
* The metrics are of the held-out images named above and of no others; no person has judged the
  pictures."""
USES = {
    "encode": "codes = model.encode(images)       "
    "# uint8, floats in [-1, 1] or PIL images -> [N, Z]",
    "reconstruct": "again = model.reconstruct(images)  # [N, C, H, W] in [-1, 1]",
    "sample": "drawn = model.sample(16, seed=0)   # [N, C, H, W] in [-1, 1]",
}


@dataclass(frozen=True)
class DataFacts:
    """What is known of the data: counts and licence in words, empty if it cannot be read."""

    images: str = ""
    held_out: str = ""
    license: str = ""


def text(
    model: Model, license: str, files: Sequence[str], facts: DataFacts, title: str = ""
) -> str:
    """The text of README.md; its title is the name of the run folder unless there is another."""
    pictures = [f"![{PICTURES[name]}]({name})" for name in files if name in PICTURES]
    sections = [
        _front(model, license),
        f"# {plain(title or model.origin.folder.name)}",
        _about(model),
        _use(model, files),
        _data(model, facts),
        _metrics(model, facts),
        _evaluation(model),
        "\n\n".join(["## Pictures", *pictures]) if pictures else "",
        f"## Limits\n\n{LIMITS}",
        _reproduce(model),
        _settings(model),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def plain(text: object) -> str:
    """Text from data or a name, in Markdown: no markup, no control characters, one line."""
    line = _printable(" ".join(str(text).split()))
    escaped = html.escape(line)
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in escaped)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() or letter == "\n" else "�" for letter in text)


def _front(model: Model, license: str) -> str:
    task = "unconditional-image-generation" if model.can("sample") else "image-feature-extraction"
    facts = {
        "license": license,
        "library_name": "udl-dist",
        "pipeline_tag": task,
        "tags": ["udl-dist", model.origin.method, "image", "unsupervised", "safetensors"],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in facts.items()]
    return "\n".join(["---", *lines, "---"])


def _about(model: Model) -> str:
    (channels, height, width), origin = model.shape, model.origin
    averaged = " The weights are a moving average over training." if origin.averaged else ""
    can = ", ".join(name for name in ABILITIES if model.can(name))
    parameters = sum(value.numel() for value in model.method.networks.parameters())
    return (
        f"A model of method `{origin.method}` for images of {height} × {width} pixels in "
        f"{'gray' if channels == 1 else 'colour'}: {parameters:,} parameters, latents of "
        f"{model.latent_dim} numbers, trained on {origin.images:,} images by udl-dist "
        f"{__version__}.{averaged} It can {can}."
    )


def _use(model: Model, files: Sequence[str]) -> str:
    opened = "model = udl_dist.load(FOLDER)    # safetensors and JSON, no pickle"
    lines = ["import udl_dist", "", opened]
    lines += [line for ability, line in USES.items() if model.can(ability)]
    parts = ["## Use", "\n".join(["```python", *lines, "```"])]
    if others := ", ".join(f"`{name}`" for name in files if name.endswith((".onnx", ".pt2"))):
        parts.append(f"For other programs: {others}, images or latents in any number.")
    parts += [f"`{name}` {what}." for name, what in FITTED.items() if name in files]
    return "\n\n".join(parts)


def _data(model: Model, facts: DataFacts) -> str:
    """The data that could be read at the export; without it what the settings say."""
    assert model.origin.experiment
    data = model.origin.experiment.data
    rows = {
        "source": ", ".join(plain(_last(name)) for name in (data.source, *data.more_sources)),
        "images": facts.images,
        "held out": facts.held_out,
        "licence of the images": plain(facts.license),
        "fingerprint": plain(model.origin.data),
        "resized to": f"{data.size} px, {data.fit}",
        "used in training": f"{model.origin.images:,} images",
    }
    return "## Data\n\n" + _table(["", ""], [row for row in rows.items() if row[1]])


def _metrics(model: Model, facts: DataFacts) -> str:
    origin = model.origin
    if not origin.figures:
        return "## Figures\n\nNone: nothing was held out."
    count = f"{origin.held_out:,}" if origin.held_out else facts.held_out
    every = "all " if count == facts.held_out else ""
    protocol = (
        f"Means over {every}{count} held-out images of the data above, after "
        f"{origin.images:,} images of training ({plain(origin.chosen)}), one run."
    )
    rows = [(f"`{name}`", f"{value:.6g}") for name, value in origin.figures.items()]
    return f"## Figures\n\n{protocol}\n\n" + _table(["held-out metric", "value"], rows)


def _evaluation(model: Model) -> str:
    """The metrics of `udl evaluate` with their floors; what their protocols share is said once."""
    metrics = io.metrics_in(model.origin.folder / io.NAME, [])
    if not metrics:
        return ""
    of_all, of_some = io.shared_protocols(metric.protocol for metric in metrics.values())
    parts = ["### Evaluation"]
    if of_all:
        parts.append(f"Protocol of all of these: {_pairs(of_all)}.")
    if of_some:
        parts.append(f"Where it is named: {_pairs(of_some)}.")
    rows = []
    for name, metric in metrics.items():
        own = [
            plain(key) if key in of_some else _pairs({key: value})
            for key, value in metric.protocol.items()
            if key not in of_all
        ]
        protocol = ", ".join(own) or "–"
        rows.append((plain(name), metric.number(), _pairs(metric.floor), protocol))
    parts.append(_table(["metric", "value", "floor", "further protocol"], rows))
    return "\n\n".join(parts)


def _reproduce(model: Model) -> str:
    parts = [
        "## Reproduce",
        "Save the settings below as `job.toml`, let `data.source` name the images, then "
        "`udl train job.toml --run.folder runs/again`.",
    ]
    entries = environment.kept(RunFolder(model.origin.folder).environment)
    if entries:
        lines = [
            f"* From {entry['images']:,} images on: {plain(environment.in_words(entry))}."
            for entry in entries[-MOST_ENVIRONMENTS:]
        ]
        parts += ["It was trained with:", "\n".join(lines)]
    return "\n\n".join(parts)


def _settings(model: Model) -> str:
    """What the weights depend on, without paths and what tells of a machine."""
    assert model.origin.experiment
    every = model.origin.experiment.to_dict()
    tables = {name: dict(every[name]) for name in ("method", "data", "train")}
    data, train = tables["data"], tables["train"]
    for name in ("cache", "storage", "readers"):
        data.pop(name, None)
    for name in ("source", "held_out", "keys"):
        data[name] = _last(data[name])
    data["more_sources"] = [_last(source) for source in data["more_sources"]]
    train["init_from"] = _last(train["init_from"])
    # Text of the settings must not end its own block.
    toml = _printable(tomli_w.dumps(tables)).replace("```", "'''")
    return f"## Settings\n\n```toml\n{toml.rstrip()}\n```"


def _last(source: str) -> str:
    """The last part of a path or an address: where it lies is private."""
    return source.rstrip("/").rsplit("/", 1)[-1].partition("?")[0]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{plain(name)} {plain(value)}" for name, value in values.items()) or "–"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)
