"""Richer bounds, priors and adversaries of codes at work: equal for any number of ranks, and after
a resume.
"""

from pathlib import Path

import pytest
import torch

from tests.training import gloo
from tests.training.learn import Run, asked, packed
from udl_dist.experiment import Experiment
from udl_dist.training.distributed import Ranks
from udl_dist.training.loop import LoopState

METHODS: dict[str, dict[str, str]] = {
    "aae": {},
    "ae of masked patches": {
        "method__noise": "patches",
        "method__noise_level": "0.5",
        "method__patch": "2",
    },
    "ladder": {"train__skip_norm": "1000"},
    "vae by iwae": {"method__objective": "iwae", "method__binarise": "static"},
    "vae with vamp": {
        "method__likelihood": "logistic",
        "method__prior": "vamp",
        "method__pseudo_inputs": "5",
    },
}
# Of each way to add up a step: by DDP in parts, with an average; and elastic.
WAYS = (
    {"train__accumulate": "2", "train__average_half_life": "60"},
    {"run__determinism": "elastic"},
)
pytestmark = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data"))


def wanted(name: str, source: Path, way: dict[str, str]) -> Experiment:
    return asked(name.split()[0], source, **METHODS[name], **way)


def trained(experiments: list[Experiment]) -> list[tuple[torch.Tensor, str]]:
    """Every number of the state, buffers too, and its hash after each training, on this rank."""
    found = []
    for experiment in experiments:
        run = Run(experiment, Ranks())
        list(run.reports(every=120, validate=120))
        state = run.learning.method.saved_tensors()
        found.append((torch.cat([v.double().flatten() for v in state.values()]), run.hash()))
    return found


@pytest.fixture(scope="module")
def worlds(source: Path) -> dict[int, list[tuple[torch.Tensor, str]]]:
    """What each number of ranks learned: of every method the plain and the elastic way."""
    experiments = [wanted(name, source, way) for name in METHODS for way in WAYS]
    return {world: gloo.run(world, trained, experiments, seconds=300)[0] for world in (1, 2, 3)}


@pytest.mark.long
def test_any_number_of_ranks_learns_the_same(
    name: str, worlds: dict[int, list[tuple[torch.Tensor, str]]]
) -> None:
    place = list(METHODS).index(name) * len(WAYS)
    alone = worlds[1]
    for world in (2, 3):
        plain, _ = worlds[world][place]
        # A fault of ranks moves weights by a learning rate, 1e-3; rounding of a gradient that is
        # near Adam's epsilon by up to 1e-6.
        assert (plain - alone[place][0]).abs().max() <= 1e-5, f"{world} ranks"
        assert worlds[world][place + 1][1] == alone[place + 1][1], f"{world} ranks, elastic"


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS, ids=["parts", "elastic"])
def test_a_resume_has_the_same_bits(name: str, way: dict[str, str], source: Path) -> None:
    experiment = wanted(name, source, way)
    whole = Run(experiment)
    list(whole.reports(every=240, validate=240))
    first = Run(experiment)
    state, kept = LoopState(), {}
    for report in first.reports(every=240, validate=240, save_requested=lambda: True):
        if report.images == 108:
            state, kept = report.state, first.state()
            break
    second = Run(experiment)
    second.learning.restore(kept)
    list(second.reports(108, every=240, validate=240, resumed=state))
    assert second.hash() == whole.hash()
