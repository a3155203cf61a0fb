"""Networks of other projects: TorchScript and programs of torch.export, which are trusted code.

TorchScript operators can read and write files, and loading a .pt2 evaluates text of the file as
Python; neither is checked for harm. No pickle is read: a .pt2 with one, or with machine code, is
refused, and torch's C++ reader, which knows only tensors and the file's own types, reads the tables
of a TorchScript file.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from udl_dist.errors import DataError

KINDS = {"script": "TorchScript", "program": "a program of torch.export"}
AS_PICKLE = ("data/weights/model.pt", "data/constants/model.pt")  # of older releases of torch


def kind(path: Path, what: str) -> str:
    """The kind of code in a file, or "" for none; raise DataError for a pickle of torch.save.

    `what` is the subject of the refusal.
    """
    return _kind(path, f"{what} {path}")


def _kind(file: Path | io.BytesIO, where: str) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            # Without the first folder, which both writers name after the file.
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return ""
    if "archive_format" in names:
        return "program"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "script"
    raise DataError(
        f"{where} holds no network that can be read (a pickle of torch.save is not): "
        "write it by torch.jit.save or torch.export.save"
    )


def read_code(where: str, data: bytes, device: torch.device) -> tuple[Any, torch.device]:
    """The network that the bytes of a file hold, and the device it runs on, which may be another.

    It has no gradient and is in evaluation mode. Loading runs what the file says: only for trusted
    files. Raise DataError, with `where` as its subject, for one that holds none or a pickle.
    """
    network: Any
    try:
        with silenced("torch.export", logging.CRITICAL):
            if _kind(io.BytesIO(data), where) == "script":
                network = torch.jit.load(io.BytesIO(data), map_location=device).eval()  # type: ignore[no-untyped-call]
            else:
                _refuse_pickles(where, data)
                network = torch.export.load(io.BytesIO(data)).module()
                tensors = (*network.parameters(), *network.buffers())
                # A program runs on the device that it was exported on.
                device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    except DataError:
        raise
    except Exception as error:  # readers raise many kinds
        raise DataError(f"{where} cannot be read: {one_line(error)}: export it again") from None
    for weight in network.parameters():  # a ScriptModule has no requires_grad_
        weight.requires_grad_(False)
    return network, device


def _refuse_pickles(where: str, data: bytes) -> None:
    """Raise DataError for a program that holds a pickle or machine code: torch would load it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        names = [member.filename.partition("/")[2] for member in members]
        # torch.export.save compresses nothing, and two members of one name would let this check see
        # another than torch reads.
        if len(set(names)) < len(names) or any(member.compress_type for member in members):
            raise DataError(f"{where} was not written by torch.export.save: export it again")
        # torch.export.save stores what is not a plain tensor as a pickle and marks it in a table.
        for member, name in zip(members, names, strict=True):
            is_table = name.endswith("_config.json")
            table = json.loads(archive.read(member)) if is_table else {"config": {}}
            pickled = any(entry["use_pickle"] for entry in table["config"].values())
            if name.startswith("data/sample_inputs/") and member.file_size:
                raise DataError(
                    f"{where} holds its example inputs as a pickle, and none is read: set "
                    "program.example_inputs = None before torch.export.save"
                )
            if pickled or name in AS_PICKLE or name.startswith("data/aotinductor/"):
                raise DataError(
                    f"{where} holds a pickle or machine code ({name}), and none is read: "
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
