"""The networks of a model for other programs: ONNX and torch.export, each written, read again and
compared.

A .pt2 is read here for this comparison only, just after it was written: one of somebody else may
hold a pickle (evaluation/foreign.py looks before it reads one).
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from udl_dist.core import rng
from udl_dist.errors import TrainingError, UsageError
from udl_dist.inference.model import Model
from udl_dist.methods import Batch

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TRACED = 4  # images of the example; neither 0 nor 1, which would be taken for constants


class Part(nn.Module):
    """One way through a method, as a module."""

    def __init__(self, networks: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.networks = networks
        self._function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self._function(inputs)


def require_onnx() -> None:
    """Raise UsageError if what writes and checks ONNX is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"--onnx needs {', '.join(missing)}: pip install 'udl-dist[export]'")


def write(
    model: Model, batch: Batch, folder: Path, onnx: bool, torch_export: bool
) -> dict[str, float]:
    """Write what was asked for; return the greatest difference of each file on a real batch and on
    a part of it.
    """
    differences = {}
    for name, (part, inputs) in _parts(model, batch).items():
        with torch.no_grad():
            expected = part(inputs)
        if onnx:
            differences[f"{name}.onnx"] = _onnx(part, inputs, expected, folder / f"{name}.onnx")
        if torch_export:
            differences[f"{name}.pt2"] = _pt2(part, inputs, expected, folder / f"{name}.pt2")
    return differences


def _parts(model: Model, batch: Batch) -> dict[str, tuple[Part, Tensor]]:
    """The ways through a model that it has, with real inputs."""
    method, images = model.method, batch.images.to(model.device)
    parts: dict[str, tuple[Part, Tensor]] = {}
    if model.can("encode"):
        parts["encoder"] = Part(method.networks, method.encode), images
    if model.can("decode"):
        generates = not model.can("encode")
        latents = method.prior(rng.keys(0, len(images))) if generates else method.encode(images)
        parts["generator" if generates else "decoder"] = (
            Part(method.networks, method.decode),
            latents,
        )
    if model.can("reconstruct"):
        parts["whole"] = Part(method.networks, method.reconstruct), images
    return parts


def _onnx(part: Part, inputs: Tensor, expected: Tensor, path: Path) -> float:
    with _quiet(path):
        torch.onnx.export(
            part,
            (_example(inputs),),
            str(path),
            dynamo=True,
            external_data=False,
            input_names=["inputs"],
            output_names=["outputs"],
            dynamic_shapes={"inputs": {0: torch.export.Dim("images")}},
            verbose=False,
        )
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    return _apart(
        lambda given: torch.from_numpy(session.run(None, {"inputs": given.numpy()})[0]),
        inputs,
        expected,
    )


def _pt2(part: Part, inputs: Tensor, expected: Tensor, path: Path) -> float:
    with _quiet(path):
        shapes = {"inputs": {0: torch.export.Dim("images")}}
        program = torch.export.export(part, (_example(inputs),), dynamic_shapes=shapes)
        program.example_inputs = None  # kept as a pickle otherwise, within the file
        torch.export.save(program, str(path))
        again = torch.export.load(str(path)).module()
    return _apart(again, inputs, expected)


def _example(inputs: Tensor) -> Tensor:
    """What the networks are traced with: no image of the data, for files keep what they are
    given.
    """
    return inputs.new_zeros(TRACED, *inputs.shape[1:])


def _apart(again: Callable[[Tensor], Tensor], inputs: Tensor, expected: Tensor) -> float:
    """The greatest difference over the whole batch and over its first image alone: the batch is
    dynamic.
    """
    with torch.no_grad():
        return max(
            float((again(inputs[:count]).cpu() - expected[:count].cpu()).abs().max())
            for count in (len(inputs), 1)
        )


@contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Keep what exporters log and warn off the terminal; what they raise becomes one line."""
    logger, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # exporters raise many kinds
        why = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"{path.name} cannot be written or read again: {type(error).__name__}: {why}"
        ) from None
    finally:
        logger.setLevel(level)
