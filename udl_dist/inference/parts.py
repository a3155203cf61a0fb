"""The files of an embedding: parts that are there whole or not at all, Parquet or npy. Knows no
model and no image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udl_dist.core.files import write_whole
from udl_dist.data.shards.writing import written
from udl_dist.errors import UsageError
from udl_dist.inference.settings import Kind

FACTS = "embedding.json"


@dataclass(frozen=True)
class Layout:
    """What an embedding is of, and in how many parts; a folder is gone on with only if all of this
    is the same.
    """

    model: str
    weights: str  # sha256
    data: str  # fingerprint
    records: int
    latent_dim: int
    kind: Kind
    parts: int

    def names(self, number: int) -> tuple[str, ...]:
        """The files of a part, the last of them written last."""
        part = f"{number:05d}-of-{self.parts:05d}"
        if self.kind == "parquet":
            return (f"part-{part}.parquet",)
        return (f"keys-{part}.txt", f"labels-{part}.npy", f"latents-{part}.npy")

    def missing(self, folder: Path) -> list[int]:
        """The parts that are still to be made."""
        return [
            number for number in range(self.parts) if not (folder / self.names(number)[-1]).exists()
        ]


def begin(folder: Path, layout: Layout) -> list[int]:
    """Make the folder, or take one up again; return the parts that are missing. Raises UsageError
    for another one.
    """
    facts = folder / FACTS
    if facts.exists():
        before, now = _facts(facts), asdict(layout)
        if odd := [
            name for name, value in now.items() if name != "model" and before.get(name) != value
        ]:
            raise UsageError(
                f"{folder} holds another embedding ({odd[0]} was {before.get(odd[0])!r}, is now "
                f"{now[odd[0]]!r}): name a new folder"
            )
        return layout.missing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"{str(folder)!r} exists and is no embedding: name a new folder")
        write_whole(facts, json.dumps(asdict(layout), indent=1))
    except OSError as error:
        raise UsageError(
            f"cannot write to {str(folder)!r} ({error.strerror}): name another folder"
        ) from None
    return layout.missing(folder)


def write(
    folder: Path,
    layout: Layout,
    number: int,
    keys: Sequence[str],
    labels: NDArray[np.int64],
    latents: NDArray[np.float32],
) -> None:
    """Write one part. A label of -1 says that there is none."""
    names = layout.names(number)
    if layout.kind == "parquet":
        return _parquet(folder / names[0], keys, labels, latents)
    with written(folder / names[0]) as file:
        file.write("".join(f"{key}\n" for key in map(_one_line, keys)).encode())
    for name, array in ((names[1], labels.astype(np.int32)), (names[2], latents)):
        with written(folder / name) as file:
            np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return None


def _parquet(
    path: Path, keys: Sequence[str], labels: NDArray[np.int64], latents: NDArray[np.float32]
) -> None:
    import pyarrow
    import pyarrow.parquet

    flat = pyarrow.array(np.ascontiguousarray(latents).reshape(-1))
    table = pyarrow.table(
        {
            "key": pyarrow.array(keys, pyarrow.string()),
            "label": pyarrow.array(labels.astype(np.int32)),
            "latent": pyarrow.FixedSizeListArray.from_arrays(flat, latents.shape[1]),
        }
    )
    with written(path) as file:
        pyarrow.parquet.write_table(table, file, compression="zstd")


def _facts(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UsageError(f"{path} makes no sense: name a new folder") from None


def _one_line(key: str) -> str:
    """A key without line breaks: a line each is how they are counted."""
    return "".join(letter if letter.isprintable() else "�" for letter in key)
