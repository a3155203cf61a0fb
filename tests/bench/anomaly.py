"""python -m tests.bench.anomaly [--job JOB.toml] [--keep FOLDER] [--classes 0,1] [any setting]:
classes never seen are recognised as anomalies.

Each class is left out of training in turn; held-out images of it are anomalies, those of the others
normal. AUROC and what a threshold finds of each score, as means over the classes. Settings of the
job have a dot (`--data.source MNIST`, `--train.epochs 3`), those of `udl evaluate` have none
(`--neighbours 5`, `--train-images 0`). One worker, in this process, one run after the other; runs
in the folder that is stored are measured again, not trained again.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import udl_dist
from tests.trained import finished
from udl_dist import experiment as experiments
from udl_dist.core import config_schema
from udl_dist.errors import UdlError
from udl_dist.evaluation.settings import MetricSettings
from udl_dist.inference.evaluating import evaluate

JOB = Path(__file__).parent.parent.parent / "jobs" / "ae_digits.toml"
QUIET = {
    "track.mode": "off",
    "evaluate.pictures": "false",
    "run.workers": "1",
    "run.keep_checkpoints": "1",
}
Figures = dict[str, dict[str, Any]]


def flags(words: list[str]) -> tuple[dict[str, str], MetricSettings]:
    """`--name value` in pairs: those of the job, and those of the figures."""
    given = {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    figures = {name: value for name, value in given.items() if "." not in name}
    job = {name: value for name, value in given.items() if "." in name}
    return job, config_schema.from_flags(MetricSettings, {"families": "anomaly", **figures})


def without(
    label: str, path: Path, job: dict[str, str], wanted: MetricSettings, folder: Path
) -> Figures:
    """The figures of a run that never saw one class; trained unless it is there."""
    own = QUIET | job | {"data.without_labels": label, "run.folder": str(folder / label)}
    if not (folder / label).exists():
        finished(experiments.load(path, own))
    model = udl_dist.load(folder / label, checkpoint="last")
    found: Figures = evaluate(
        model, wanted, folder / label / "evaluation.json", lambda *_: None
    ).as_dict()["figures"]
    return found


def rows(figures: Figures) -> dict[str, float]:
    """AUROC of every score and of what stands next to it, and what its threshold finds."""
    found = {}
    for name, entry in figures.items():
        _, what, score = name.split("_", 2)
        found[score if what == "auroc" else f"{score}: found"] = entry["value"]
        if what == "auroc":
            found |= {f"beside: {floor}": value for floor, value in entry["floor"].items()}
    return dict(sorted(found.items(), key=lambda row: ("found" in row[0], "beside" in row[0])))


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--job", type=Path, default=JOB)
    parser.add_argument(
        "--keep", type=Path, help="folder of the runs; without it they are thrown away"
    )
    parser.add_argument("--classes", default="0,1,2,3,4,5,6,7,8,9")
    asked, rest = parser.parse_known_args()
    labels = asked.classes.split(",")
    with tempfile.TemporaryDirectory() as place:
        found = []
        for label in labels:
            began = time.perf_counter()
            try:
                found.append(
                    rows(without(label, asked.job, *flags(rest), asked.keep or Path(place)))
                )
            except UdlError as error:
                sys.exit(f"{error}")
            print(f"without {label}: {time.perf_counter() - began:.0f} s", flush=True)
    wide = max(map(len, found[0]))
    print(f"{'':{wide}}   mean   " + " ".join(f"{label:>5}" for label in labels))
    for name in found[0]:
        values = [one[name] for one in found]
        print(
            f"{name:{wide}}  {sum(values) / len(values):.3f}   "
            + " ".join(f"{value:.3f}" for value in values)
        )


if __name__ == "__main__":
    main()
