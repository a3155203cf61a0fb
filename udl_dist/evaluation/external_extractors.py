"""Extractors of other projects: files that are trusted code (methods/networks/code_files.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.evaluation.metric_group import Extractor
from udl_dist.methods.method import Shape
from udl_dist.methods.networks.code_files import KINDS, kind, one_line, read_code

WHAT = "extractor"
PROBED = (2, 3)  # batch sizes to try: the width must not depend on them


def load_external(path: Path, trusted: bool, shape: Shape, device: torch.device) -> Extractor:
    """The network in a file; raise UsageError unless `trusted`, DataError if it is unusable."""
    if not trusted:
        raise UsageError(
            f"{WHAT} {path} is {KINDS[kind(path, WHAT)]}, which can do on this machine whatever you"
            " can: if you trust its author, say --trust-extractor true"
        )
    # Read once: what is checked, loaded and hashed is the same, even if the file is replaced
    # meanwhile.
    data = path.read_bytes()
    network, device = read_code(f"{WHAT} {path}", data, device)
    features = _checked(path, network, device)
    with torch.no_grad():
        # Before any image is decoded: a network of another input fails here.
        for count in PROBED:
            features(torch.zeros(count, *shape, device=device))
    return Extractor(path.name, features, hashlib.sha256(data).hexdigest())


def _checked(
    path: Path, network: Callable[[Tensor], Any], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """The network with a check of its output; dimensions after the second are flattened."""
    where, width = f"{WHAT} {path}", 0  # width: of the rows of the first images

    def features(images: Tensor) -> Tensor:  # [N, C, H, W] -> [N, F]
        nonlocal width
        try:
            found = network(images.to(device))
        except Exception as error:  # external code raises anything
            raise DataError(
                f"{where} cannot take {list(images.shape)}: {one_line(error)}: export it for such"
                " images, any number of them"
            ) from None
        is_tensor = isinstance(found, Tensor)
        is_rows = is_tensor and found.ndim >= 2 and len(found) == len(images)
        if not is_rows or not found.numel():
            got = f"a tensor of {list(found.shape)}" if is_tensor else f"a {type(found).__name__}"
            raise DataError(
                f"{where} gives {got} for {len(images)} images: let it give a tensor with a row for"
                " each"
            )
        rows: Tensor = found.flatten(1).float()
        # Rows of different widths could not be joined into one set.
        width = width or rows.shape[1]
        if rows.shape[1] != width:
            raise DataError(
                f"{where} gave {width} numbers for an image and now {rows.shape[1]}: let their"
                " count be the same for all images"
            )
        if not bool(rows.isfinite().all()):
            raise TrainingError(f"{where} gives numbers that are not finite: use another")
        return rows

    return features
