"""Tokenizers at work: equal for any number of ranks while the adversary acts, and after a resume.

The discriminator learns from the fifth of twenty steps on, and acts from the tenth.
"""

from pathlib import Path

import pytest
import torch

from tests.training.agreement import (
    PLAIN_STEPS,
    WAYS,
    Worlds,
    of_worlds,
    refuse_other_bits,
    refuse_other_worlds,
)
from tests.training.learn import Run, asked, packed
from udl_dist.experiment import Experiment

# Squares: the slope of |x| jumps at 0, and rounding decides on which side a pixel lies.
METHODS: dict[str, dict[str, str]] = {
    "kl": {"method__error": "l2"},
    # Half of the codes die in the first steps and are restarted.
    "vq": {"method__error": "l2", "method__quantizer__decay": "0.5"}
    | {**PLAIN_STEPS, "train__learning_rate": "0.01"},
}
pytestmark = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data"))


def wanted(name: str, source: Path, way: dict[str, str]) -> Experiment:
    kind = name.split()[0]
    return asked(kind, source, **METHODS[name], **way)


@pytest.fixture(scope="module")
def worlds(source: Path) -> Worlds:
    return of_worlds([wanted(name, source, way) for name in METHODS for way in WAYS])


@pytest.mark.long
def test_any_number_of_ranks_learns_the_same(name: str, worlds: Worlds) -> None:
    refuse_other_worlds(worlds, list(METHODS).index(name) * len(WAYS), relative=name == "vq")


def test_a_resume_at_a_switch_has_the_same_bits(name: str, source: Path) -> None:
    refuse_other_bits(wanted(name, source, WAYS[0]), (60, 120))


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS, ids=["parts", "elastic"])
def test_a_resume_before_and_after_the_switches_has_the_same_bits(
    name: str, way: dict[str, str], source: Path
) -> None:
    refuse_other_bits(wanted(name, source, way), (48, 72, 108, 120, 132, 180))


def test_the_adversary_changes_what_the_autoencoder_learns(name: str, source: Path) -> None:
    found = []
    for acts in ("120", "240"):
        way = {"method__adversary__acts_after_images": acts}
        run = Run(wanted(name, source, way))
        list(run.reports(every=240, validate=240))
        state = run.learning.method.saved_tensors()
        assert bool(state["adversary.factor"] > 0) == (acts == "120")
        found.append(state["decoder.conv_out.weight"])
    one, other = found
    assert not torch.allclose(one, other)
