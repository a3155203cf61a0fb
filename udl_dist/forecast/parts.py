"""The parts of a forecast, measured on one machine: a TOML file that may be looked at, edited and used elsewhere.

They hold for one job and for one share of a batch: what has a say in the time of a step is in their fingerprint.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

import tomli_w
import xxhash

from udl_dist import disk, settings
from udl_dist.errors import UsageError
from udl_dist.experiment import Experiment
from udl_dist.settings import setting

# Settings of training that leave the time of a step as it is.
FREE = ("batch_size", "total_images", "epochs", "seed", "learning_rate", "beta2", "weight_decay", "warmup_images",
        "schedule", "non_finite", "on_collapse", "report_images")  # fmt: skip
SHAPING = ("size", "channels", "fit", "random_crop", "flip")  # of the data: what the network and the decoder see


@dataclass(frozen=True)
class Parts:
    """Seconds, bytes and rates of one worker; the rates of links are 0 where there was nobody to send to."""

    job: str = setting("", "fingerprint of the settings that have a say in a step")
    images: int = setting(0, "of one worker in one step", low=1)
    device: str = setting("", "what computed: cpu, or the name of a GPU")
    processes: int = setting(0, "that worked at the same time, one a worker", low=1)
    compute_seconds: float = setting(
        0.0, "a step with readers beside it, without its waits for data and gradients", above=0
    )
    host_seconds: float = setting(0.0, "CPU seconds of a step besides decoding", low=0)
    decode_seconds: float = setting(0.0, "CPU seconds to read, check and decode one image", above=0)
    record_bytes: float = setting(0.0, "mean bytes of an encoded image", above=0)
    node_bytes_per_second: float = setting(0.0, "what storage gave to this machine", above=0)
    read_bytes: int = setting(0, "that this was measured on", low=0)
    reduces: float = setting(0.0, "all-reduces of gradients in a step", above=0)
    gradient_bytes: float = setting(0.0, "that a step sends", above=0)
    sync_seconds: float = setting(0.0, "a message from one worker to another; 0: not measured", low=0)
    link_bytes_per_second: float = setting(0.0, "what gradients travelled by; 0: not measured", low=0)
    checkpoint_bytes: int = setting(0, "of one checkpoint", low=1)
    copy_seconds: float = setting(0.0, "that a step stands still for a checkpoint to be copied", low=0)
    write_bytes_per_second: float = setting(0.0, "what a checkpoint was written with", above=0)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all; raise UsageError where that cannot be."""
        words = "# Measured by udl plan; taken up by udl plan JOB.toml --parts THIS_FILE\n"
        try:
            disk.write_whole(path, words + tomli_w.dumps(settings.to_dict(self)))
        except OSError as error:
            raise UsageError(f"cannot write the parts to {path}: {error.strerror}") from None


def load(path: Path, experiment: Experiment, images: int) -> Parts:
    """Read parts of this job with so many images a worker and step; raise UsageError for any others."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        parts = settings.from_dict(Parts, values)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}: measure parts with udl plan JOB.toml --save {path}") from None
    except OSError as error:
        raise UsageError(f"cannot read the parts in {path}: {error.strerror}") from None
    except ValueError as error:  # no UTF-8, no TOML, no part by that name, no such number
        raise UsageError(f"the parts in {path} are damaged: {error}: measure again with --save {path}") from None
    if missing := settings.kinds(Parts).keys() - values.keys():
        raise UsageError(f"the parts in {path} are damaged, {min(missing)} is missing: measure again with --save {path}"
                         )  # fmt: skip
    if parts.job != fingerprint(experiment):
        raise UsageError(f"the parts in {path} are of another job: method, shape of images and optimiser must be the "
                         f"same: measure again with --save {path}")  # fmt: skip
    if parts.images != images:
        raise UsageError(f"the parts in {path} are of {parts.images} images a worker and step, here it has {images}: "
                         f"measure again with --save {path}, or change train.batch_size")  # fmt: skip
    return parts


def fingerprint(experiment: Experiment) -> str:
    """A name for the settings that have a say in the time of a step, where the data lie not among them."""
    asked = experiment.to_dict()
    train = {name: value for name, value in asked["train"].items() if name not in FREE}
    shaping = {name: asked["data"][name] for name in SHAPING}
    told = [asked["method"], train, shaping, experiment.run.cpus_per_worker]
    return xxhash.xxh3_128_hexdigest(json.dumps(told, sort_keys=True).encode())
