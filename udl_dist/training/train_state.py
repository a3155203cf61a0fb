"""What learns: networks with their optimisers, and the moving average of them; all that a
checkpoint must hold.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from udl_dist.errors import TrainingError
from udl_dist.methods import Batch, Method, Phase
from udl_dist.training.checkpoint import bytes_of
from udl_dist.training.distributed import Ranks
from udl_dist.training.settings import TrainSettings


class Learner(nn.Module):
    """Networks that learn together. Its forward *runs the loss*, so DDP sees all that must be
    synchronised.
    """

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, phase: Phase, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return phase.loss(batch)


class Turn:
    """A phase with the learner it trains, wrapped for all ranks, and its optimiser."""

    def __init__(self, phase: Phase, learner: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.phase = phase
        self.learner = learner
        self.optimizer = optimizer

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


class Learning:
    """A method while it learns: `turns` in order, and `average`, the copy with averaged weights (or
    None).
    """

    def __init__(
        self, method: Method, settings: TrainSettings, ranks: Ranks, shares: int = 0
    ) -> None:
        self.method = method
        # in which a global batch is learned, added up in their order; 0: one for each rank
        self.shares = shares
        self._moments = 2 if settings.optimizer.startswith("adam") else int(settings.beta1 > 0)
        layout = torch.channels_last if settings.channels_last else torch.preserve_format
        method.networks.to(device=ranks.device, memory_format=layout)  # type: ignore[call-overload]
        self.average = _averaged(method) if settings.average_half_life else None
        if settings.compile:
            _compile(method)
        self.turns = [self._turn(phase, settings, ranks) for phase in method.phases()]

    def _turn(self, phase: Phase, settings: TrainSettings, ranks: Ranks) -> Turn:
        networks = {name: self.method.networks[name] for name in phase.trains}
        learner = Learner(networks)
        optimizer = _optimizer(list(learner.parameters()), settings, ranks.device)
        return Turn(phase, learner if self.shares else ranks.wrap(learner), optimizer)

    @property
    def in_use(self) -> Method:
        """The method as it would be used now: the averaged one where there is an average."""
        return self.average or self.method

    def follow(self, weight: float) -> None:
        """Move the average towards the networks by `weight`."""
        if self.average is None:
            return
        for name in self.method.averaged():
            mean, now = self.average.networks[name], self.method.networks[name]
            with torch.no_grad():
                torch._foreach_lerp_(list(mean.parameters()), list(now.parameters()), weight)
            for kept, buffer in zip(mean.buffers(), now.buffers(), strict=True):
                kept.copy_(buffer)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All state by file and name: `networks`, `average`, and `optimizer-N` for each turn."""
        files = {"networks": dict(self.method.networks.state_dict())}
        if self.average is not None:
            files["average"] = {
                f"{name}.{key}": value
                for name in self.method.averaged()
                for key, value in self.average.networks[name].state_dict().items()
            }
        for number, turn in enumerate(self.turns):
            files[f"optimizer-{number}"] = dict(_flat(turn.optimizer))
        return files

    def checkpoint_bytes(self) -> int:
        """What a checkpoint of all this takes, moments that the optimisers do not have yet
        included.
        """
        missing = sum(
            value.nbytes
            for turn in self.turns
            if not turn.optimizer.state
            for value in turn.parameters()
        )
        return bytes_of(self.tensors()) + self._moments * missing

    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Take some of the weights from elsewhere, before the first step; optimisers are as new as
        they were.
        """
        own = self.method.networks.state_dict()
        self.method.networks.load_state_dict(own | dict(tensors))
        if self.average is not None:
            self.average.networks.load_state_dict(self.method.networks.state_dict())

    def restore(self, files: dict[str, dict[str, Tensor]]) -> None:
        """Take up the state that `tensors` gave; raise TrainingError if it is of other networks."""
        try:
            self.method.networks.load_state_dict(files["networks"])
            if self.average is not None:
                # The networks that no average follows are the method's own, restored above.
                own = self.method.networks.state_dict()
                self.average.networks.load_state_dict(own | files["average"])
            for number, turn in enumerate(self.turns):
                _restore(turn.optimizer, files[f"optimizer-{number}"])
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise TrainingError(
                f"the checkpoint is of other networks: {' '.join(str(error).split())[:300]}"
            ) from None


def _compile(method: Method) -> None:
    """Compile the training forward of each network in place; one that a loss differentiates twice
    stays eager.

    Evaluation stays eager too: it runs seldom, and with batches of other sizes, each of which would
    be compiled anew. What this process compiled before, such as for another trial, counts towards
    Dynamo's limit of 8 variants, beyond which it runs eager without a word: it is forgotten.
    """
    torch.compiler.reset()
    for name, network in method.networks.items():
        if name not in method.differentiated_twice():
            network.forward = _compiled_in_training(network)


def _compiled_in_training(network: nn.Module) -> Callable[[Tensor], Tensor]:
    # Its forward, not the module: Dynamo passes over the frames of nn.Sequential, and would compile
    # nothing.
    eager, compiled = network.forward, torch.compile(network.forward)
    return lambda inputs: (compiled if network.training else eager)(inputs)


def _averaged(method: Method) -> Method:
    """A method whose averaged networks are copies, and whose others (a discriminator) are the
    living ones.
    """
    average = copy.deepcopy(method)
    for name in method.networks:
        if name in method.averaged():
            average.networks[name].requires_grad_(False)
        else:
            average.networks[name] = method.networks[name]
    return average


def _optimizer(
    parameters: list[nn.Parameter], settings: TrainSettings, device: torch.device
) -> torch.optim.Optimizer:
    fused = device.type in ("cpu", "cuda")
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, rate, momentum=settings.beta1, weight_decay=decay, fused=fused
        )
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(
        parameters, rate, betas=(settings.beta1, settings.beta2), weight_decay=decay, fused=fused
    )


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` in the memory format of `parameter`, if it has its shape.

    Fused optimisers walk raw memory: a moment or a gradient in another order would meet other
    weights.
    """
    if value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _flat(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """The optimiser's tensors as `parameter.name`; its hyperparameters come from the settings at
    each step.
    """
    for parameter, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:  # SGD without momentum keeps an empty buffer
                yield f"{parameter}.{name}", value


def _restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for dotted, value in tensors.items():
        number, name = dotted.split(".", 1)
        state.setdefault(int(number), {})[name] = like(parameters[int(number)], value)
    kept = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": kept["param_groups"]})
