"""Which held-out figures a method will report, known before anything is trained."""

from __future__ import annotations

import torch

from udl_dist.core.config_schema import nearest
from udl_dist.errors import UsageError
from udl_dist.methods import Method
from udl_dist.training.loop import evaluating
from udl_dist.training.step import black


def figures_of(method: Method) -> list[str]:
    """What validation will report, tried on a black image with untrained networks; `method` is
    built here.
    """
    method.build()
    with evaluating(method):
        measured = (
            method.measure(black(method, 2, torch.device("cpu"))) if method.can("measure") else {}
        )
        means = {name: value.double().mean(0) for name, value in measured.items()}
    return [f"val/{name}" for name in method.figures(means)] if measured else []


def refuse_unknown(setting: str, name: str, method: Method) -> None:
    """Raise UsageError if `name`, the value of a setting, is no held-out figure, or one that ranks
    nothing.
    """
    reported = figures_of(method)
    if name not in reported:
        what = "; a figure of training is not held out" * name.startswith("train/")
        raise UsageError(
            f"{setting} {name!r} is reported by nobody: {nearest(name, reported)} "
            f"(there are {', '.join(reported) or 'none'}){what}"
        )
    if method.incomparable.get(name.removeprefix("val/")) == ():
        raise UsageError(
            f"{setting} {name} says nothing of how good a run is: take val/{method.best}"
        )
