"""Resume from the newest checkpoint: rank 0 finds, verifies and reads it, the others receive it."""

from __future__ import annotations

import json
from pathlib import Path

from udl_dist.data.loader.reader import Stream
from udl_dist.errors import DataError, TrainingError
from udl_dist.experiment import Experiment
from udl_dist.inference import warm_start
from udl_dist.runs.remote import fetch_checkpoints
from udl_dist.runs.remote_node import Node
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint
from udl_dist.training.distributed import Ranks
from udl_dist.training.loop import LoopState
from udl_dist.training.train_state import TrainState


def resume(
    experiment: Experiment,
    folder: RunFolder,
    node: Node | None,
    ranks: Ranks,
    state: TrainState,
    stream: Stream,
) -> tuple[int, LoopState]:
    """Restore the newest complete checkpoint on every rank; return its images and the loop's state.

    `node` is given if the run folder is in object storage. Raises TrainingError for a checkpoint of
    another method or of other networks, DataError if the run has seen other images until now.
    """
    found = -1
    if ranks.is_main:
        # What a kill inside a save has left, before anything can pass for a checkpoint.
        checkpoint.sweep(folder.checkpoints)
        if node:
            fetch_checkpoints(node)
        newest = checkpoint.newest(folder.checkpoints, folder.say)
        found = int(newest.name) if newest else -1
    # One rank decides: on a network disk two ranks might see different newest checkpoints.
    images = ranks.broadcast_int(found)
    if images < 0:
        if experiment.train.init_from:
            warm_start.start(experiment.train.init_from, state, ranks, folder)
        return 0, LoopState()
    files, facts = checkpoint.parsed(
        _from_rank_zero(checkpoint.path_of(folder.checkpoints, images), ranks)
    )
    # Before the weights: a wrong method would fail by the first tensor that has another shape.
    if facts.get("method", experiment.method_name) != experiment.method_name:
        raise TrainingError(
            f"the checkpoints in {folder.checkpoints} are of method {facts['method']}, not "
            f"{experiment.method_name}: choose another --run.folder"
        )
    # The position in the stream means nothing in another order or other images.
    if facts["data"] != stream.fingerprint:
        raise DataError(
            f"the first {images:,} images of this run were different ones"
            f" ({_difference(folder, stream)}): "
            "restore the shards it was started with, or choose another --run.folder"
        )
    for name, hashed in facts.get("frozen", {}).items():
        if state.frozen_hashes.get(name) != hashed:
            raise TrainingError(
                f"the frozen network {name} is not the one that this run began with (sha256"
                f" {hashed[:12]}, now {state.frozen_hashes.get(name, 'absent')[:12]}): give the"
                " same file, or choose another --run.folder"
            )
    state.restore(files)
    return images, LoopState(**facts.get("kept", {}))


def _from_rank_zero(path: Path, ranks: Ranks) -> dict[str, bytes]:
    """The files of a checkpoint by name, read and verified by rank 0 alone, sent to the others."""
    # Other nodes may not have the file, and a file server need not send it once for each rank.
    files = checkpoint.contents(path) if ranks.is_main else {}
    names = json.loads(ranks.broadcast_bytes(json.dumps(list(files)).encode()))
    return {name: ranks.broadcast_bytes(files.get(name, b"")) for name in names}


def _difference(folder: RunFolder, stream: Stream) -> str:
    """The first shard that is not what it was when the run began."""
    if not folder.data.exists():
        return "their list is missing"
    # Written when the run began; see `RunRecorder`.
    before, now = json.loads(folder.data.read_text(encoding="utf-8")), stream.shards()
    for path in sorted(before | now):
        if before.get(path) != now.get(path):
            return (
                f"shard {path!r} was: {before.get(path, 'missing')}; is: {now.get(path, 'missing')}"
            )
    return "the shards are equal, but their selection, size or order is not"
