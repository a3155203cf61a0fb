"""Extractors of other projects: TorchScript and programs of torch.export, which are trusted code.

TorchScript operators can read and write files, and loading a .pt2 evaluates text of the file as
Python; neither is checked for harm. No pickle is read: a .pt2 with one, or with machine code, is
refused, and torch's C++ reader, which knows only tensors and the file's own types, reads the tables
of a TorchScript file.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udl_dist.errors import DataError, TrainingError, UsageError
from udl_dist.evaluation.metric_group import Extractor
from udl_dist.methods.method import Shape

KINDS = {"script": "TorchScript", "program": "a program of torch.export"}
PROBED = (2, 3)  # batch sizes to try: the width must not depend on them
AS_PICKLE = ("data/weights/model.pt", "data/constants/model.pt")  # of older releases of torch


def kind(path: Path) -> str:
    """The kind of code in a file, or "" for none; raise DataError for a pickle of torch.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            # Without the first folder, which both writers name after the file.
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return ""
    if "archive_format" in names:
        return "program"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "script"
    raise DataError(
        f"extractor {path} holds no network that can be read (a pickle of torch.save is not): "
        "write it by torch.jit.save or torch.export.save"
    )


def load_external(path: Path, trusted: bool, shape: Shape, device: torch.device) -> Extractor:
    """The network in a file; raise UsageError unless `trusted`, DataError if it is unusable."""
    which = kind(path)
    if not trusted:
        raise UsageError(
            f"extractor {path} is {KINDS[which]}, which can do on this machine whatever you can: "
            "if you trust its author, say --trust-extractor true"
        )
    # Read once: what is checked, loaded and hashed is the same, even if the file is replaced
    # meanwhile.
    data = path.read_bytes()
    network: Any
    try:
        with silenced("torch.export", logging.CRITICAL):
            if which == "script":
                network = torch.jit.load(io.BytesIO(data), map_location=device).eval()  # type: ignore[no-untyped-call]
            else:
                _refuse_pickles(path, data)
                network = torch.export.load(io.BytesIO(data)).module()
                tensors = (*network.parameters(), *network.buffers())
                # A program runs on the device that it was exported on.
                device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    except DataError:
        raise
    except Exception as error:  # readers raise many kinds
        raise DataError(
            f"extractor {path} cannot be read: {one_line(error)}: export it again"
        ) from None
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
    where, width = f"extractor {path}", 0  # width: of the rows of the first images

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


def _refuse_pickles(path: Path, data: bytes) -> None:
    """Raise DataError for a program that holds a pickle or machine code: torch would load it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        names = [member.filename.partition("/")[2] for member in members]
        # torch.export.save compresses nothing, and two members of one name would let this check see
        # another than torch reads.
        if len(set(names)) < len(names) or any(member.compress_type for member in members):
            raise DataError(
                f"extractor {path} was not written by torch.export.save: export it again"
            )
        # torch.export.save stores what is not a plain tensor as a pickle and marks it in a table.
        for member, name in zip(members, names, strict=True):
            is_table = name.endswith("_config.json")
            table = json.loads(archive.read(member)) if is_table else {"config": {}}
            pickled = any(entry["use_pickle"] for entry in table["config"].values())
            if name.startswith("data/sample_inputs/") and member.file_size:
                raise DataError(
                    f"extractor {path} holds its example inputs as a pickle, and none is read: set "
                    "program.example_inputs = None before torch.export.save"
                )
            if pickled or name in AS_PICKLE or name.startswith("data/aotinductor/"):
                raise DataError(
                    f"extractor {path} holds a pickle or machine code ({name}), and none is read: "
                    "export plain tensors"
                )


@contextmanager
def silenced(name: str, least: int) -> Iterator[None]:
    """Without Python's warnings, and without what the logger `name` says below `least`."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(least)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def one_line(error: Exception) -> str:
    """The kind and the first words of an error of torch, whose messages have many lines."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
