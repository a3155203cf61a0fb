"""`udl embed`: the latents of all images of a source, with their keys, in parts of bounded size;
Ray may share them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udl_dist.data.loader.reader import Stream
from udl_dist.inference import parts
from udl_dist.inference.inputs import scaled
from udl_dist.inference.model import BATCH_IMAGES, Model
from udl_dist.inference.outcome import Outcome, outcome
from udl_dist.inference.parts import Layout
from udl_dist.inference.settings import EmbedSettings
from udl_dist.inference.sources import keys_of, open_stream

Progress = Callable[[int, int], None]


def embed(
    model: Model, source: str, dest: Path, asked: EmbedSettings, progress: Progress
) -> Outcome:
    """Write the latents of every image of `source` below `dest`; parts that are there already are
    not made again.
    """
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
    )
    missing = parts.begin(dest, layout)
    there = layout.parts - len(missing)
    images = 0
    for made in _made(model, stream, source, dest, layout, missing, asked):
        images += made
        progress(images, -(-stream.records * len(missing) // layout.parts))
    seconds = time.monotonic() - began
    again = f", {there} of them were there" if there else ""
    speed = f", {images / seconds:,.0f} images/s" if images else ""
    said = (
        f"{stream.records:,} images, latents of {layout.latent_dim}, {layout.parts}"
        f" parts{again}{speed}: {dest}"
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


def embed_part(model: Model, stream: Stream, dest: Path, layout: Layout, number: int) -> int:
    """Make one part; return how many images it has."""
    keys: list[str] = []
    labels: list[NDArray[np.int64]] = []
    latents: list[NDArray[np.float32]] = []
    for records in stream.once(BATCH_IMAGES, number, layout.parts):
        keys += keys_of(stream, records)
        labels.append(records.labels)
        latents.append(model.encode(scaled(records.images)).float().numpy())
    parts.write(dest, layout, number, keys, np.concatenate(labels), np.concatenate(latents))
    return len(keys)


def _made(
    model: Model,
    stream: Stream,
    source: str,
    dest: Path,
    layout: Layout,
    missing: list[int],
    asked: EmbedSettings,
) -> Iterator[int]:
    """Make the missing parts, here or in Ray's workers; give the images of each as it is done."""
    if not asked.workers or not missing:
        yield from (embed_part(model, stream, dest, layout, number) for number in missing)
        return
    from udl_dist.inference import ray_workers as workers

    yield from workers.embed(
        model, source, dest, layout, missing, asked.workers, asked.readers, asked.address
    )
