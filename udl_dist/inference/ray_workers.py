"""Ray workers that each open a model once and share the parts of a job; alone imports Ray here.

All nodes must see the model, the images and the destination under the same paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from udl_dist.errors import ClusterError, UdlError
from udl_dist.inference.model import Model, load
from udl_dist.launch import capacity, ray_runtime

RETRIES = 2  # of a part whose worker died


class PartWorker:
    """A model opened in a Ray actor, and the function that makes parts with it."""

    def __init__(
        self,
        folder: str,
        checkpoint: str | int,
        device: str,
        make: Callable[..., Callable[..., Any]],
        opened_with: Sequence[Any],
    ) -> None:
        # Once for each worker: opening a model takes longer than a small part.
        self._part = make(load(folder, device, checkpoint), *opened_with)

    def ready(self) -> None:
        """Answered once the worker has opened its model."""

    def part(self, *which: Any) -> Any:
        return self._part(*which)


def share(
    make: Callable[..., Callable[..., Any]],
    model: Model,
    opened_with: Sequence[Any],
    parts: Sequence[tuple[Any, ...]],
    workers: int,
    address: str,
) -> Iterator[tuple[Any, Any]]:
    """Make parts in Ray workers, each the next one when it is done; yield each with its result.

    `make(model, *opened_with)` gives the function that makes a part; a worker calls it once.
    """
    # False if this process is connected already: then Ray is not ours to end.
    started = ray_runtime.start(address, verbose=False)
    import ray

    actors: list[Any] = []
    try:
        # A model on a GPU needs a whole one for each worker.
        gpus, kind = (1, "GPU") if model.device.type == "cuda" else (0, "CPU")
        there = int(ray.cluster_resources().get(kind, 0))
        # Ray would wait for resources that never come, without a word.
        if workers > there:
            raise ClusterError(
                f"workers = {workers} needs as many {kind}s, the cluster has {there}: lower workers"
            )
        # Both: a restarted actor repeats a call only if its tasks may be retried too.
        actor = ray.remote(PartWorker).options(
            num_cpus=1, num_gpus=gpus, max_restarts=RETRIES, max_task_retries=RETRIES
        )
        folder, device = str(model.origin.folder), model.device.type
        # By number: "best" may name another checkpoint by the time a worker opens the run.
        checkpoint = str(model.origin.images) if model.origin.experiment else "best"
        for _ in range(min(workers, len(parts))):
            actors.append(actor.remote(folder, checkpoint, device, make, opened_with))
        seconds = ray_runtime.START_SECONDS  # for the first; the others may wait for resources
        done, _ = ray.wait([worker.ready.remote() for worker in actors], timeout=seconds)
        if not done:
            raise ClusterError(
                f"no worker was placed within {seconds:g} s, free now: {capacity.free_in_words()}:"
                " wait for the others, or leave workers out"
            )
        # Raises what opening the model raised.
        _result(done[0])
        yield from _dispatched(actors, parts)
    finally:
        for worker in actors:  # in a Ray that others started they would occupy its resources
            ray.kill(worker)
        if started:
            ray_runtime.end()


def _dispatched(
    actors: Sequence[Any], parts: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[Any, Any]]:
    """Each worker gets its next part when it has ended one: parts take different times."""
    import ray

    idle, left, busy = list(actors), list(parts), dict[Any, Any]()
    while left or busy:
        while left and idle:
            worker, part = idle.pop(), left.pop(0)
            busy[worker.part.remote(*part)] = worker, part
        # No time limit: a part may take as long as it takes, and Ray reports a dead worker.
        (finished, *_), _ = ray.wait(list(busy))
        worker, part = busy.pop(finished)
        idle.append(worker)
        yield part, _result(finished)


def _result(done: Any) -> Any:
    """The result of a worker; its own refusal as it is, another error as one line."""
    import ray

    try:
        return ray.get(done)
    except ray.exceptions.RayError as error:
        # Ray wraps the error of a task, and its text has the traceback of the worker.
        cause = getattr(error, "cause", error)
        if isinstance(cause, UdlError):
            # Made again here, for its exit code and without the text that Ray adds.
            raise type(cause)(str(cause)) from None
        why = " ".join(str(cause).split())[:300]
        raise ClusterError(
            f"a worker failed: {why}; finished parts stay, the same command goes on"
        ) from None
