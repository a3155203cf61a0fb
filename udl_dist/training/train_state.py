"""The tensors of a checkpoint: networks, their optimisers and the moving average of the weights."""

from __future__ import annotations

import copy
import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from udl_dist.errors import TrainingError
from udl_dist.methods.method import Batch, Loss, Method, Phase
from udl_dist.training.arithmetic import in_channels_last
from udl_dist.training.checkpoint import bytes_of
from udl_dist.training.distributed import Ranks
from udl_dist.training.optimizers import flat_state, new_optimizer, restore_state
from udl_dist.training.settings import TrainSettings

LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class LossModule(nn.Module):
    """The networks that one phase trains. Its forward runs the loss, so that DDP sees every use."""

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)

    def forward(self, phase: Phase, batch: Batch) -> Loss:
        return phase.loss(batch)


@dataclass
class PhaseState:
    """A phase with its networks, wrapped for all ranks in `module`, and its optimiser."""

    phase: Phase
    module: nn.Module
    optimizer: torch.optim.Optimizer

    def unfreeze_only_its_networks(self, method: Method) -> None:
        """Only the networks of this phase get gradients."""
        for name, network in method.networks.items():
            network.requires_grad_(name in self.phase.trains)

    def parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


class TrainState:
    """A method in training: its `phases` in order, and `average`, its copy with averaged weights.

    `virtual_ranks` is the number of parts whose gradients are added up in order in an elastic run;
    0 where DDP averages over the ranks there are.
    """

    def __init__(
        self, method: Method, settings: TrainSettings, ranks: Ranks, virtual_ranks: int = 0
    ) -> None:
        self.method = method
        self.virtual_ranks = virtual_ranks
        self._after_step_checked = False
        # Moments of each parameter, which an optimiser allocates at its first step.
        self._moments = 2 if settings.optimizer.startswith("adam") else int(settings.beta1 > 0)
        self.channels_last = in_channels_last(method, settings)
        if settings.sync_batch_norm:
            ranks.synchronise_batch_norm(method.networks.values())
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        method.to(device=ranks.device, memory_format=layout)  # type: ignore[call-overload]
        method.train()  # a new frozen network is in training mode until this
        for name in method.frozen:
            method.get_submodule(name).requires_grad_(False)
        # Copied before compiling: a copy would share the compiled forward of the original.
        self.average = _averaged(method) if settings.average_half_life else None
        if settings.compile:
            _compile(method, _has_uneven_parts(settings, virtual_ranks, ranks))
        self.phases = [self._phase_state(phase, settings, ranks) for phase in method.phases()]
        self.phases[0].unfreeze_only_its_networks(method)

    def _phase_state(self, phase: Phase, settings: TrainSettings, ranks: Ranks) -> PhaseState:
        module = LossModule({name: self.method.networks[name] for name in phase.trains})
        optimizer = new_optimizer(list(module.parameters()), settings, phase, ranks.device)
        return PhaseState(phase, module if self.virtual_ranks else ranks.wrap(module), optimizer)

    @cached_property
    def frozen_hashes(self) -> dict[str, str]:
        """The sha256 of each frozen network, by which a checkpoint names it: of its file if it has
        one in `sha256`, else of its tensors.
        """
        hashes = {}
        for name in self.method.frozen:
            network = self.method.get_submodule(name)
            # Of code, the tensors are not all.
            if of_file := getattr(network, "sha256", ""):
                hashes[name] = str(of_file)
                continue
            digest = hashlib.sha256()
            for key, value in sorted(network.state_dict().items()):
                digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
                digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy())
            hashes[name] = digest.hexdigest()
        return hashes

    @contextmanager
    def only_buffers_change(self) -> Iterator[None]:
        """Refuse an `after_step` that changes a weight or replaces a buffer, once a process."""
        if self._after_step_checked:
            yield
            return
        weights, buffers = list(self.method.parameters()), self.method.own_buffers()
        before = [weight.clone() for weight in weights]
        yield
        self._after_step_checked = True
        if not all(map(torch.equal, weights, before)):
            raise TrainingError("after_step changed a weight: only a phase may, by its gradient")
        now = self.method.own_buffers()
        if len(now) != len(buffers) or any(map(operator.is_not, now, buffers)):
            raise TrainingError("after_step replaced a buffer: change it in place, by copy_()")

    @property
    def in_use(self) -> Method:
        """The method to validate and export: the averaged one where there is an average."""
        return self.average or self.method

    def update_average(self, weight: float) -> None:
        """Move the averaged weights towards the present ones by `weight`, in [0, 1]."""
        if self.average is None:
            return
        for name in self.method.averaged():
            mean, now = self.average.networks[name], self.method.networks[name]
            weights: list[Tensor] = list(mean.parameters())
            if weights:  # a codebook may have none
                with torch.no_grad():
                    torch._foreach_lerp_(weights, list(now.parameters()), weight)
            # Running statistics are averages already, and counters are integers.
            if buffers := list(mean.buffers()):
                torch._foreach_copy_(buffers, list(now.buffers()))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All state by file and name: `networks`, `average`, and `optimizer-N` for each phase."""
        files = {"networks": self.method.saved_tensors()}
        if self.average is not None:
            # Of a network that no average follows the weights are in `networks` already.
            files["average"] = {
                f"{name}.{key}": value
                for name in self.method.averaged()
                for key, value in self.average.networks[name].state_dict().items()
            }
        for number, phase in enumerate(self.phases):
            files[f"optimizer-{number}"] = dict(flat_state(phase.optimizer))
        return files

    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint, with the moments that optimisers lack before the first step."""
        missing = sum(
            value.nbytes
            for phase in self.phases
            if not phase.optimizer.state
            for value in phase.parameters()
        )
        return bytes_of(self.tensors()) + self._moments * missing

    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace some of the weights before the first step; optimisers stay as they are."""
        self.method.load_saved(self.method.saved_tensors() | dict(tensors))
        if self.average is not None:
            self.average.load_saved(self.method.saved_tensors())

    def restore(self, files: dict[str, dict[str, Tensor]]) -> None:
        """Restore what `tensors` returned; raise TrainingError if it belongs to other networks."""
        try:
            self.method.load_saved(files["networks"])
            if self.average is not None:
                # The networks that no average follows are the method's own, restored above.
                self.average.load_saved(self.method.saved_tensors() | files["average"])
            for number, phase in enumerate(self.phases):
                restore_state(phase.optimizer, files[f"optimizer-{number}"])
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise TrainingError(
                f"the checkpoint is of other networks: {' '.join(str(error).split())[:300]}"
            ) from None


def _has_uneven_parts(settings: TrainSettings, virtual_ranks: int, ranks: Ranks) -> bool:
    """Whether the parts of this rank's share of a step differ in size (see `step.part_edges`)."""
    if virtual_ranks:
        return settings.batch_size % virtual_ranks > 0
    first, end = (
        settings.batch_size * place // ranks.world for place in (ranks.rank, ranks.rank + 1)
    )
    return (end - first) % settings.accumulate > 0


def _compile(method: Method, uneven: bool) -> None:
    """Compile the training forward of each network, except one that a loss differentiates twice.

    Evaluation stays eager too: it is rare, and each new batch size would be compiled again. For
    parts of `uneven` sizes the code is made for any number of rows, which compiles once where a
    second size would compile again. Only a part of one row has code of its own, as Dynamo wants it.
    """
    # Code of earlier trials of this process counts towards Dynamo's limit of 8 variants, beyond
    # which it silently runs eager.
    torch.compiler.reset()
    for name, network in method.networks.items():
        # Compiling takes long and pays for layers: a codebook or an embedding gains nothing.
        layered = any(isinstance(part, LAYERS) for part in network.modules())
        if layered and name not in method.differentiated_twice():
            network.forward = _compiled_in_training(network, uneven)


def _compiled_in_training(network: nn.Module, uneven: bool) -> Callable[..., Any]:
    # Its forward, not the module: Dynamo skips the frames of nn.Sequential and compiles nothing
    # (torch 2.13).
    eager: Callable[..., Any] = network.forward
    compiled: Callable[..., Any] = torch.compile(network.forward)

    def forward(*inputs: Any) -> Any:
        if not network.training:
            return eager(*inputs)
        for given in inputs:
            if uneven and isinstance(given, Tensor) and given.dim() and len(given) > 1:
                torch._dynamo.maybe_mark_dynamic(given, 0)
        return compiled(*inputs)

    return forward


def _averaged(method: Method) -> Method:
    """A copy of the method: averaged networks are copies, all else (a discriminator) is shared."""
    average = copy.deepcopy(method)
    for name, child in method.named_children():
        # A shared discriminator costs no memory, and validation uses the newest one.
        if name in method.averaged():
            average.get_submodule(name).requires_grad_(False)
        else:
            setattr(average, name, child)
    # Buffers of the method itself (a codebook) are changed in place, see `Method.after_step`.
    for name, buffer in method.named_buffers(recurse=False):
        setattr(average, name, buffer)
    return average
