"""`udl evaluate`: figures of a model on held-out images, each with its protocol and with what to
hold it against.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from udl_dist.core import files
from udl_dist.core.config_schema import as_path
from udl_dist.evaluation import io as written
from udl_dist.evaluation.metric_group import (
    HELD_OUT,
    LEFT_OUT,
    TRAIN,
    Family,
    Figure,
    Plane,
    Taken,
    joined,
)
from udl_dist.evaluation.settings import OWN, FigureSettings
from udl_dist.inference.measuring import Measuring, Part
from udl_dist.inference.model import Model
from udl_dist.inference.outcome import Outcome, outcome, writing

Progress = Callable[[int, int], None]
Parts = dict[tuple[str, int], Part]


def evaluate(model: Model, asked: FigureSettings, out: Path | None, progress: Progress) -> Outcome:
    """Measure, write `evaluation.json` (into the run folder unless told where) and say what came
    out.
    """
    if asked.extractor not in OWN:
        # workers may be elsewhere
        asked = replace(asked, extractor=str(as_path(asked.extractor).absolute()))
    measuring = Measuring(model, asked)
    figures, planes = _measured(measuring, progress)
    path = out or (model.origin.folder / written.NAME if model.origin.experiment else None)
    said = [*written.table(figures), *measuring.notes]
    if path:
        _keep(path, figures, model.origin.weights)
        said.append(f"each with its protocol: {path}")
    drawn = {
        name: str(_drawn(name, plane, model, path.parent)) for name, plane in planes.items() if path
    }
    return outcome(
        model,
        [*said, *(f"a map of {name}: {file}" for name, file in drawn.items())],
        figures=figures,
        skipped=measuring.notes,
        path=str(path or ""),
        maps=[*drawn.values()],
    )


def _measured(
    measuring: Measuring, progress: Progress
) -> tuple[dict[str, dict[str, Any]], dict[str, Plane]]:
    """Figures and maps; what real images alone say is looked up, or worked out and kept."""
    remembered = measuring.remembered()
    references = {
        family.name: found for family in measuring.families if (found := remembered.read(family))
    }
    measuring.know(references.keys())
    made: Parts = {}
    for place, part in _made(measuring, list(references)):
        made[place] = part
        progress(len(made), len(measuring.parts()))
    figures: dict[str, dict[str, Any]] = {}
    planes: dict[str, Plane] = {}
    for family in measuring.families:
        held_out = _whole(made, measuring, family, HELD_OUT, LEFT_OUT)
        seen = family.goes_through(TRAIN) and TRAIN in measuring.streams
        train = _whole(made, measuring, family, TRAIN) if seen else None
        if family.name not in references:
            references[family.name] = dict(sorted(family.reference(held_out, train).items()))
            # those may be mended
            damaged = any(part.damaged for part in made.values()) or measuring.damaged
            if references[family.name] and not damaged:
                remembered.write(family, references[family.name])
        shared = _protocol(measuring, family)
        own = family.figures(held_out, train, references[family.name])
        figures |= {name: _entry(figure, shared) for name, figure in own.items()}
        planes |= family.maps(held_out, train)
    return figures, planes


def _drawn(name: str, plane: Plane, model: Model, folder: Path) -> Path:
    """Write a map beside the figures."""
    from udl_dist.inference import maps  # matplotlib takes a while

    file = folder / f"map_{name}.png"
    maps.draw(
        plane, f"{len(plane.points):,} held-out images in {model.latent_dim} numbers each", file
    )
    return file


def _made(measuring: Measuring, known: list[str]) -> Iterator[tuple[tuple[str, int], Part]]:
    if not measuring.asked.workers:
        yield from ((place, measuring.part(*place)) for place in measuring.parts())
        return
    from udl_dist.inference import ray_workers as workers

    yield from workers.measure(measuring, known)


def _whole(made: Parts, measuring: Measuring, family: Family, *which: str) -> Taken:
    """All parts of a family, in their order: the last bit does not depend on who was quicker."""
    return joined(
        made[place].taken[family.name]
        for place in measuring.parts()
        if place[0] in which and family.goes_through(place[0])
    )


def _protocol(measuring: Measuring, family: Family) -> dict[str, Any]:
    """What every figure of a family depends on."""
    model, asked = measuring.model, measuring.asked
    channels, height, width = model.shape
    shared = {
        "data": measuring.streams[HELD_OUT].fingerprint,
        "split": "all of the source" if asked.data else HELD_OUT,
        "n": measuring.images[HELD_OUT],
        "size": f"{channels}×{height}×{width}",
        "seed": asked.seed,
        "checkpoint": model.origin.images,
        "weights": model.origin.weights,
    }
    if TRAIN in measuring.streams and (family.learns or family.refers):
        shared |= {
            "train": measuring.streams[TRAIN].fingerprint,
            "train_n": measuring.images[TRAIN],
        }
    return shared


def _entry(figure: Figure, shared: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "value": figure.value,
        "sd": figure.sd,
        "floor": dict(figure.beside) or None,
        "protocol": {**shared, **figure.protocol},
    }


def _keep(path: Path, figures: Mapping[str, Any], weights: str) -> None:
    """Write the figures, and keep others that were measured of the same weights."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        both = written.of_weights(path, weights) | dict(figures)
        files.write_whole(path, json.dumps({"figures": both}, indent=1, ensure_ascii=False))
