"""`udl report`: one page about a run, complete in itself; of a broken run it tells what is left."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from udl_dist import account
from udl_dist.account import Account
from udl_dist.core import config_schema
from udl_dist.data.shards.index import Index
from udl_dist.errors import DataError
from udl_dist.report import curves, searched
from udl_dist.report.page import clean, page
from udl_dist.report.parts import (
    MOST_BYTES,
    NAME,
    Reported,
    evaluated,
    joined,
    shared,
    tables,
    written,
)
from udl_dist.report.pictures import films
from udl_dist.runs import environment
from udl_dist.runs.run_folder import RunFolder
from udl_dist.storage.uris import is_remote, split

MOST_SHARDS = 100  # that are listed
MOST_PANELS = 24
MESSAGES = 200  # lines
FOLLOW_SECONDS = 10
NOT_DRAWN = ("images", "train/learning_rate")
MACHINE = ("perf/images_per_second", "perf/data_wait_share", "perf/memory_bytes")


def follow(folder: str, out: Path | None, say: Callable[[str], None]) -> Reported:
    """Write the page again and again while a run or a search is at work; a browser that shows it
    loads it anew.
    """
    run = RunFolder(config_schema.as_path(folder))
    try:
        if run.in_use():
            page_file = out or run.path / NAME
            say(
                f"the page is written anew every {FOLLOW_SECONDS} s until the run ends, or Ctrl-C:"
                f" {page_file}"
            )
        while run.in_use():
            report(folder, out, FOLLOW_SECONDS)
            time.sleep(FOLLOW_SECONDS)
    finally:
        done = report(folder, out)  # which is not loaded anew any more
    return done


def report(folder: str, out: Path | None = None, refresh: int = 0) -> Reported:
    """Write the page, into the folder unless told where; raise UsageError for one that is neither
    run nor search.

    A browser loads it anew every `refresh` seconds; 0: never.
    """
    if searched.is_search(config_schema.as_path(folder)):
        return searched.report(config_schema.as_path(folder), out, refresh)
    about = account.read(folder)
    shown, faults = films(about.pictures)
    about.faults += faults
    text = page(_values(about, shown) | {"refresh": refresh})
    if len(text.encode()) > MOST_BYTES:
        text = page(_values(about, []) | {"refresh": refresh})
        about.faults.append("the pictures were left out: the page would have been too large")
    return written(text, out or about.folder / NAME, about.faults)


def _values(about: Account, shown: list[dict[str, Any]]) -> dict[str, Any]:
    """What the template asks for."""
    held_out = about.held_out()
    best_by = about.best_by if about.best_by in held_out else ""
    sections = [
        ("pictures", "Pictures"),
        ("figures", "Figures"),
        ("curves", "Curves"),
        ("data", "Data"),
        ("settings", "Settings"),
        ("environment", "Environment"),
        ("reproduce", "Reproduce"),
        *[("messages", "Messages")] * bool(about.messages),
    ]
    return {
        "title": about.folder.name,
        "facts": _facts(about),
        "sections": sections,
        "faults": about.faults,
        "alarms": [*_failed(about), *[line for line in about.messages if "ALARM" in line][:20]],
        "held_out": [
            (name, _number(last), _number(best))[: 3 if best_by else 2]
            for name, (last, best, _) in sorted(
                held_out.items(), key=lambda item: item[0] != best_by
            )
        ],
        "cannot_see": [
            (f"val/{name}", what)
            for name, what in about.kind.cannot_see.items()
            if f"val/{name}" in held_out
        ],
        "about_samples": (
            of_run(about.kind.about_samples, str(about.folder))
            if "samples" in about.pictures
            else ""
        ),
        "best_by": best_by,
        "held_out_images": f"{about.held_out_images:,} " if about.held_out_images else "",
        "best_images": f"{next((images for _, _, images in held_out.values()), 0):,}",
        "protocol": joined(
            {name: value for name, value in about.protocol().items() if value not in (None, "")}
        ),
        "evaluation": evaluated(about.evaluation),
        "shared": shared(about.evaluation),
        "panels": _panels(about),
        "pictures": shown,
        "data": _data(about),
        "shards": list(about.shards.items())[:MOST_SHARDS],
        "most_shards": MOST_SHARDS,
        "settings": tables(about.method, about.settings),
        "commands": _commands(about),
        "environments": [(f"{images:,}", words) for images, words in about.environments],
        "made_with": environment.in_words(environment.releases()),
        "messages": about.messages[-MESSAGES:],
    }


def _failed(about: Account) -> list[str]:
    return (
        [f"The run failed after {about.images:,} images: {about.failure}"] if about.failure else []
    )


def _facts(about: Account) -> list[str]:
    state = "complete" if about.complete else "failed" if about.failure else "not complete"
    kept = f"{len(about.checkpoints)} checkpoints kept"
    return [f"method {about.method}", f"{about.images:,} images seen", state, kept]


def _panels(about: Account) -> list[dict[str, str]]:
    """A panel for each term, training and held out together, then figures of checkpoints, then the
    machine's.
    """
    names = sorted({name for point in about.points for name in point} - set(NOT_DRAWN))
    terms = sorted(
        {name.split("/", 1)[-1] for name in names if name.startswith(("val/", "train/"))},
        key=lambda term: (f"val/{term}" != about.best_by, f"val/{term}" not in names, term),
    )
    wanted = {
        term: {f"{part}/{term}": about.curve(f"{part}/{term}") for part in ("train", "val")}
        for term in terms
    }
    followed = sorted(set().union(*about.followed.values()))
    wanted |= {
        f"{name}, udl evaluate --follow": {name: about.followed_curve(name)} for name in followed
    }
    wanted |= {name: {name: about.curve(name)} for name in MACHINE if name in names}
    panels: list[dict[str, str]] = []
    for number, (title, drawn) in enumerate(wanted.items()):
        kept = {clean(name): curve for name, curve in drawn.items() if curve[0]}
        if kept and len(panels) < MOST_PANELS:
            said = "; ".join(
                f"{name} from {values[0]:.4g} to {values[-1]:.4g}, least {min(values):.4g}"
                for name, (_, values) in kept.items()
            )
            panels.append(
                {
                    "name": title,
                    "svg": curves.as_svg(kept, number),
                    "said": said,
                    "alt": f"Curve of {title} over images seen: {said}",
                }
            )
    return panels


def _data(about: Account) -> list[tuple[str, str]]:
    wanted = {
        "source": "data.source",
        "further sources": "data.more_sources",
        "held out": "data.held_out",
        "held-out fraction": "data.held_out_fraction",
        "classes left out": "data.without_labels",
        "size": "data.size",
        "channels": "data.channels",
        "fit": "data.fit",
    }
    rows = [
        (name, str(value))
        for name, key in wanted.items()
        if (value := about.settings.get(key)) not in (None, "", [])
    ]
    rows.append(("fingerprint", about.data or "not known"))
    if license := _license(about):
        rows.append(("licence of the images", license))
    return rows


def _license(about: Account) -> str:
    """What the index beside the first shard says; nothing is fetched from elsewhere for it."""
    folder = split(next(iter(about.shards), ""))[0]
    if not folder or is_remote(folder):
        return ""
    try:
        return Index.open(folder).about.license[:1000]
    except DataError:
        return ""


def _commands(about: Account) -> str:
    if not about.settings:
        return "the settings are not known"
    job = shlex.quote(clean(str(about.folder / "experiment.toml")))
    run = of_run("RUN", str(about.folder))
    return "\n".join(
        [
            f"udl train {job} --run.folder runs/again    # the same run, from its start",
            f"udl export {run} model    # the best checkpoint as safetensors, with a card",
            f"udl report {run}    # this page; --follow while it trains",
        ]
    )


def of_run(text: str, folder: str) -> str:
    """A text with commands on RUN, about the run in `folder`."""
    return text.replace("RUN", shlex.quote(clean(folder)))


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.6g}"
