"""Extractors that somebody else made: TorchScript, and programs of torch.export. Both are code, and
need trust.

TorchScript runs whatever its operators can do, files included, and reading a .pt2 evaluates text of
the file as Python; neither is looked into for harm. No pickle is read: a .pt2 that holds one, or
machine code, is refused, and the tables of a TorchScript file are read by torch's C++ reader, which
knows tensors and the file's own types alone.
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
from udl_dist.methods import Shape

KINDS = {"script": "TorchScript", "program": "a program of torch.export"}
PROBED = (2, 3)  # images: the width must not depend on how many there are
AS_PICKLE = ("data/weights/model.pt", "data/constants/model.pt")  # forms of older releases of torch


class Foreign:
    """A network of somebody else, [N, C, H, W] in [-1, 1] -> [N, F]; further dimensions are laid
    flat.
    """

    classes = 0
    sees_detail = True
    cannot_see = ""

    def __init__(
        self, path: Path, data: bytes, network: Callable[[Tensor], Any], device: torch.device
    ) -> None:
        self._where, self._network, self._device = path, network, device
        self.name, self.hash = path.name, hashlib.sha256(data).hexdigest()
        self.width = 0  # as the first images have it

    def features(self, images: Tensor) -> Tensor:
        """Raise DataError for what gives no rows of numbers, TrainingError for numbers that are not
        finite.
        """
        try:
            found = self._network(images.to(self._device))
        except Exception as error:  # foreign code raises anything
            raise DataError(
                f"extractor {self._where} cannot look at {list(images.shape)}: {_line(error)}:"
                " export it for such images, any number of them"
            ) from None
        if (
            not isinstance(found, Tensor)
            or found.ndim < 2
            or len(found) != len(images)
            or not found.numel()
        ):
            raise DataError(
                f"extractor {self._where} gives {_form(found)} for {len(images)} images: let it"
                " give a tensor with a row for each"
            )
        rows = found.flatten(1).float()
        self._refuse_odd(rows)
        return rows

    def _refuse_odd(self, rows: Tensor) -> None:
        self.width = self.width or rows.shape[1]
        if rows.shape[1] != self.width:
            raise DataError(
                f"extractor {self._where} gave {self.width} numbers for an image and now"
                f" {rows.shape[1]}: let their count be the same for all images"
            )
        if not bool(rows.isfinite().all()):
            raise TrainingError(
                f"extractor {self._where} gives numbers that are not finite: use another"
            )

    def logits(self, features: Tensor) -> Tensor:
        raise NotImplementedError


def kind(path: Path) -> str:
    """Which kind of code a file is; "" for one that is none of both. Raise DataError for a pickle
    of torch.save.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return ""
    if "archive_format" in names:
        return "program"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "script"
    raise DataError(
        f"extractor {path} holds no network that can be read (a pickle of torch.save is not): write"
        " it by torch.jit.save or torch.export.save"
    )


def load(path: Path, trusted: bool, shape: Shape, device: torch.device) -> Foreign:
    """The network of a file that is code; raise UsageError without trust, DataError for what cannot
    be used.
    """
    which = kind(path)
    if not trusted:
        raise UsageError(
            f"extractor {path} is {KINDS[which]}, which can do on this machine whatever you can: if"
            " you trust who made it, say --trust-extractor true"
        )
    data = path.read_bytes()
    with _one_line(path):
        made = _script(path, data, device) if which == "script" else _program(path, data)
    with torch.no_grad():
        for count in PROBED:
            made.features(torch.zeros(count, *shape, device=device))
    return made


def _script(path: Path, data: bytes, device: torch.device) -> Foreign:
    network = torch.jit.load(io.BytesIO(data), map_location=device).eval()  # type: ignore[no-untyped-call]
    return Foreign(path, data, network, device)


def _program(path: Path, data: bytes) -> Foreign:
    """On the device that it was exported on."""
    _refuse_pickles(path, data)
    network = torch.export.load(io.BytesIO(data)).module()
    at = next(
        (tensor.device for tensor in (*network.parameters(), *network.buffers())),
        torch.device("cpu"),
    )
    return Foreign(path, data, network, at)


def _refuse_pickles(path: Path, data: bytes) -> None:
    """Raise DataError for a program beside which there is a pickle or machine code, which torch
    would load.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        names = [member.filename.partition("/")[2] for member in members]
        if len(set(names)) < len(names) or any(member.compress_type for member in members):
            raise DataError(
                f"extractor {path} is no file that torch.export.save wrote: export it again"
            )
        for member, name in zip(members, names, strict=True):
            table = (
                json.loads(archive.read(member))
                if name.endswith("_config.json")
                else {"config": {}}
            )
            pickled = any(entry["use_pickle"] for entry in table["config"].values())
            if name.startswith("data/sample_inputs/") and member.file_size:
                raise DataError(
                    f"extractor {path} holds its example inputs as a pickle, and none is read: set "
                    "program.example_inputs = None before torch.export.save"
                )
            if pickled or name in AS_PICKLE or name.startswith("data/aotinductor/"):
                raise DataError(
                    f"extractor {path} holds a pickle or machine code ({name}), and none is read:"
                    " export plain tensors"
                )


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """What torch warns and logs while it reads stays away; what it raises becomes one line."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except Exception as error:  # readers raise many kinds
        raise DataError(
            f"extractor {path} cannot be read: {_line(error)}: export it again"
        ) from None
    finally:
        logger.setLevel(level)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _form(found: object) -> str:
    return (
        f"a tensor of {list(found.shape)}"
        if isinstance(found, Tensor)
        else f"a {type(found).__name__}"
    )
