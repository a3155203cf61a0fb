"""The stream for other training loops: batches for PyTorch, samples for a `wds.DataPipeline`.

Both start at any position, divide the records among ranks and repeat no record of an epoch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from udl_dist.data.loader.decoded import decoded_here
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.loader.reader import Stream
from udl_dist.data.loader.records import Records
from udl_dist.data.packing.prepare import prepare
from udl_dist.data.settings import DataSettings
from udl_dist.errors import UsageError


class Batches:
    """Endless batches of one rank's share: `for records in Batches("shards/", 128, size=64,
    channels=3): …`.

    `records.images` is uint8 [B, C, H, W] (`torch.from_numpy(records.images)` shares its memory),
    `records.labels` are classes. A `state_dict` after any batch is enough to continue behind it, at
    any number of ranks.
    """

    def __init__(
        self,
        source: str,
        batch_images: int,
        *,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        """`batch_images` is the global batch; `settings` are those of `data`, by default without
        held-out images.
        """
        self.stream = _opened(source, seed, settings)
        # Of the whole world, not of this rank: it holds at any number of ranks.
        self.position = 0
        self._batch_images, self._rank, self._world = batch_images, rank, world

    def __iter__(self) -> Iterator[Records]:
        # Each worker would run this iterator from the same position.
        if _loader_worker()[1] > 1:
            raise UsageError(
                "Batches in a DataLoader with several workers would give every batch once a worker:"
                " set num_workers = 0 (it reads ahead with threads of its own: readers = 2)"
            )
        for records in self.stream.batches(
            self.position, self._batch_images, self._rank, self._world
        ):
            # Before the yield: a state saved while a batch is in use continues behind that batch.
            self.position += self._batch_images
            yield records

    def __len__(self) -> int:
        """Batches of an epoch, the last one included if it reaches into the next epoch."""
        # Batches straddle epochs, so the last one of an epoch is never short.
        return -(-self.stream.records // self._batch_images)

    def state_dict(self) -> dict[str, Any]:
        """The position and what it is a position in."""
        # A position alone would silently continue in other images or in another order.
        return {"position": self.position, "data": self.stream.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; raise ValueError if it is of other images or another order."""
        if state["data"] != self.stream.fingerprint:
            raise ValueError("this state is of other images, or of another size or order of them")
        self.position = int(state["position"])


class Samples:
    """Endless encoded samples for webdataset: `wds.DataPipeline(Samples("shards/"), …)`.

    A sample is `{"__key__", "__url__", EXTENSION: bytes, "cls": bytes}`. Records come in the exact
    order of the seed, each checked against its checksum; what follows in the pipeline (decode, map,
    batch) is webdataset's.
    """

    def __init__(
        self,
        source: str,
        *,
        position: int = 0,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        """`position` counts the samples of all ranks together."""
        self._stream = _opened(source, seed, settings)
        self._position, self._rank, self._world = position, rank, world
        # Open shards, threads and the storage client do not pickle.
        self._made_by = partial(
            Samples, source, position=position, rank=rank, world=world, seed=seed, **settings
        )

    def __reduce__(self) -> Any:
        """To a spawned process goes what was asked for: it opens the shards itself."""
        return self._made_by, ()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Samples of the rank; the workers of a DataLoader divide them among themselves."""
        worker, workers = _loader_worker()
        return self._stream.samples(
            # Every worker of every rank is a rank of its own, so no two give the same sample.
            # DataLoader goes around its workers, which restores the order.
            self._position,
            self._rank + self._world * worker,
            self._world * workers,
        )

    __call__ = __iter__  # how a DataPipeline begins


def _loader_worker() -> tuple[int, int]:
    """Number of this PyTorch DataLoader worker, and how many there are; (0, 1) elsewhere."""
    # Loaded in every such worker; importing it here would import torch.
    data = sys.modules.get("torch.utils.data")
    about = data.get_worker_info() if data else None
    return (about.id, about.num_workers) if about else (0, 1)


def _opened(source: str, seed: int, settings: dict[str, Any]) -> Stream:
    # Another loop has its own validation set; without this a tenth of the images would be missing.
    # And it may have many processes that read, of which none knows of the others.
    own = {"held_out_fraction": 0.0, "readers": 1}
    data = replace(DataSettings(), source=source, **own | settings)
    return open_streams(prepare(data), seed, decoded=decoded_here(data))[0]
