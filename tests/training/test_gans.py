"""GANs at work: equal for any number of ranks, in parts and after a resume, with buffers that
follow the step (spectral norm, the chance of `ada`), pairs, penalties and augmentation.
"""

from pathlib import Path

import pytest

from tests.training.agreement import (
    WAYS,
    Worlds,
    of_worlds,
    refuse_other_bits,
    refuse_other_worlds,
)
from tests.training.learn import Run, asked, packed
from udl_dist.experiment import Experiment

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
pytestmark = pytest.mark.parametrize("name", GANS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data"))


def wanted(name: str, source: Path, way: dict[str, str]) -> Experiment:
    return asked("gan", source, **GANS[name], **way)


@pytest.fixture(scope="module")
def worlds(source: Path) -> Worlds:
    return of_worlds([wanted(name, source, way) for name in GANS for way in WAYS])


@pytest.mark.long
def test_any_number_of_ranks_learns_the_same(name: str, worlds: Worlds) -> None:
    refuse_other_worlds(worlds, list(GANS).index(name) * len(WAYS))


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
    refuse_other_bits(wanted(name, source, way | {"train__total_images": "144"}), (60,))


def test_the_chance_of_ada_is_in_a_checkpoint(name: str, source: Path) -> None:
    state = Run(wanted(name, source, WAYS[0])).state()
    assert ("chance" in state["networks"]) == (name == "spectral")
