"""`udl embed`: the latents or codes of all images of a source, with their keys, in parts.

A part is a Parquet file, or npy files and a text file of keys, that is there complete or not at
all; the same command makes the missing ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udl_dist.core import files
from udl_dist.errors import UsageError
from udl_dist.evaluation.io import clean
from udl_dist.evaluation.settings import EmbedSettings, Kind
from udl_dist.inference.inputs import scaled
from udl_dist.inference.model import BATCH_IMAGES, Model
from udl_dist.inference.outcome import Outcome, Progress, outcome
from udl_dist.inference.sources import keys_of, open_stream

FACTS = "embedding.json"


@dataclass(frozen=True)
class Layout:
    """What an embedding is of, and its number of parts; the same for all parts of a folder."""

    model: str
    weights: str  # sha256
    data: str  # fingerprint
    records: int
    latent_dim: int
    kind: Kind
    parts: int
    # Height and width of the map of codes, and how many codes there are; (): latents.
    codes: tuple[int, ...] = ()

    @property
    def column(self) -> str:
        """What an image has, in one word."""
        return "code" if self.codes else "latent"

    def names(self, number: int) -> tuple[str, ...]:
        """The files of a part, the last of them written last."""
        part = f"{number:05d}-of-{self.parts:05d}"
        if self.kind == "parquet":
            return (f"part-{part}.parquet",)
        # A part counts as complete once its last file is there.
        return (f"keys-{part}.txt", f"labels-{part}.npy", f"{self.column}s-{part}.npy")


def embed(
    model: Model, source: str, dest: Path, asked: EmbedSettings, progress: Progress
) -> Outcome:
    """Write the latents of every image of `source` below `dest`, except parts that are there."""
    # Before the source is opened, which may have to be packed or indexed first.
    if asked.codes:
        model.require("indices", "leave out --codes")
    else:
        model.require("encode")
    began = time.monotonic()
    stream = open_stream(model, source, asked.readers)
    layout = Layout(
        str(model.origin.folder),
        model.origin.weights,
        stream.fingerprint,
        stream.records,
        model.latent_dim,
        asked.format,
        -(-stream.records // asked.part_images),
        (*model.latent_shape[1:], model.method.code_count) if asked.codes else (),
    )
    missing = _begin(dest, layout)
    there, images = layout.parts - len(missing), 0
    # Workers open the source by themselves and may have another working directory.
    parts, opened_with = [(number,) for number in missing], (source, dest.absolute(), layout, asked)
    if asked.workers and missing:
        from udl_dist.inference import ray_workers

        shared = ray_workers.share(
            part_maker, model, opened_with, parts, asked.workers, asked.address
        )
        counts = (count for _, count in shared)
    else:
        # Without workers the model that is open already makes the parts.
        make = part_maker(model, *opened_with)
        counts = (make(number) for number in missing)
    for count in counts:
        images += count
        # Parts differ by one image at most, so this total is right to a few images.
        progress(images, -(-stream.records * len(missing) // layout.parts))
    seconds = time.monotonic() - began
    before = f", {there} of them were there" if there else ""
    speed = f", {images / seconds:,.0f} images/s" if images else ""
    said = (
        f"{stream.records:,} images, {_what(layout)}, {layout.parts} parts{before}{speed}: {dest}"
    )
    return outcome(
        model,
        [said],
        dest=str(dest),
        records=stream.records,
        parts=layout.parts,
        parts_there=there,
        images=images,
        seconds=seconds,
    )


def part_maker(
    model: Model, source: str, dest: Path, layout: Layout, asked: EmbedSettings
) -> Callable[[int], int]:
    """A function that makes one part and returns its number of images."""
    stream = open_stream(model, source, asked.readers)

    def make(number: int) -> int:
        keys: list[str] = []
        labels: list[NDArray[np.int64]] = []
        values: list[NDArray[Any]] = []
        # Parts are contiguous and as equal as possible: part_images sets their number.
        for records in stream.once(BATCH_IMAGES, number, layout.parts):
            keys += keys_of(stream, records)
            labels.append(records.labels)
            images = scaled(records.images)
            found = model.indices(images) if layout.codes else model.codes(images).float()
            values.append(found.numpy())
        paths = [dest / name for name in layout.names(number)]
        # int32 is enough for labels of classes, and -1 stands for none.
        whole = np.concatenate(values)
        _write(paths, keys, np.concatenate(labels).astype(np.int32), whole, layout.column)
        return len(keys)

    return make


def _what(layout: Layout) -> str:
    if not layout.codes:
        return f"latents of {layout.latent_dim}"
    height, width, codes = layout.codes
    return f"maps of {height}×{width} codes of {codes:,}"


def _begin(folder: Path, layout: Layout) -> list[int]:
    """Make or resume the folder; return its missing parts. UsageError for another embedding."""
    path, now = folder / FACTS, json.loads(json.dumps(asdict(layout)))
    if path.exists():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise UsageError(f"{path} is damaged: name a new folder") from None
        # `model` is a path, which may change; the hash of the weights says which model it is.
        changed = [name for name in now if name != "model" and before.get(name, []) != now[name]]
        if changed:
            name = changed[0]
            raise UsageError(
                f"{folder} holds another embedding ({name} was {before.get(name)!r}, is now "
                f"{now[name]!r}): name a new folder"
            )
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise UsageError(
                    f"{str(folder)!r} exists and is not an embedding: name a new folder"
                )
            # Before the first part: a folder that was cut short is known for what it is.
            files.write_whole(path, json.dumps(now, indent=1))
        except OSError as error:
            raise UsageError(
                f"cannot write to {str(folder)!r} ({error.strerror}): name another folder"
            ) from None
    # Only the last file of a part is looked for: it is written last.
    parts = range(layout.parts)
    return [number for number in parts if not (folder / layout.names(number)[-1]).exists()]


def _write(
    paths: Sequence[Path],
    keys: Sequence[str],
    labels: NDArray[np.int32],
    values: NDArray[Any],
    column: str,
) -> None:
    """Write one part. A label of -1 means that there is none."""
    if len(paths) == 1:
        import pyarrow
        import pyarrow.parquet

        # One buffer instead of a list for each image, in rows of a fixed length.
        flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
        columns = {
            "key": pyarrow.array(keys, pyarrow.string()),
            "label": pyarrow.array(labels),
            column: pyarrow.FixedSizeListArray.from_arrays(flat, values[0].size),
        }
        with files.whole_file(paths[0]) as file:
            pyarrow.parquet.write_table(pyarrow.table(columns), file, compression="zstd")
        return
    with files.whole_file(paths[0]) as file:
        for key in keys:  # without line breaks: keys are counted by lines
            file.write(f"{clean(key, breaks='')}\n".encode())
    for path, array in zip(paths[1:], (labels, values), strict=True):
        with files.whole_file(path) as file:
            # Never a pickle: np.load reads it with its defaults.
            np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
