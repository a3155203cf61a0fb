"""`udl evaluate --follow`: the figures of each checkpoint of a run as it is written, beside the
training.

It runs wherever the run folder is seen and there is room; the training neither waits for it nor
knows of it. Each checkpoint is copied into `followed/` first, so that the run may delete its own
meanwhile; of the copies the best stays.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from udl_dist.core import files
from udl_dist.core.config_schema import as_path, nearest
from udl_dist.errors import TrainingError, UsageError
from udl_dist.evaluation import io as written
from udl_dist.evaluation.settings import FigureSettings
from udl_dist.inference.evaluating import Progress, evaluate
from udl_dist.inference.model import load
from udl_dist.inference.outcome import Outcome, writing
from udl_dist.reporting import run_reader as account
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint

POLL_SECONDS = 2.0
WHO = ("workers", "readers", "address")  # settings that change no figure
COLUMNS = 6  # of the table, where no best is asked for
MORE_IS_BETTER = (
    "psnr",
    "ssim",
    "ms_ssim",
    "denoising_gain",
    "active_units",
    "precision",
    "recall",
    "density",
    "coverage",
    "class_score",
    "knn_accuracy",
    "linear_accuracy",
    "cluster",
    "anomaly",
)


def follow(
    folder: str,
    device: str,
    asked: FigureSettings,
    best: str,
    progress: Progress,
    say: Callable[[str], None],
) -> Outcome:
    """Measure until nobody trains the run and each checkpoint that it keeps was measured; the same
    command goes on.

    `best` names a figure: a copy of its best checkpoint stays in `followed/`, whatever the run
    keeps.
    """
    run = RunFolder(as_path(folder))
    if not run.experiment.is_file():
        raise UsageError(f"{run.path} is no run folder: it has no experiment.toml")
    with writing(run.followed):
        run.followed.mkdir(exist_ok=True)
        held = files.lock(run.followed)
        if held is None:
            raise UsageError(
                f"{run.followed} is written by another udl evaluate --follow: wait for it, or"
                " stop it"
            )
        try:
            _refuse_others(run, asked)
            _until_the_end(
                run, best, lambda path: _measured(run, path, device, asked, progress, say)
            )
        finally:
            os.close(held)
    return _outcome(run, best)


def _until_the_end(run: RunFolder, best: str, measured: Callable[[Path], bool]) -> None:
    passed: set[Path] = set()
    while True:
        ended = not run.in_use()  # before the checkpoints are looked for: there is none after it
        fresh = [
            path
            for path in checkpoint.complete(run.checkpoints)
            if path not in passed and _is_new(run, path)
        ]
        for path in fresh:
            if not measured(path):
                passed.add(path)
            _keep_best(run, best)
        if ended and not fresh:
            return
        if not fresh:
            time.sleep(POLL_SECONDS)


def _found(run: RunFolder) -> dict[int, dict[str, float]]:
    """The figures that are there, by images trained on; a file that makes no sense is none."""
    kept = account.followed_in(run.followed, [])
    return {
        images: {name: figure.value for name, figure in figures.items()}
        for images, figures in kept.items()
    }


def _refuse_others(run: RunFolder, asked: FigureSettings) -> None:
    """Raise UsageError where figures of other settings lie: curves of both would be none."""
    said = json.dumps(
        {name: value for name, value in asdict(asked).items() if name not in WHO}, indent=1
    )
    kept = run.followed / "asked.json"
    if kept.exists() and kept.read_text(encoding="utf-8") != said:
        raise UsageError(
            f"{run.followed} holds figures of other settings ({kept.name}): give those, or"
            " remove it"
        )
    files.write_whole(kept, said)


def _is_new(run: RunFolder, path: Path) -> bool:
    """Whether no figures of these weights are there: a run that went back makes others of the same
    images.
    """
    try:
        return not written.of_weights(_figures_of(run, path), checkpoint.weights(path))
    except OSError:  # deleted meanwhile
        return False
    except (ValueError, KeyError, TypeError):  # damaged: told where it is copied
        return True


def _figures_of(run: RunFolder, path: Path) -> Path:
    return run.followed / f"{path.name}.json"


def _measured(
    run: RunFolder,
    path: Path,
    device: str,
    asked: FigureSettings,
    progress: Progress,
    say: Callable[[str], None],
) -> bool:
    """Measure one checkpoint; tell and return False where it is damaged, gives what is no number,
    or was deleted.
    """
    try:
        checkpoint.adopt(path, run.followed)
        done = evaluate(
            load(run.path, device, int(path.name)), asked, _figures_of(run, path), progress
        )
    except (TrainingError, OSError) as error:
        checkpoint.sweep(run.followed)
        if isinstance(error, OSError) and path.exists():  # the disk refuses the copy
            raise
        say(f"passed over: {path.name}: {' '.join(str(error).split())}")
        return False
    figures = done.as_dict()["figures"]
    some = [f"{name} {entry['value']:.5g}" for name, entry in list(figures.items())[:COLUMNS]]
    say(f"after {int(path.name):,} images: {', '.join(some)}")
    return True


def _keep_best(run: RunFolder, best: str) -> None:
    """Delete all copies but the best one's."""
    kept = _best(_found(run), best)
    for path in checkpoint.complete(run.followed):
        if int(path.name) != kept:
            checkpoint.discard(path)


def _best(figures: dict[int, dict[str, float]], best: str) -> int | None:
    """After how many images the figure was best; None where none is asked for."""
    if not best or not figures:
        return None
    names = sorted(set().union(*figures.values()))
    if best not in names:
        raise UsageError(f"there is no figure {best!r} to be best in: {nearest(best, names)}")
    sign = -1 if best.startswith(MORE_IS_BETTER) else 1
    return min((sign * of[best], images) for images, of in figures.items() if best in of)[1]


def _outcome(run: RunFolder, best: str) -> Outcome:
    figures = _found(run)
    if not figures:
        raise TrainingError(
            f"{run.path} has no whole checkpoint and nobody trains it: train it first"
        )
    kept = _best(figures, best)
    names = [best] if best else list(next(iter(figures.values())))[:COLUMNS]
    rows = [f"{'images':>12}  " + "  ".join(f"{name:>16}" for name in names)]
    rows += [
        f"{images:>12,}  "
        + "  ".join(f"{of[name]:>16.5g}" if name in of else f"{'–':>16}" for name in names)
        for images, of in figures.items()
    ]
    if kept is not None:
        rows.append(f"best {best}: after {kept:,} images, a copy is kept (--checkpoint {kept})")
    facts: dict[str, Any] = {
        "model": str(run.path),
        "figures": figures,
        "best": best,
        "best_images": kept,
    }
    return Outcome([*rows, f"each with its protocol: {run.followed}"], facts)
