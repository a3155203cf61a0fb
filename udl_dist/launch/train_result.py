"""How a run ended, for a person and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udl_dist import methods
from udl_dist.experiment import Experiment
from udl_dist.runs.run_folder import held_out
from udl_dist.storage.uris import name_of

SHOWN_FILES = ("experiment.toml", "curves.jsonl", "pictures", "checkpoints", "damaged.txt")


@dataclass(frozen=True)
class TrainResult:
    """The end of a run: images seen, held-out metrics, and the signal that stopped it (0: none).

    `name` is the run folder as it was given, `folder` the one on this disk.
    """

    name: str
    folder: Path
    images: int
    metrics: dict[str, float]
    signal: int = 0
    complete: bool = True
    about_samples: str = ""  # what to know of generated images, with commands on RUN

    @classmethod
    def of(
        cls, experiment: Experiment, folder: Path, outcome: Mapping[str, Any], signal: int = 0
    ) -> TrainResult:
        """The end of a run from what `worker.work` returned, or from its result.json."""
        return cls(
            experiment.run.folder,
            folder,
            outcome["images"],
            outcome["figures"],
            signal,
            not outcome.get("stopped", False),
            methods.find(experiment.method_name).about_samples,
        )

    @property
    def damaged(self) -> int:
        """Damaged records that were replaced by others."""
        listed = self.folder / "damaged.txt"
        return len(listed.read_text(encoding="utf-8").splitlines()) if listed.exists() else 0

    @property
    def exit_code(self) -> int:
        # As a shell has it. A signal after the last step has stopped nothing.
        return 128 + self.signal if self.signal and not self.complete else 0

    def lines(self) -> list[str]:
        """For a person: held-out metrics, where everything is, what to do next."""
        name = name_of(self.name)
        state = "complete" if self.complete else "stopped; the same command goes on"
        lines = [f"{name}: {state} after {self.images:,} images"]
        lines += [f"  {key} {value:.5g}" for key, value in held_out(self.metrics).items()]
        # Absent where nothing was left to train.
        if peak := self.metrics.get("perf/memory_bytes"):
            lines.append(f"  memory of a worker {peak / 2**20:,.0f} MiB")
        # Of a remote run `folder` is the working folder, which has only some of them.
        files = [file for file in SHOWN_FILES if (self.folder / file).exists()]
        lines.append(f"  in it: {', '.join(files)}")
        if self.damaged:
            lines.append(f"  {self.damaged:,} damaged records were replaced: damaged.txt")
        lines.append(
            f"  look at {name}/pictures; train further: --train.total_images or --train.epochs"
        )
        if self.about_samples:
            lines.append(f"  {self.about_samples.replace('RUN', name)}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        return {
            "folder": self.name,
            "images": self.images,
            "complete": self.complete,
            "figures": self.metrics,
        }
