"""Optimisers of phases, and their state as flat names and tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from udl_dist.methods.method import Phase
from udl_dist.training.settings import TrainSettings


def new_optimizer(
    parameters: list[nn.Parameter], settings: TrainSettings, phase: Phase, device: torch.device
) -> torch.optim.Optimizer:
    _spare_compiler()
    # Only fused optimisers read `found_inf` (see FiniteGuard); on a CPU they also make a whole step
    # of a small autoencoder 1.4 times as fast.
    fused = device.type in ("cpu", "cuda")
    own = {name: value for name, value in vars(phase.optimizer).items() if value is not None}
    used = {name: own.get(name, getattr(settings, name)) for name in ("beta1", "beta2")}
    lr, decay = settings.learning_rate, own.get("weight_decay", settings.weight_decay)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr, momentum=used["beta1"], weight_decay=decay, fused=fused
        )
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(
        parameters, lr, betas=(used["beta1"], used["beta2"]), weight_decay=decay, fused=fused
    )


def step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()` without what torch wraps around it for profilers and its compiler."""
    with torch.no_grad():  # one of the wrappers does this, too
        inspect.unwrap(type(optimizer).step)(optimizer)


def _spare_compiler() -> None:
    """Keep torch from importing its compiler, 1.3 s, for these methods of its optimisers.

    It imports the compiler to exclude them from compilation, and nothing here compiles optimisers.
    An excluded method, if there is one, is an attribute of the method: here it is the method.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        bare = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if bare is not None and not hasattr(bare, "__dynamo_disable"):
            bare.__dynamo_disable = bare


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` in the memory format of `parameter`, if it has its shape.

    Fused optimisers walk raw memory: a moment or a gradient in another order would be applied to
    other weights, without an error.
    """
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def flat_state(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The optimiser's tensors as `parameter.name`; hyperparameters come from the settings."""
    for parameter, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:  # SGD without momentum has an empty buffer
                yield f"{parameter}.{name}", value


def restore_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for dotted, value in tensors.items():
        number, name = dotted.split(".", 1)
        state.setdefault(int(number), {})[name] = like(parameters[int(number)], value)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
