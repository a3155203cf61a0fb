"""The networks of a model for other programs: ONNX and torch.export, written, read, compared.

A .pt2 is read here for this comparison only, just after it was written: one from elsewhere may
hold a pickle (methods/networks/code_files.py looks before it reads one).
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from udl_dist.core import rng
from udl_dist.errors import TrainingError, UsageError
from udl_dist.inference.model import Model
from udl_dist.methods.method import Batch
from udl_dist.methods.networks.code_files import one_line, silenced

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TRACED = 4  # images of the example; 0 and 1 would count as constants


# Exporters take modules, and find weights only in modules that are registered.
class ExportedFunction(nn.Module):
    """One way through a method, such as its encoder, as a module."""

    def __init__(self, networks: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.networks = networks
        self._function = function

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Tensor:
        # Labels are an input of the file of a conditional method alone.
        return self._function(inputs) if labels is None else self._function(inputs, labels)


@dataclass(frozen=True)
class Traced:
    """A module with real inputs, its outputs, and zeros to trace it with: files keep no image."""

    module: ExportedFunction
    inputs: tuple[Tensor, ...]  # images or latents, and labels of a conditional method
    outputs: Tensor

    @property
    def names(self) -> list[str]:
        return ["inputs", "labels"][: len(self.inputs)]

    @property
    def examples(self) -> tuple[Tensor, ...]:
        return tuple(one.new_zeros(TRACED, *one.shape[1:]) for one in self.inputs)

    @property
    def dynamic_shapes(self) -> dict[str, dict[int, torch.export.Dim]]:
        """Only the number of images is free: convolutions of another size are other networks."""
        images = torch.export.Dim("images")
        return {name: {0: images} for name in self.names}

    def difference(self, again: Callable[..., Tensor]) -> float:
        """The greatest difference over the whole batch and over its first image alone."""
        # A batch size that was compiled in shows with another size.
        counts = (len(self.outputs), 1)
        with torch.no_grad():
            return greatest_difference(
                (again(*(one[:count] for one in self.inputs)).cpu(), self.outputs[:count].cpu())
                for count in counts
            )


def greatest_difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Between the tensors of each pair; NaN if there is one anywhere."""
    # torch's maximum of NaN is NaN, Python's depends on the order.
    return float(torch.stack([(one - other).double().abs().max() for one, other in pairs]).max())


def require_onnx() -> None:
    """Raise UsageError if what writes and checks ONNX is not installed."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UsageError(f"--onnx needs {', '.join(missing)}: pip install 'udl-dist[export]'")


def write(
    model: Model, batch: Batch, folder: Path, onnx: bool, torch_export: bool
) -> dict[str, float]:
    """Write what was asked for; return the greatest difference of each file on a real batch."""
    writers = {"onnx": _onnx} if onnx else {}
    if torch_export:
        writers["pt2"] = _pt2
    differences: dict[str, float] = {}
    for name, traced in _traced(model, batch).items() if writers else ():
        for kind, writer in writers.items():
            path = folder / f"{name}.{kind}"
            differences[path.name] = writer(traced, path)
    return differences


def _traced(model: Model, batch: Batch) -> dict[str, Traced]:
    """The ways through a model that it has."""
    method, images = model.method, batch.images.to(model.device)
    labels = torch.arange(len(images), device=images.device) % max(1, len(method.classes))
    functions: dict[str, tuple[Callable[..., Tensor], Tensor]] = {}
    with torch.no_grad():
        if model.can("encode"):
            functions["encoder"] = method.encode, images
            if model.can("decode"):
                functions["decoder"] = method.decode, method.encode(images)
        elif model.can("decode"):
            # Without an encoder the latents come from the prior; the keys are any.
            functions["generator"] = method.decode, method.prior(rng.keys(0, len(images)))
        if model.can("reconstruct"):
            functions["whole"] = method.reconstruct, images
        found = {}
        for name, (function, inputs) in functions.items():
            # Outputs of the networks in memory, which every file is compared with.
            labelled = method.conditional and name != "encoder"
            module = ExportedFunction(method, function)
            given = (inputs, labels) if labelled else (inputs,)
            found[name] = Traced(module, given, module(*given))
    return found


def _onnx(traced: Traced, path: Path) -> float:
    with _errors_in_one_line(path):
        torch.onnx.export(
            traced.module,
            traced.examples,
            str(path),
            dynamo=True,
            # One file: weights in a second file are easily lost when a model is copied.
            external_data=False,
            input_names=traced.names,
            output_names=["outputs"],
            dynamic_shapes=traced.dynamic_shapes,
            verbose=False,
        )
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Errors only: the runtime warns about hardware it did not find.
        options.log_severity_level = 3
        # The CPU, as the model itself at an export; GPUs round in other ways.
        providers = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)

    def again(*inputs: Tensor) -> Tensor:
        given = {name: one.numpy() for name, one in zip(traced.names, inputs, strict=True)}
        # None: all outputs, of which there is one.
        return torch.from_numpy(session.run(None, given)[0])

    return traced.difference(again)


def _pt2(traced: Traced, path: Path) -> float:
    with _errors_in_one_line(path):
        shapes = traced.dynamic_shapes
        # Ops as torch has them: no extra package is needed to write or to read the file.
        program = torch.export.export(traced.module, traced.examples, dynamic_shapes=shapes)
        program.example_inputs = None  # else the file holds them as a pickle
        torch.export.save(program, str(path))
        # Read from the file, not used as it is in memory: the file is what gets published.
        again = torch.export.load(str(path)).module()
    return traced.difference(again)


@contextmanager
def _errors_in_one_line(path: Path) -> Iterator[None]:
    """Silence what exporters log and warn; what they raise becomes one line."""
    try:
        with silenced("torch.onnx", logging.ERROR):
            yield
    except Exception as error:  # exporters raise many kinds
        raise TrainingError(
            f"{path.name} cannot be written or read again: {one_line(error)}"
        ) from None
