"""How a device computes: what `run.determinism` and `train.precision` promise is set here, when a
worker starts.
"""

from __future__ import annotations

import os

import torch

# Chosen before the first matrix product and the first message: both are read once in a process.
REPEATABLE = {
    # cuBLAS promises equal bits with a workspace of its own only
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",  # trees and NVLS add up in an order that follows how ranks lie on machines
    "NCCL_PROTO": "Simple",
}


def set_up(device: torch.device, determinism: str, precision: str) -> dict[str, str]:
    """Set this process up for one run; return what holds now, for the record of its environment.

    On a GPU, `determinism` other than "none" makes repeats and resumes on equal machines equal to
    the bit; an operation that cannot be repeated raises then. "none" lets cuDNN choose the fastest
    algorithm by trying.
    """
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
    # Nothing here reads memory that it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = repeatable
    torch.backends.cudnn.benchmark = not repeatable
    # One choice for all layers: torch's own defaults are TF32 in convolutions and IEEE float32 in
    # Linear.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "float32"
    used = {name: os.environ[name] for name in REPEATABLE if name in os.environ}
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    versions = {"cuDNN": str(cudnn)}
    if torch.cuda.is_available():
        nccl = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        versions["NCCL"] = ".".join(map(str, nccl))
    return {"precision": precision, "determinism": determinism, **versions, **used}
