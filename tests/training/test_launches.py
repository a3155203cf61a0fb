"""What a step dispatches besides the method's own arithmetic: on a GPU each call is a launch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.training.learn import Run, asked, packed
from udl_dist.training.batches import dummy_batch

STEPS, BATCH = 32, 12
VIEWS = set(
    """
    view detach t slice alias unsqueeze squeeze expand transpose as_strided split unbind select
    permute _unsafe_view _local_scalar_dense empty empty_like lift_fresh
    _record_function_enter_new _record_function_exit
    """.split()  # noqa: SIM905
)


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that compute something."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "flags",
    [
        {"method__network__norm": "group", "train__average_half_life": "0"},
        {"method__network__norm": "batch"},
    ],
)
def test_a_step_has_few_launches_more_than_a_bare_loop_of_the_same_loss(
    flags: dict[str, str], tmp_path: Path
) -> None:
    conv = {"method__network__kind": "conv", "method__network__widths": "8,16"} | flags
    run = Run(asked("vae", packed(tmp_path, 800), train__total_images="100000", **conv))
    reports = run.reports(every=STEPS * BATCH, validate=10**9)
    next(reports)
    with Launches() as ours:  # type: ignore[no-untyped-call]
        next(reports)
    (phase,) = run.learning.phases
    optimizer = torch.optim.Adam(phase.parameters(), fused=True)
    images = dummy_batch(run.learning.method, BATCH, torch.device("cpu"))
    with Launches() as bare:  # type: ignore[no-untyped-call]
        for _ in range(STEPS):
            images.images.clone()  # a batch from memory
            optimizer.zero_grad()
            phase.phase.loss(images).value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    # Noise is drawn in the loss; the bare loop would draw it in one call.
    drawn = 39 * STEPS
    assert ours.count <= 1.15 * (bare.count - drawn)
