"""Sets a process up to compute as `run.determinism` and `train.precision` promise."""

from __future__ import annotations

import os

import torch

from udl_dist.methods.method import Method
from udl_dist.training.settings import TrainSettings

# Set before the first matrix product and the first message: both are read once in a process.
REPEATABLE = {
    # Without a workspace setting cuBLAS does not promise equal bits.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",  # the order of sums in trees and NVLS depends on the placement of ranks
    "NCCL_PROTO": "Simple",
}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The types in which networks and losses compute, and those of validation alike."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def in_channels_last(method: Method, settings: TrainSettings) -> bool:
    """Whether images and weights lie in channels-last format: where there are convolutions."""
    return settings.channels_last and any(weight.dim() == 4 for weight in method.parameters())


def in_words(method: Method, settings: TrainSettings) -> str:
    """How a step computes, for a plan."""
    precision: str = settings.precision
    words = ["TF32 on a GPU, float32 on a CPU" if precision == "tf32" else precision]
    if in_channels_last(method, settings):
        words.append("convolutions in channels-last format")
    if settings.compile:
        eager = method.differentiated_twice()
        but = f" but for {', '.join(eager)}, which a penalty differentiates twice" if eager else ""
        words.append(f"compiled{but}")
    return "; ".join(words)


def set_up(device: torch.device, determinism: str, precision: str) -> dict[str, str]:
    """Set this process up for one run; return the settings in force, for the environment record.

    On a GPU, `determinism` other than "none" makes repeats and resumes on equal machines equal to
    the bit; an operation that cannot be repeated raises then. "none" lets cuDNN choose the fastest
    algorithm by trying.
    """
    # Denormal numbers, below 1e-38, count as 0: moments of weights that stopped learning pass
    # through them, where one product takes a CPU 100 times as long. Adam took 19 % of a step on
    # digits, now 9 %. Threads that torch starts later inherit it, those it has already do not.
    torch.set_flush_denormal(True)
    if device.type != "cuda":
        return {
            "precision": "float32" if precision == "tf32" else precision,
            "determinism": determinism,
        }
    repeatable = determinism != "none"
    if repeatable:
        for name, value in REPEATABLE.items():
            os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(repeatable)
    # By default every torch.empty is filled in this mode; nothing here reads unwritten memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = repeatable
    torch.backends.cudnn.benchmark = not repeatable
    # One choice for all layers: torch's defaults are TF32 in convolutions but float32 in Linear.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    used = {name: os.environ[name] for name in REPEATABLE if name in os.environ}
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    versions = {"cuDNN": str(cudnn)}
    if torch.cuda.is_available():
        nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        versions["NCCL"] = ".".join(map(str, nccl))
    return {"precision": precision, "determinism": determinism, **versions, **used}
