"""What a check found, for people and for machines."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from udl_dist.data.checking.examine import Damaged
from udl_dist.errors import DataError

SHOWN = 20  # things out of order that are printed; --json has all
LISTED = 1000  # groups of copies that --json lists


@dataclass(frozen=True)
class Looked:
    """What decoding showed."""

    sizes: dict[str, int]  # images by "WIDTH x HEIGHT"
    channels: dict[str, int]  # "1": all pixels gray, "3": colour
    constant: int  # images of one colour all over
    near_copies: int  # images that have another one within `near_bits`, exact copies not counted
    near_leaks: int  # such pairs between training and held-out images, counted in held-out ones


@dataclass(frozen=True)
class Findings:
    """What a check found; `damage` alone makes shards unfit, all else is for the reader to
    judge.
    """

    source: str
    shards: int
    total_bytes: int
    compared: int  # shards that an index has something of
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
    fixed: str  # in words, what was written
    seconds: float

    @property
    def exit_code(self) -> int:
        """What the command ends with."""
        return DataError.exit_code if self.damage else 0

    @property
    def lost(self) -> int:
        """Records of the index that cannot be read."""
        return sum(entry.lost for entry in self.damage)

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values, every damage included."""
        damage = [entry._asdict() for entry in self.damage]
        return {
            **dataclasses.asdict(self),
            "damage": damage,
            "lost": self.lost,
            "exit_code": self.exit_code,
        }

    def lines(self) -> list[str]:
        """The figures as a short table, and the first things out of order."""
        rows = [
            ("shards", f"{self.shards:,} of {self.total_bytes / 1e6:,.1f} MB in all"),
            *self._record_rows(),
        ]
        rows += self._copy_rows() + self._look_rows()
        rows += [("damage", f"{len(self.damage):,} found" if self.damage else "none")]
        if self.fixed:
            rows.append(("clean copy", self.fixed))
        lines = [f"{name:<16}{text}" for name, text in rows]
        lines += [f"  {entry.line()}" for entry in self.damage[:SHOWN]]
        more = len(self.damage) - SHOWN
        return [*lines, f"  and {more:,} more: --json lists all"] if more > 0 else lines

    def _record_rows(self) -> list[tuple[str, str]]:
        parts = ", ".join(f"{part or 'in all'} {count:,}" for part, count in self.records.items())
        rows = [("records", parts)]
        if self.compared:
            rows.append(
                (
                    "index",
                    f"{self.indexed:,} records, {self.readable:,} as indexed, {self.lost:,} lost",
                )
            )
        if self.undigested:
            rows.append(
                (
                    "older index",
                    (
                        f"of {self.undigested:,} shards: bytes outside of images are not compared"
                        " (udl index --again)"
                    ),
                )
            )
        if self.compared < self.shards:
            rows.append(
                (
                    "no index",
                    (
                        f"of {self.shards - self.compared:,} shards: nothing to compare their"
                        " images with"
                    ),
                )
            )
        if self.classes:
            rows.append(("classes", _counts(self.classes)))
        return rows

    def _copy_rows(self) -> list[tuple[str, str]]:
        rows = [
            (
                "exact copies",
                f"{self.copies:,} records repeat another one" if self.copies else "none",
            )
        ]
        if self.keys_again:
            rows.append(("keys", f"{self.keys_again:,} records have a key that came before"))
        if len(self.records) > 1:
            near = f", near copies {self.looked.near_leaks:,}" if self.looked else ""
            rows.append(
                (
                    "leaks",
                    f"held-out records that training has too: exact copies {self.leaks:,}{near}",
                )
            )
        return rows

    def _look_rows(self) -> list[tuple[str, str]]:
        if self.looked is None:
            return [("decoded", "no: --decode tries every image")]
        gray, colour = self.looked.channels.get("1", 0), self.looked.channels.get("3", 0)
        return [
            ("sizes", _counts(self.looked.sizes)),
            ("channels", f"gray {gray:,}, colour {colour:,}"),
            ("constant", f"{self.looked.constant:,} images of one colour"),
            ("near copies", f"{self.looked.near_copies:,} images look like another one"),
        ]


def _counts(counts: dict[str, int], most: int = 10) -> str:
    """The most frequent of some counts in one line."""
    ranked = sorted(counts.items(), key=lambda entry: -entry[1])
    shown = ", ".join(f"{name}: {count:,}" for name, count in ranked[:most])
    return f"{shown}, and {len(ranked) - most:,} more" if len(ranked) > most else shown
