"""GANs at work: equal for any number of ranks, in parts and after a resume, with buffers that
follow the step (spectral norm, the chance of `ada`), pairs, penalties and augmentation.
"""

from pathlib import Path

import pytest
import torch

from tests.training import gloo
from tests.training.learn import Run, asked, packed
from udl_dist.experiment import Experiment
from udl_dist.training.distributed import Ranks
from udl_dist.training.loop import LoopState

CONV = {"method__discriminator": "conv", "method__network__activation": "silu"}
CONV |= {"method__dropout": "0.3", "method__latent_dim": "4"}
# Smooth layers: at the kink of a leaky ReLU, rounding would become a step of Adam.
GANS: dict[str, dict[str, str]] = {
    "relativistic": CONV
    | {"method__loss": "relativistic", "method__r2": "1", "method__discriminator_steps": "2"}
    | {"method__augment": "diffaug", "method__augment_by": "color,cutout"}
    | {"method__r1_end": "0.1", "method__decay_images": "120"},
    "spectral": CONV
    | {"method__loss": "least_squares", "method__r1": "0", "method__spectral_norm": "true"}
    | {"method__augment": "ada", "method__ada_images": "400", "method__ada_target": "0"},
    "wasserstein": CONV
    | {"method__loss": "wasserstein", "method__r1": "0", "method__gradient_penalty": "10"},
}
# Of each way to add up a step: by DDP in parts, with an average; and elastic.
WAYS = (
    {"train__accumulate": "2", "train__average_half_life": "60"},
    {"run__determinism": "elastic"},
)
pytestmark = pytest.mark.parametrize("name", GANS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data"))


def wanted(name: str, source: Path, way: dict[str, str]) -> Experiment:
    return asked("gan", source, **GANS[name], **way)


def trained(experiments: list[Experiment]) -> list[tuple[torch.Tensor, str]]:
    """Every number of the state, buffers too, and its hash after each training, on this rank."""
    found = []
    for experiment in experiments:
        run = Run(experiment, Ranks())
        list(run.reports(every=120, validate=120))
        state = run.learning.method.saved_tensors().values()
        found.append((torch.cat([v.double().flatten() for v in state]), run.hash()))
    return found


@pytest.fixture(scope="module")
def worlds(source: Path) -> dict[int, list[tuple[torch.Tensor, str]]]:
    """What each number of ranks learned: of every GAN the plain and the elastic way."""
    experiments = [wanted(name, source, way) for name in GANS for way in WAYS]
    return {world: gloo.run(world, trained, experiments, seconds=300)[0] for world in (1, 2, 3)}


@pytest.mark.long
def test_any_number_of_ranks_learns_the_same(
    name: str, worlds: dict[int, list[tuple[torch.Tensor, str]]]
) -> None:
    place, alone = list(GANS).index(name) * len(WAYS), worlds[1]
    for world in (2, 3):
        plain, _ = worlds[world][place]
        assert (plain - alone[place][0]).abs().max() <= 1e-6, f"{world} ranks"
        assert worlds[world][place + 1][1] == alone[place + 1][1], f"{world} ranks, elastic"


def test_parts_of_a_step_learn_what_the_whole_does(name: str, source: Path) -> None:
    weights = []
    for parts in ("1", "3"):
        run = Run(wanted(name, source, {"train__accumulate": parts, "train__total_images": "60"}))
        list(run.reports(every=60, validate=60))
        weights.append(run.weights())
    assert (weights[0] - weights[1]).abs().max() <= 1e-6


@pytest.mark.parametrize(
    "way", [WAYS[0], pytest.param(WAYS[1], marks=pytest.mark.long)], ids=["parts", "elastic"]
)
def test_a_resume_has_the_same_bits(name: str, way: dict[str, str], source: Path) -> None:
    experiment = wanted(name, source, way | {"train__total_images": "144"})
    whole = Run(experiment)
    saved, state = {}, LoopState()
    for report in whole.reports(every=144, validate=144, save_requested=lambda: True):
        if report.images == 60:
            saved, state = whole.state(), report.state
    assert ("chance" in saved["networks"]) == (name == "spectral")
    again = Run(experiment)
    again.learning.restore(saved)
    list(again.reports(60, every=144, validate=144, resumed=state))
    assert again.hash() == whole.hash()
