"""The result of a check, for people and for programs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from udl_dist.errors import DataError

SHOWN = 20  # entries of damage that are printed; --json has all
LISTED = 1000  # groups of copies that --json lists


class Damaged(NamedTuple):
    """Damage at one place of a shard."""

    shard: str
    at: int  # byte
    key: str  # escaped; empty if it is not known
    what: str
    lost: int  # records of the index that cannot be read because of it

    def line(self) -> str:
        key = f", key {self.key}" if self.key else ""
        return f"shard {self.shard!r} at byte {self.at}{key}: {self.what}"


@dataclass(frozen=True)
class Looked:
    """What decoding showed."""

    sizes: dict[str, int]  # images by "WIDTH x HEIGHT"
    channels: dict[str, int]  # "1": all pixels gray, "3": colour
    constant: int  # images of one colour all over
    near_copies: int  # images that have another one within `near_bits`, exact copies not counted
    near_leaks: int  # such pairs between training and held-out images, counted in held-out ones

    def rows(self) -> dict[str, str]:
        """Its part of the table."""
        gray, colour = self.channels.get("1", 0), self.channels.get("3", 0)
        return {
            "sizes": _counts(self.sizes),
            "channels": f"gray {gray:,}, colour {colour:,}",
            "constant": f"{self.constant:,} images of one colour",
            "near copies": f"{self.near_copies:,} images look like another",
        }


@dataclass(frozen=True)
class Findings:
    """What a check found; only `damage` makes shards unfit, the user judges the rest."""

    source: str
    shards: int
    total_bytes: int
    compared: int  # shards that an index names
    undigested: int  # of those, shards of which the index has no digest, as older releases wrote it
    indexed: int  # records that the indexes have
    # of those, the ones whose bytes are what was indexed, and decode if that was asked for
    readable: int
    records: dict[str, int]  # that can be read, by part, whether indexed or not
    classes: dict[str, int]  # records by label
    keys_again: int  # records whose key an earlier one has
    copies: int  # records that are an earlier one to the byte
    copied: list[list[str]]  # which, in groups
    leaks: int  # held-out records that are a training record to the byte
    damage: list[Damaged]
    looked: Looked | None
    fixed: str = ""  # what was written, for people
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        return DataError.exit_code if self.damage else 0

    @property
    def lost(self) -> int:
        """Records of the index that cannot be read."""
        return sum(entry.lost for entry in self.damage)

    def as_dict(self) -> dict[str, Any]:
        """All counts and all damage as plain values."""
        # asdict leaves named tuples as tuples, which JSON would write as nameless lists.
        damage = [entry._asdict() for entry in self.damage]
        derived = {"damage": damage, "lost": self.lost, "exit_code": self.exit_code}
        return dataclasses.asdict(self) | derived

    def lines(self) -> list[str]:
        """The counts as a short table, and the first damage."""
        looked, damage = self.looked, self.damage
        near = f", near copies {looked.near_leaks:,}" if looked else ""
        parts = ", ".join(f"{part or 'in all'} {count:,}" for part, count in self.records.items())
        counts = f"{self.indexed:,} records, {self.readable:,} as indexed, {self.lost:,} lost"
        older = f"of {self.undigested:,} shards: bytes outside of images are not compared"
        without = self.shards - self.compared
        # Empty and 0 entries are left out below: a table of what there is to say.
        rows = {
            "shards": f"{self.shards:,} of {self.total_bytes / 1e6:,.1f} MB in all",
            "records": parts,
            "index": self.compared and counts,
            "older index": self.undigested and f"{older} (udl index --again)",
            "no index": without and f"of {without:,} shards: nothing to compare their images with",
            "classes": _counts(self.classes),
            "exact copies": f"{self.copies:,} records repeat another" if self.copies else "none",
            "keys": self.keys_again and f"{self.keys_again:,} records have the key of another",
            "leaks": len(self.records) > 1
            and f"held-out records that training has too: exact copies {self.leaks:,}{near}",
            **(looked.rows() if looked else {"decoded": "no: --decode tries every image"}),
            "damage": f"{len(damage):,} found" if damage else "none",
            "clean copy": self.fixed,
        }
        lines = [f"{name:<16}{text}" for name, text in rows.items() if text]
        lines += [f"  {entry.line()}" for entry in damage[:SHOWN]]
        more = len(damage) - SHOWN
        return [*lines, f"  and {more:,} more: --json lists all"] if more > 0 else lines


def _counts(counts: dict[str, int], most: int = 10) -> str:
    """The most frequent of some counts in one line."""
    ranked = sorted(counts.items(), key=lambda entry: -entry[1])
    shown = ", ".join(f"{name}: {count:,}" for name, count in ranked[:most])
    return f"{shown}, and {len(ranked) - most:,} more" if len(ranked) > most else shown
