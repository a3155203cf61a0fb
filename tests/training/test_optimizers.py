"""Optimiser steps: torch's own numbers, without the import of its compiler."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from udl_dist.training import optimizers


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_step_is_that_of_torch_to_the_bit_and_none_if_it_is_rejected(kind: type) -> None:
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    steppers = (
        kind(ours.parameters(), lr=0.1, fused=True),
        kind(theirs.parameters(), lr=0.1, fused=True),
    )
    for rejected in (0.0, 0.0, 1.0, 0.0):
        for network, optimizer in zip((ours, theirs), steppers, strict=True):
            network.zero_grad()
            network(torch.linspace(-1, 1, 10).view(2, 5)).square().sum().backward()
            optimizer.found_inf = torch.tensor(rejected)
        before = ours.weight.detach().clone()
        optimizers.step(steppers[0])
        steppers[1].step()
        assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
        assert torch.equal(ours.weight, before) == bool(rejected)


TRAINS = """
import sys
from pathlib import Path
from tests.training.learn import Run, asked, packed
list(Run(asked("ae", packed(Path(sys.argv[1])))).reports())
print("torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""


def test_a_lone_rank_trains_without_torchs_compiler_and_its_algebra(tmp_path: Path) -> None:
    # Their imports take 1.8 s of every start of a worker. DistributedDataParallel imports both.
    command = [sys.executable, "-c", TRAINS, str(tmp_path)]
    assert subprocess.check_output(command, text=True).split() == ["False", "False"]
