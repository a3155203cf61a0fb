"""`udl evaluate`: figures of a model on held-out images, each with its protocol and with what to hold it against."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from udl_dist import disk
from udl_dist.evaluation import written
from udl_dist.evaluation.family import HELD_OUT, LEFT_OUT, TRAIN, Figure, Plane, Taken, joined
from udl_dist.evaluation.settings import PIXELS, FigureSettings
from udl_dist.models.model import Model
from udl_dist.settings import as_path
from udl_dist.using.measuring import Measuring
from udl_dist.using.outcome import Outcome, outcome, writing

Progress = Callable[[int, int], None]
Parts = dict[tuple[str, int], dict[str, Taken]]


def evaluate(model: Model, asked: FigureSettings, out: Path | None, progress: Progress) -> Outcome:
    """Measure, write `evaluation.json` (into the run folder unless told where) and say what came out."""
    if asked.extractor != PIXELS:
        asked = replace(asked, extractor=str(as_path(asked.extractor).absolute()))  # workers may be elsewhere
    measuring = Measuring(model, asked)
    made: Parts = {}
    wanted = measuring.parts()
    for place, taken in _made(measuring, wanted):
        made[place] = taken
        progress(len(made), len(wanted))
    figures: dict[str, dict[str, Any]] = {}
    planes: dict[str, Plane] = {}
    for family in measuring.families:
        held_out = _whole(made, wanted, (HELD_OUT, LEFT_OUT) if family.compares else (HELD_OUT,), family.name)
        train = _whole(made, wanted, (TRAIN,), family.name) if family.learns and TRAIN in measuring.streams else None
        shared = _protocol(measuring, train)
        figures |= {name: _entry(figure, shared) for name, figure in family.figures(held_out, train).items()}
        planes |= family.maps(held_out, train)
    path = out or (model.origin.folder / written.NAME if model.origin.experiment else None)
    said = [*written.table(figures), *measuring.notes]
    if path:
        _keep(path, figures, model.origin.weights)
        said.append(f"each with its protocol: {path}")
    drawn = {name: str(_drawn(name, plane, model, path.parent)) for name, plane in planes.items() if path}
    return outcome(model, [*said, *(f"a map of {name}: {file}" for name, file in drawn.items())],
                   figures=figures, skipped=measuring.notes, path=str(path or ""), maps=[*drawn.values()])  # fmt: skip


def _drawn(name: str, plane: Plane, model: Model, folder: Path) -> Path:
    """Write a map beside the figures."""
    from udl_dist.using import maps  # matplotlib takes a while

    file = folder / f"map_{name}.png"
    maps.draw(plane, f"{len(plane.points):,} held-out images in {model.latent_dim} numbers each", file)
    return file


def _made(measuring: Measuring, wanted: list[tuple[str, int]]) -> Iterator[tuple[tuple[str, int], dict[str, Taken]]]:
    if not measuring.asked.workers:
        yield from ((place, measuring.part(*place)) for place in wanted)
        return
    from udl_dist.using import workers

    yield from workers.measure(measuring.model, measuring.asked, wanted)


def _whole(made: Parts, wanted: list[tuple[str, int]], which: Sequence[str], family: str) -> Taken:
    """All parts of a family, in their order: the last bit does not depend on who was quicker."""
    return joined(made[place][family] for place in wanted if place[0] in which)


def _protocol(measuring: Measuring, train: Taken | None) -> dict[str, Any]:
    """What every figure depends on."""
    model, asked = measuring.model, measuring.asked
    channels, height, width = model.shape
    shared = {"data": measuring.streams[HELD_OUT].fingerprint, "split": "all of the source" if asked.data else HELD_OUT,
              "n": measuring.images[HELD_OUT], "size": f"{channels}×{height}×{width}", "seed": asked.seed,
              "checkpoint": model.origin.images, "weights": model.origin.weights}  # fmt: skip
    if train:
        shared |= {"train": measuring.streams[TRAIN].fingerprint, "train_n": train.images}
    return shared


def _entry(figure: Figure, shared: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": figure.value, "sd": figure.sd, "floor": dict(figure.beside) or None,
            "protocol": {**shared, **figure.protocol}}  # fmt: skip


def _keep(path: Path, figures: Mapping[str, Any], weights: str) -> None:
    """Write the figures, and keep others that were measured of the same weights."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        both = written.of_weights(path, weights) | dict(figures)
        disk.write_whole(path, json.dumps({"figures": both}, indent=1, ensure_ascii=False))
