"""`udl plan`: a job, machines and parts joined into a forecast that tells apart what was measured, said and assumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, inf, prod
from pathlib import Path
from typing import Any

from udl_dist import session
from udl_dist.errors import UsageError
from udl_dist.experiment import Experiment
from udl_dist.forecast import measuring, model
from udl_dist.forecast import parts as measured_parts
from udl_dist.forecast.model import Inputs, Step
from udl_dist.forecast.parts import Parts
from udl_dist.forecast.settings import ForecastSettings
from udl_dist.forecast.table import Row, told
from udl_dist.packing.prepare import prepare, settled
from udl_dist.packing.survey import survey
from udl_dist.plan import Plan, plan

LEAST_READ_BYTES = 2**26  # of which storage says anything
INDEX_BYTES = 32  # of a record
ASKED, ASSUMED = "as you said", "assumed"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Forecast:
    """A run on those machines: its plan, the time of its steps, and where each number comes from."""

    plan: Plan
    inputs: Inputs
    step: Step
    parts: Parts
    rows: list[Row]
    cares: list[str]  # what to bear in mind
    checkpoint_images: int  # between two of them
    checkpoint_seconds: float  # likewise, at most
    read_ahead_bytes: int  # of one worker

    @property
    def images_per_second(self) -> float:
        return self.inputs.batch_images / self.step.seconds

    @property
    def epoch_seconds(self) -> float:
        """Of an epoch, with its part of validations and checkpoints."""
        steps = self.plan.records / self.inputs.batch_images
        return steps * self.step.seconds * (1 + self.plan.validation_share + self.stall_share)

    @property
    def between_seconds(self) -> float:
        """Between two checkpoints."""
        steps = max(1.0, self.checkpoint_images / self.inputs.batch_images)
        return min(self.checkpoint_seconds, steps * self.step.seconds)

    @property
    def stall_seconds(self) -> float:
        """That all workers stand still for a checkpoint."""
        return model.stall_seconds(self.inputs, self.between_seconds)

    @property
    def stall_share(self) -> float:
        """Part of the time of steps that checkpoints add to it."""
        return self.stall_seconds / self.between_seconds

    @property
    def memory_bytes(self) -> int:
        """Of one worker: its plan's, and what it reads ahead."""
        return self.plan.memory_bytes + self.read_ahead_bytes

    @property
    def index_bytes(self) -> int:
        """Of a machine: its workers map the same file, of which the kernel keeps what it has room for."""
        return INDEX_BYTES * self.plan.records

    def lines(self) -> list[str]:
        return told(self)

    def as_dict(self) -> dict[str, Any]:
        """The figures, and what they were worked out from."""
        given = self.inputs
        return {
            "workers": given.workers, "batch_size": self.plan.batch_size, "step_seconds": self.step.seconds,
            "images_per_second": self.images_per_second, "efficiency": model.efficiency(given),
            "data_wait_share": self.step.wait_seconds / self.step.seconds,
            "reduce_seconds": self.step.reduce_seconds, "limits": self.step.limits,
            "bottleneck": next(iter(self.step.limits)), "memory_bytes": self.memory_bytes,
            "index_bytes": self.index_bytes, "checkpoint_bytes": given.checkpoint_bytes,
            "checkpoint_seconds": given.checkpoint_bytes / given.write_bytes_per_second,
            "stall_seconds": self.stall_seconds, "records": self.plan.records,
            "epoch_seconds": self.epoch_seconds, "epoch_worker_hours": self.epoch_seconds * given.workers / 3600,
            "run_seconds": self.epoch_seconds * self.plan.total_images / self.plan.records,
            "parts": [vars(row) for row in self.rows], "cares": self.cares,
        }  # fmt: skip


def forecast(
    experiment: Experiment, asked: ForecastSettings, taken: Path | None = None, save: Path | None = None,
    progress: Progress | None = None,
) -> Forecast:  # fmt: skip
    """Measure the parts here, or take up those in `taken`, and work the forecast out; `save` keeps the parts.

    Raises what `udl train` would refuse too, UsageError for parts that do not fit, ClusterError where measuring fails.
    """
    _refuse(experiment, asked)
    experiment = experiment.replace(data=settled(experiment.data, progress))
    session.planned_of(experiment)
    workers = asked.workers_of_node(experiment.run.most_workers)
    world = asked.nodes * workers
    share = ceil(experiment.train.batch_size / experiment.run.most_workers)
    batch = share * world if asked.batch == "grows" else experiment.train.batch_size
    share = ceil(batch / world)
    there = experiment.replace(run=replace(experiment.run, workers=world),
                               train=replace(experiment.train, batch_size=batch))  # fmt: skip
    seen = survey(experiment.data)
    if asked.records:
        held_out = round(seen.held_out_records * asked.records / seen.records)
        seen = replace(seen, records=asked.records, held_out_records=held_out)
    planned = plan(there, seen)
    if taken:
        parts, origin = measured_parts.load(taken, there, share), f"measured, in {taken}"
    else:
        prepared = prepare(experiment.data, progress)
        parts, origin = measuring.measure(there, prepared, share, workers, asked.measure_seconds), "measured here"
    if save:
        parts.save(save)
    inputs, rows = _joined(experiment, asked, parts, origin, share)
    run, evaluate, data = there.run, there.evaluate, there.data
    between = run.checkpoint_images or evaluate.every_images or max(1, planned.total_images // 10)
    ahead = min(data.read_ahead_bytes, 2 * data.readers * share * prod(data.shape))
    return Forecast(planned, inputs, model.step(inputs), parts, rows, _cares(asked, parts),
                    min(between, planned.validate_images), run.checkpoint_seconds or inf, ahead)  # fmt: skip


def _refuse(experiment: Experiment, asked: ForecastSettings) -> None:
    """What cannot be worked out."""
    if experiment.data.sequential:
        raise UsageError("data.sequential: udl plan needs shards that can be indexed, to know records and their bytes")
    if experiment.run.determinism == "elastic":
        raise UsageError("run.determinism = elastic adds gradients up in a chain of 12 workers at most: no forecast is "
                         "made of that, leave it out")  # fmt: skip
    workers = asked.workers_of_node(experiment.run.most_workers)
    if 0 < asked.cpus_per_node < workers:
        raise UsageError(f"cpus_per_node = {asked.cpus_per_node} is less than {workers} workers: each needs a core")


def _joined(
    experiment: Experiment, asked: ForecastSettings, parts: Parts, origin: str, share: int
) -> tuple[Inputs, list[Row]]:
    """Every input of the model, and the rows that say where it comes from."""
    workers, run, rows = asked.workers_of_node(experiment.run.most_workers), experiment.run, list[Row]()

    def value(name: str, unit: str, found: float | None = None, note: str = "") -> float:
        said, here = getattr(asked, name, None), getattr(parts, name, 0.0) if found is None else found
        rows.append(Row(name, said or here, unit, ASKED if said else note or origin))
        return float(said or here)

    if asked.nodes * workers > 1:
        _refuse_unknown_link(asked, parts)
    cores = asked.cpus_per_node or workers * run.cpus_per_worker
    rows.append(Row("cpus_per_node", cores, "", ASKED if asked.cpus_per_node else "assumed: those the job asks for"))
    compute = value("compute_seconds", "s", note="" if _computed_there(asked, parts)
                    else f"{origin}, but by a CPU: no GPU was there")  # fmt: skip
    host = min(value("host_seconds", "s"), compute) if asked.compute_seconds else value("host_seconds", "s")
    decode = value("decode_seconds", "s")
    record_bytes = value("record_bytes", "B")
    cached = f"{origin}, {parts.read_bytes / 2**20:,.0f} MiB"
    node = value("node_bytes_per_second", "B/s", note=cached)
    every = value("storage_bytes_per_second", "B/s", node * asked.nodes, f"{ASSUMED}: to each machine as to one")
    gradients = value("gradient_bytes", "B")
    sync, link = 0.0, inf
    if asked.nodes * workers > 1:
        within = f"{origin}, within one machine" * bool(asked.nodes > 1)
        sync, link = value("sync_seconds", "s", note=within), value("link_bytes_per_second", "B/s", note=within)
    written = value("write_bytes_per_second", "B/s")
    inputs = Inputs(
        asked.nodes, workers, cores, share, experiment.data.readers, compute,
        host, decode, record_bytes, node, every, parts.reduces, gradients, sync, link, parts.checkpoint_bytes,
        parts.copy_seconds, written,
    )  # fmt: skip
    return inputs, rows


def _refuse_unknown_link(asked: ForecastSettings, parts: Parts) -> None:
    if not (parts.link_bytes_per_second or (asked.link_bytes_per_second and asked.sync_seconds)):
        raise UsageError("how gradients travel was not measured, for there was place for one worker: give "
                         "--link-bytes-per-second and --sync-seconds")  # fmt: skip


def _computed_there(asked: ForecastSettings, parts: Parts) -> bool:
    """Whether a step was measured on the kind of device that is planned for."""
    return bool(asked.compute_seconds) or (parts.device != "cpu") == bool(asked.gpus_per_node)


def _cares(asked: ForecastSettings, parts: Parts) -> list[str]:
    cares = []
    if not _computed_there(asked, parts):
        kind = "GPUs are planned for, but steps were measured on a CPU" if asked.gpus_per_node else \
            f"CPUs are planned for, but steps were measured on {parts.device}"  # fmt: skip
        cares.append(f"{kind}: measure there (udl plan JOB.toml --save FILE, then --parts FILE), or give "
                     "--compute-seconds")  # fmt: skip
    if asked.nodes > 1 and not asked.link_bytes_per_second:
        cares.append("no network was measured: give --link-bytes-per-second (a network card of 100 Gbit/s: 12.5e9)")
    if asked.record_bytes and not parts.record_bytes / 2 < asked.record_bytes < parts.record_bytes * 2:
        cares.append(f"decoding was measured on records of {parts.record_bytes:,.0f} bytes, these have "
                     f"{asked.record_bytes:,.0f}: name images like them as data.source")  # fmt: skip
    far = asked.nodes > 1 or asked.records or asked.record_bytes
    if far and not asked.node_bytes_per_second and parts.read_bytes < LEAST_READ_BYTES:
        cares.append(f"storage was measured on no more than {parts.read_bytes / 2**20:,.0f} MiB: name more data as "
                     "data.source, or give --node-bytes-per-second")  # fmt: skip
    return cares
