"""Validation: the method's metrics over all held-out images, and their names before a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from udl_dist.core.config_schema import nearest
from udl_dist.data.loader.reader import Stream
from udl_dist.errors import UsageError
from udl_dist.methods.method import Method
from udl_dist.training.arithmetic import autocast
from udl_dist.training.batches import Sender, dummy_batch
from udl_dist.training.distributed import Ranks
from udl_dist.training.settings import TrainSettings
from udl_dist.training.train_state import TrainState


def validate(
    state: TrainState,
    held_out: Stream,
    settings: TrainSettings,
    ranks: Ranks,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The method's metrics of every held-out image, each counted once over all ranks: `val/…`."""
    method = state.in_use
    if not method.can("measure"):
        return {}
    for each in (method, state.method):
        ranks.agree_on(each.own_buffers())
    sums, sender = dict[str, Tensor](), Sender(held_out, ranks.device)
    with evaluating(method), autocast(ranks.device, settings.precision):
        for records in held_out.once(settings.batch_size, ranks.rank, ranks.world):
            on_batch()
            for name, values in method.measure(sender.send(records, 0)).items():
                # In double: the order of a sum, which depends on the world size, must not show.
                here = values.sum(0, dtype=torch.float64)
                sums[name] = sums[name] + here if name in sums else here
        if not sums:
            # More ranks than held-out images: this one adds zeros, of the shapes that others send.
            shapes = method.measure(dummy_batch(method, 1, ranks.device))
            sums = {name: torch.zeros_like(value[0]).double() for name, value in shapes.items()}
    # By the records of all ranks: their shares may differ.
    means = {name: value / held_out.records for name, value in ranks.totals(sums).items()}
    return {f"val/{name}": value for name, value in method.metrics(means).items()}


@contextmanager
def evaluating(method: Method) -> Iterator[None]:
    """Evaluation mode: no dropout, running statistics of BatchNorm, no gradients."""
    method.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        method.train()


def metric_names(method: Method) -> list[str]:
    """The names that `validate` will report, from untrained networks."""
    if not method.can("measure"):
        return []
    with evaluating(method):
        measured = method.measure(dummy_batch(method, 2, torch.device("cpu")))
    means = {name: value.double().mean(0) for name, value in measured.items()}
    return [f"val/{name}" for name in method.metrics(means)]


def refuse_unknown_metric(setting: str, name: str, method: Method) -> None:
    """Raise UsageError if `name`, the value of `setting`, is not a metric that ranks runs."""
    reported = metric_names(method)
    if name not in reported:
        why = "; metrics of training are not held out" * name.startswith("train/")
        raise UsageError(
            f"{setting} {name!r} is not a metric of this method: {nearest(name, reported)} "
            f"(there are {', '.join(reported) or 'none'}){why}"
        )
    # (): it ranks no runs, whatever their settings, such as the logit of a discriminator.
    if method.incomparable.get(name.removeprefix("val/")) == ():
        raise UsageError(
            f"{setting} {name} does not tell which run is better: take val/{method.best}"
        )
