"""The model card, README.md: `card.md.jinja` filled in; what comes from data is escaped."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from udl_dist import __version__
from udl_dist.evaluation import io
from udl_dist.inference.model import ABILITIES, Model
from udl_dist.methods.networks.hub import HubLayout
from udl_dist.runs import environment
from udl_dist.runs.run_folder import RunFolder


@dataclass(frozen=True)
class DataFacts:
    """What is known of the data: counts and licence in words, empty if it cannot be read."""

    images: str = ""
    held_out: str = ""
    license: str = ""


@dataclass(frozen=True)
class HubFacts:
    """What a card says of a folder of diffusers."""

    layout: HubLayout
    latents: str  # their statistics in words, or why there are none; "" for a class without


def text(
    model: Model,
    license: str,
    files: Sequence[str],
    facts: DataFacts,
    title: str = "",
    hub: HubFacts | None = None,  # None: the folder is our own
) -> str:
    """The text of the card; its title is the name of the run folder unless there is another."""
    # Only an export needs it: udl_dist.load works with torch, NumPy and safetensors alone.
    import jinja2

    template = jinja2.Environment(
        # A value that the template misspells is an error, not a gap in a published card.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    template.filters |= {
        "plain": plain,
        "pairs": lambda values: io.pairs(values, plain),
        "json": json.dumps,
        "count": lambda number: f"{number:,}",
        "environment": environment.in_words,
    }
    origin = model.origin
    # A card has what is valid; `udl report` is where damage is named.
    metrics = io.metrics_in(origin.folder / io.NAME, [])
    # What metrics have in common is said once, above their table.
    of_all, of_some = io.shared_protocols(metric.protocol for metric in metrics.values())
    entries = environment.recorded(RunFolder(origin.folder).environment)
    return template.from_string(Path(__file__).with_suffix(".md.jinja").read_text("utf-8")).render(
        model=model,
        origin=origin,
        license=license,
        hub=hub,
        title=title or origin.folder.name,
        parameters=sum(
            value.numel()
            for name, value in model.method.named_parameters()
            # Those of an adversary are not in a folder of diffusers.
            if not hub or name in hub.layout.names.values()
        ),
        version=__version__,
        abilities=[name for name in ABILITIES if model.can(name)],
        files=files,
        # For programs other than ours: the card explains how they are used.
        others=[name for name in files if name.endswith((".onnx", ".pt2"))],
        facts=facts,
        data=_data(model, facts),
        # The number behind the metrics of the checkpoint, not how many the data has now.
        held_out=f"{origin.held_out:,}" if origin.held_out else facts.held_out,
        metrics=io.metric_rows(metrics, plain),
        of_all=of_all,
        of_some=of_some,
        environments=entries[-environment.MOST_LISTED :],
        settings=_settings(model),
    )


def plain(text: object) -> str:
    """Text from data or a name, in Markdown: no markup, no control characters, one line."""
    # Hubs render Markdown and the HTML in it: a class name or an image key must stay text.
    escaped = html.escape(io.clean(" ".join(str(text).split())))
    return "".join(f"\\{letter}" if letter in "\\`*_[]|#" else letter for letter in escaped)


def _data(model: Model, facts: DataFacts) -> list[tuple[str, str]]:
    """The data that could be read at the export; without it what the settings say."""
    assert model.origin.experiment
    data = model.origin.experiment.data
    return [
        # Names without folders: a path may hold the name of a user or a project.
        ("source", ", ".join(map(_last, (data.source, *data.more_sources)))),
        ("images", facts.images),
        ("held out", facts.held_out),
        ("licence of the images", facts.license),
        ("fingerprint", model.origin.data),
        ("resized to", f"{data.shape[1]} x {data.shape[2]} px, {data.fit}"),
        ("used in training", f"{model.origin.images:,} images"),
    ]


def _settings(model: Model) -> str:
    """What the weights depend on, without paths and what tells of a machine."""
    assert model.origin.experiment
    every = model.origin.experiment.to_dict()
    tables = {name: dict(every[name]) for name in ("method", "data", "train")}
    data, train = tables["data"], tables["train"]
    # These describe the machine, not the training.
    for name in ("cache", "storage", "readers"):
        data.pop(name, None)
    for name in ("source", "held_out", "keys"):
        data[name] = _last(data[name])
    data["more_sources"] = [_last(source) for source in data["more_sources"]]
    train["init_from"] = _last(train["init_from"])
    for name in model.method.loss_files:
        tables["method"][name] = _last(tables["method"][name])
    # Text of the settings must not end its own block.
    return io.clean(tomli_w.dumps(tables)).replace("```", "'''").rstrip()


def _last(source: str) -> str:
    """The last part of a path or an address: where it lies is private."""
    return source.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]
