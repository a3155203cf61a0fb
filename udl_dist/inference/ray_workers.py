"""Ray workers that each open a model once and share what is made with it: the only file of this
room that knows Ray.

All nodes must see the model, the images and the destination under the same paths.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from udl_dist.errors import ClusterError, UdlError
from udl_dist.evaluation.settings import FigureSettings
from udl_dist.inference.measuring import Measuring, Part
from udl_dist.inference.model import Model
from udl_dist.inference.parts import Layout
from udl_dist.launch import ray_runtime

RETRIES = 2  # of a part whose worker died


class Embedder:
    """One worker: a model and a stream, opened where it runs."""

    def __init__(
        self, folder: str, checkpoint: str | int, device: str, source: str, readers: int
    ) -> None:
        from udl_dist.inference.model import load
        from udl_dist.inference.sources import open_stream

        self._model = load(folder, device, checkpoint)
        self._stream = open_stream(self._model, source, readers)

    def ready(self) -> None:
        """Answered once the worker is at work."""

    def part(self, dest: str, layout: Layout, number: int) -> int:
        from udl_dist.inference.embedding import embed_part

        return embed_part(self._model, self._stream, Path(dest), layout, number)


class Measurer:
    """One worker of an evaluation."""

    def __init__(
        self,
        folder: str,
        checkpoint: str | int,
        device: str,
        asked: FigureSettings,
        known: Collection[str],
    ) -> None:
        from udl_dist.inference.model import load

        self._measuring = Measuring(load(folder, device, checkpoint), asked)
        self._measuring.know(known)

    def ready(self) -> None:
        """Answered once the worker is at work."""

    def part(self, which: str, number: int) -> Part:
        return self._measuring.part(which, number)


def embed(
    model: Model,
    source: str,
    dest: Path,
    layout: Layout,
    missing: list[int],
    workers: int,
    readers: int,
    address: str,
) -> Iterator[int]:
    """Share the missing parts among workers, each the next one when it is done; give the images of
    each part.
    """
    parts = [(str(dest.absolute()), layout, number) for number in missing]
    for _, images in _shared(Embedder, model, (source, readers), parts, workers, address):
        yield int(images)


def measure(measuring: Measuring, known: Collection[str]) -> Iterator[tuple[tuple[str, int], Part]]:
    """The same with the parts of an evaluation; give each part and what was taken of it."""
    asked = measuring.asked
    yield from _shared(
        Measurer, measuring.model, (asked, known), measuring.parts(), asked.workers, asked.address
    )


def _shared(
    kind: type,
    model: Model,
    opened_with: tuple[Any, ...],
    parts: Sequence[Any],
    workers: int,
    address: str,
) -> Iterator[tuple[Any, Any]]:
    ours = ray_runtime.start(address, verbose=False)
    try:
        yield from _handed_out(kind, model, opened_with, parts, workers)
    finally:
        if ours:
            ray_runtime.end()


def _handed_out(
    kind: type, model: Model, opened_with: tuple[Any, ...], parts: Sequence[Any], workers: int
) -> Iterator[tuple[Any, Any]]:
    import ray

    gpu = int(model.device.type == "cuda")
    _refuse_too_many(workers, gpu)
    actor = ray.remote(kind).options(
        num_cpus=1, num_gpus=gpu, max_restarts=RETRIES, max_task_retries=RETRIES
    )
    checkpoint = model.origin.images if model.origin.experiment else "best"
    idle = [
        actor.remote(str(model.origin.folder), checkpoint, model.device.type, *opened_with)
        for _ in range(min(workers, len(parts)))
    ]
    everybody = list(idle)
    try:
        _refuse_unplaced(everybody)
        left, busy = list(parts), dict[Any, Any]()
        while left or busy:
            while left and idle:
                worker, part = idle.pop(), left.pop(0)
                busy[worker.part.remote(*part)] = worker, part
            (done, *_), _ = ray.wait(list(busy), num_returns=1)
            worker, part = busy.pop(done)
            idle.append(worker)
            yield part, _result(done)
    finally:
        for worker in everybody:  # in a Ray of somebody else they would keep their places
            ray.kill(worker)


def _refuse_unplaced(workers: list[Any]) -> None:
    """Raise ClusterError unless one worker is at work in time; the others may wait for their
    turn.
    """
    import ray

    done, _ = ray.wait(
        [worker.ready.remote() for worker in workers],
        num_returns=1,
        timeout=ray_runtime.START_SECONDS,
    )
    if not done:
        raise ClusterError(
            f"no worker found a place in {ray_runtime.START_SECONDS:g} s, free now:"
            f" {ray_runtime.in_words()}: wait for the others, or leave workers out"
        )
    _result(done[0])


def _result(done: Any) -> Any:
    """What a worker gave; its own refusal as it is, anything else as one line."""
    import ray

    try:
        return ray.get(done)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", error)
        if isinstance(cause, UdlError):
            raise type(cause)(str(cause)) from None
        why = " ".join(str(cause).split())[:300]
        raise ClusterError(
            f"a worker failed: {why}; the parts that are done stay, the same command goes on"
        ) from None


def _refuse_too_many(workers: int, gpu: int) -> None:
    import ray

    kind = "GPU" if gpu else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if workers > there:
        raise ClusterError(
            f"workers = {workers} needs as many {kind}s, the cluster has {there}: lower workers"
        )
