"""A forecast as a person reads it: what comes out, what it was worked out from, and where each number comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from udl_dist.forecast import model

if TYPE_CHECKING:
    from udl_dist.forecast.forecast import Forecast


@dataclass(frozen=True)
class Row:
    """One number that a forecast was worked out from."""

    name: str
    value: float
    unit: str
    origin: str  # measured, as you said, or assumed


def told(forecast: Forecast) -> list[str]:
    """The forecast in lines."""
    given, step, plan = forecast.inputs, forecast.step, forecast.plan
    first, *others = step.limits.items()
    kind = "GPU" if forecast.parts.device != "cpu" else "CPU"
    stall = forecast.stall_seconds
    next_one = f"; next {others[0][0]}, at {first[1] / others[0][1]:,.3g} times this speed" if others else ""
    efficiency = f", {100 * model.efficiency(given):.0f} % of {given.workers:,} times one worker" * (given.workers > 1)
    machines = f"{given.nodes:,} machine{'s' * (given.nodes > 1)}"
    return [
        f"workers      {given.workers:,}: {machines} of {given.workers_per_node}, {given.cpus_per_node} cores each; "
        f"{given.images:g} images each a step, train.batch_size = {plan.batch_size:,}",
        f"images/s     {forecast.images_per_second:,.0f}{efficiency}",
        f"step         {seconds(step.seconds)}: {seconds(given.compute_seconds)} computing, "
        f"{seconds(step.reduce_seconds)} sending gradients, {seconds(step.wait_seconds)} waiting for data "
        f"({100 * step.wait_seconds / step.seconds:.0f} %)",
        f"bottleneck   {first[0]}{next_one}",
        f"epoch        {plan.records:,} images in {clock(forecast.epoch_seconds)}, "
        f"{forecast.epoch_seconds * given.workers / 3600:,.3g} worker-hours; the run, {plan.steps:,} steps, in "
        f"{clock(forecast.epoch_seconds * plan.total_images / plan.records)}",
        f"validations  {100 * plan.validation_share:.2g} % of that",
        f"checkpoints  {size(given.checkpoint_bytes)}, written in "
        f"{seconds(given.checkpoint_bytes / given.write_bytes_per_second)} beside the training, which stands still for "
        f"{seconds(stall)}",
        f"memory       about {size(forecast.memory_bytes)} a worker, "
        f"{size(forecast.read_ahead_bytes)} of it read ahead; index {size(forecast.index_bytes)} a machine, mapped",
        "",
        f"worked out from ({kind}, {forecast.parts.processes} of {given.workers:,} workers measured):",
        *(f"  {row.name:25} {number(row):>12}  {row.origin}" for row in forecast.rows),
        *(f"take care: {care}" for care in forecast.cares),
    ]  # fmt: skip


def number(row: Row) -> str:
    """A value with its unit."""
    if row.unit == "s":
        return seconds(row.value)
    return size(row.value) + row.unit.removeprefix("B") if row.unit else f"{row.value:,g}"


def seconds(value: float) -> str:
    """A short time."""
    unit, each = next((pair for pair in (("s", 1.0), ("ms", 1e-3)) if value >= pair[1]), ("µs", 1e-6))
    return f"{value / each:.3g} {unit}" if value else "0 s"


def clock(value: float) -> str:
    """A long time."""
    if value < 120:
        return seconds(value)
    return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:,.3g} h"


def size(value: float) -> str:
    """Bytes."""
    units = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
    unit, each = next((pair for pair in units if value >= pair[1]), ("B", 1))
    return f"{value / each:,.3g} {unit}" if value / each < 1000 else f"{value / each:,.0f} {unit}"
