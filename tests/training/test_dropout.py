"""What draws from torch's own generators: the same after a resume, another in each step and on each
rank.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import gloo
from tests.training.learn import Run, asked
from udl_dist.experiment import Experiment
from udl_dist.methods.method import Batch
from udl_dist.training.distributed import Ranks


@pytest.mark.parametrize("determinism", ["world", "elastic"])
def test_dropout_after_a_resume_is_what_it_would_have_been(determinism: str, source: Path) -> None:
    experiment = asked("gan", source, method__dropout="0.3", run__determinism=determinism)
    whole, half = Run(experiment), {}
    for report in whole.reports():
        if report.images == 120:
            half = whole.state()
    torch.manual_seed(99)  # whatever this process drew before
    again = Run(experiment)
    again.learning.restore(half)
    torch.rand(7)
    list(again.reports(120))
    assert again.hash() == whole.hash()


def test_it_is_so_too_where_the_first_phase_is_not_due_in_each_step(source: Path) -> None:
    experiment = asked("gan", source, method__dropout="0.3")

    def run(start: int, state: Any = None) -> tuple[Run, dict[int, Any]]:
        made, found = Run(experiment), dict[int, Any]()
        object.__setattr__(made.learning.phases[0].phase, "every", 2)
        if state:
            made.learning.restore(state)
        torch.manual_seed(start)  # whatever this process drew before
        for report in made.reports(start):
            found[report.images] = made.state()
        return made, found

    whole, states = run(0)
    # After 132 images step 11 is next: the second phase alone, whose discriminator has dropout.
    assert run(132, states[132])[0].hash() == whole.hash()


def test_each_step_of_each_rank_draws_from_a_seed_of_its_own(source: Path) -> None:
    ranks = gloo.run(2, seeds, asked("ae", source))
    assert all(len(set(seeds_)) == 20 for seeds_ in ranks)
    assert not set(ranks[0]) & set(ranks[1])


def seeds(experiment: Experiment) -> list[int]:
    """What torch's generator was seeded with in each of twenty steps."""
    run, found = Run(experiment, Ranks()), list[int]()
    loss = run.learning.phases[0].phase.loss

    def noted(batch: Batch) -> Any:
        found.append(torch.initial_seed())
        return loss(batch)

    for turn in run.learning.phases:
        object.__setattr__(turn.phase, "loss", noted)
    list(run.reports(validate=10**9))
    return found[-20:]  # the first was to warm up
