"""`udl report`: one self-contained page about a run; of a broken run it shows what is left."""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from udl_dist.core import config_schema
from udl_dist.data.shards.index import Index
from udl_dist.errors import DataError
from udl_dist.evaluation.io import class_rows, clean, metric_rows, pairs
from udl_dist.reporting import curves, searched
from udl_dist.reporting.page import (
    MOST_ALARMS,
    NAME,
    Reported,
    films,
    shared,
    tables,
    write_page,
)
from udl_dist.reporting.run_reader import RunRecord, read_run
from udl_dist.runs import environment
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage.uris import is_remote, split

MOST_SHARDS = 100  # that are listed
MOST_PANELS = 24
MOST_CLASSES = 200
MESSAGES = 200  # lines
# Also the interval at which browsers reload the page.
FOLLOW_SECONDS = 10
# The axis itself, and what the settings say already.
NOT_DRAWN = ("images", "train/learning_rate")
MACHINE = ("perf/images_per_second", "perf/data_wait_share", "perf/memory_bytes")
SECTIONS = ("Pictures", "Metrics", "Curves", "Data", "Settings", "Environment", "Reproduce")
DATA = {
    "source": "data.source",
    "further sources": "data.more_sources",
    "held out": "data.held_out",
    "held-out fraction": "data.held_out_fraction",
    "classes left out": "data.without_labels",
    "size": "data.size",
    "channels": "data.channels",
    "fit": "data.fit",
}


def follow(folder: str, out: Path | None, say: Callable[[str], None]) -> Reported:
    """Write the page every few seconds while a run or a search is at work; browsers reload it."""
    run = RunFolder(config_schema.as_path(folder))
    try:
        if run.in_use():
            say(
                f"the page is written every {FOLLOW_SECONDS} s until the run ends, or Ctrl-C: "
                f"{out or run.path / NAME}"
            )
        # The lock of the folder, which the system releases even after kill -9.
        while run.in_use():
            report(folder, out, FOLLOW_SECONDS)
            time.sleep(FOLLOW_SECONDS)
    finally:
        # In finally, so that Ctrl-C leaves a page that does not reload for ever.
        done = report(folder, out)  # this one is not reloaded
    return done


def report(folder: str, out: Path | None = None, refresh: int = 0) -> Reported:
    """Write the page to `out`, by default into the folder; browsers reload it every `refresh` s.

    Raises UsageError for a folder that is neither a run nor a search.
    """
    # A search has runs in it, but no experiment.toml of its own.
    if searched.is_search(config_schema.as_path(folder)):
        return searched.report(config_schema.as_path(folder), out, refresh)
    run = read_run(folder)
    pictures, faults = films(run.pictures)
    run.faults += faults
    values = _values(run, pictures) | {"refresh": refresh}
    fault = "the pictures were left out: the page would have been too large"
    return write_page(values, "page.html.jinja", "pictures", fault, out or run.folder / NAME)


def _values(run: RunRecord, pictures: list[dict[str, Any]]) -> dict[str, Any]:
    """The values of the template."""
    # The navigation has no entry that leads nowhere.
    sections = [*SECTIONS, *["Messages"] * bool(run.messages)]
    protocol = {name: value for name, value in run.protocol().items() if value not in (None, "")}
    # RUN in the text of a method is replaced by this folder.
    about_samples = run.kind.about_samples if "samples" in run.pictures else ""
    return {
        "title": run.folder.name,
        "facts": _facts(run),
        "sections": [(name.lower(), name) for name in sections],
        "faults": run.faults,
        "alarms": _alarms(run),
        **_held_out(run),
        "about_samples": of_run(about_samples, run.folder),
        "protocol": pairs(protocol),
        "evaluation": metric_rows(run.evaluation),
        "shared": shared(run.evaluation),
        **_by_class(run),
        "panels": _panels(run),
        "pictures": pictures,
        "data": _data(run),
        "shards": list(run.shards.items())[:MOST_SHARDS],
        "most_shards": MOST_SHARDS,
        "settings": tables(run.method, run.settings),
        "commands": _commands(run),
        "environments": [(f"{images:,}", words) for images, words in run.environments],
        "made_with": environment.in_words(environment.releases()),
        "messages": run.messages[-MESSAGES:],
    }


def _held_out(run: RunRecord) -> dict[str, Any]:
    """The table of held-out metrics, the one that chooses the best checkpoint first."""
    metrics = run.held_out()
    best_by = run.best_by if run.best_by in metrics else ""
    rows = []
    # False sorts before True.
    for name in sorted(metrics, key=lambda name: (name != best_by, name)):
        # Without a metric that chooses there is no best point, so one column.
        values = [_number(metrics[name].last), _number(metrics[name].best)]
        rows.append((name, *values[: 2 if best_by else 1]))
    # What a metric cannot show is said where its value is read.
    blind = {f"val/{name}": what for name, what in run.kind.cannot_see.items()}
    count = run.last.held_out
    return {
        "held_out": rows,
        "cannot_see": [(name, what) for name, what in blind.items() if name in metrics],
        "best_by": best_by,
        "best_images": f"{next((one.best_images for one in metrics.values()), 0):,}",
        "held_out_images": f"{count:,} " if count else "",
    }


def _by_class(run: RunRecord) -> dict[str, Any]:
    """The table of metrics within each class; of many classes the first ones."""
    head, rows = class_rows(run.evaluation)
    cleaned = [[clean(row[0]), *row[1:]] for row in rows]
    return {"class_head": head, "classes": cleaned[:MOST_CLASSES], "every_class": len(rows)}


def _alarms(run: RunRecord) -> list[str]:
    alarms = [line for line in run.messages if "ALARM" in line][:MOST_ALARMS]
    if run.failure:
        # Before all alarms: why there is no more to see.
        alarms.insert(0, f"The run failed after {run.images:,} images: {run.failure}")
    return alarms


def _facts(run: RunRecord) -> list[str]:
    state = "complete" if run.complete else "failed" if run.failure else "not complete"
    count = f"{len(run.checkpoints)} checkpoints"
    return [f"method {run.method}", f"{run.images:,} images seen", state, count]


def _panels(run: RunRecord) -> list[dict[str, str]]:
    """A panel for each term, training and held-out together; then checkpoints; then the machine."""
    names = sorted({name for point in run.points for name in point} - set(NOT_DRAWN))
    # train/loss and val/loss are drawn in one panel.
    terms = {name.split("/", 1)[-1] for name in names if name.startswith(("val/", "train/"))}
    panels = {}
    # The term that chooses the best checkpoint first, then held-out ones, then the rest.
    ranked = sorted((f"val/{one}" != run.best_by, f"val/{one}" not in names, one) for one in terms)
    for _, _, term in ranked:
        panels[term] = {f"{part}/{term}": run.curve(f"{part}/{term}") for part in ("train", "val")}
    for name in sorted(set().union(*run.followed.values())):
        panels[f"{name}, udl evaluate --follow"] = {name: run.followed_curve(name)}
    for name in MACHINE:
        panels[name] = {name: run.curve(name)}
    found: list[dict[str, str]] = []
    for number, (title, drawn) in enumerate(panels.items()):
        plotted = {clean(name): curve for name, curve in drawn.items() if curve[0]}
        if not plotted or len(found) == MOST_PANELS:
            continue
        # For those who cannot see the plot, and for text browsers.
        said = "; ".join(
            f"{name} from {values[0]:.4g} to {values[-1]:.4g}, least {min(values):.4g}"
            for name, (_, values) in plotted.items()
        )
        alt = f"Curve of {title} over images seen: {said}"
        svg = curves.as_svg(plotted, number)
        found.append({"name": title, "svg": svg, "said": said, "alt": alt})
    return found


def _data(run: RunRecord) -> list[tuple[str, str]]:
    values = {name: run.settings.get(key) for name, key in DATA.items()}
    rows = [(name, str(value)) for name, value in values.items() if value not in (None, "", [])]
    rows.append(("fingerprint", run.last.data or "not known"))
    # The index next to the first shard names the licence; nothing remote is fetched for it.
    folder = split(next(iter(run.shards), ""))[0]
    if folder and not is_remote(folder):
        # The data may have been moved since.
        with contextlib.suppress(DataError):
            if license := Index.open(folder).about.license[:1000]:
                rows.append(("licence of the images", license))
    return rows


def _commands(run: RunRecord) -> str:
    if not run.settings:
        return "the settings are not known"
    # Quoted: these lines are copied into a shell, and a folder may have any name.
    job, folder = (shlex.quote(clean(str(run.folder / name))) for name in ("experiment.toml", ""))
    return "\n".join(
        [
            f"udl train {job} --run.folder runs/again    # the same run, from its start",
            f"udl export {folder} model    # the best checkpoint as safetensors, with a card",
            f"udl report {folder}    # this page; --follow while it trains",
        ]
    )


def of_run(text: str, folder: Path) -> str:
    """A text with commands on RUN, about the run in `folder`."""
    return text.replace("RUN", shlex.quote(clean(str(folder))))


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.6g}"
