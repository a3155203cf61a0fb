"""What a rank takes in memory while it trains, by the cost of its method."""

from __future__ import annotations

from dataclasses import dataclass

from udl_dist.methods.method import Method
from udl_dist.methods.networks.sizes import Cost
from udl_dist.training.settings import TrainSettings

FLOAT_BYTES = 4
# A rank before it has a network: Python, torch, Ray and W&B, measured as the least
# `perf/memory_bytes` of small runs.
IDLE_BYTES = 320 * 2**20
USABLE = 0.8  # of a device's memory: an estimate misses workspaces and fragments


@dataclass(frozen=True)
class StepMemory:
    """Memory of a step: whatever the batch, and for each image that is computed at once."""

    fixed_bytes: int
    image_bytes: int

    @staticmethod
    def of(method: Method, cost: Cost, train: TrainSettings) -> StepMemory:
        """The memory of a method on the meta device."""
        weights = sum(weight.numel() for weight in method.parameters())
        # Weights, gradients and the optimiser's two moments; the moving average is one more copy.
        copies = 4 + bool(train.average_half_life)
        return StepMemory(IDLE_BYTES + FLOAT_BYTES * copies * weights, cost.activation_bytes)

    def rows_in(self, memory_bytes: int) -> int:
        """How many images at once fit into a memory; 0: none, or it is not known."""
        free = int(USABLE * memory_bytes) - self.fixed_bytes
        return max(0, free // self.image_bytes) if self.image_bytes else 0
