"""Richer bounds, priors and adversaries of codes at work: equal for any number of ranks, and after
a resume.
"""

from pathlib import Path

import pytest

from tests.training.agreement import (
    PLAIN_STEPS,
    WAYS,
    Worlds,
    of_worlds,
    refuse_other_bits,
    refuse_other_worlds,
)
from tests.training.learn import asked, packed
from udl_dist.experiment import Experiment

METHODS: dict[str, dict[str, str]] = {
    "aae": {},
    "ae of masked patches": {
        "method__noise": "patches",
        "method__noise_level": "0.5",
        "method__patch": "2",
        **PLAIN_STEPS,
    },
    "ladder": {"train__skip_norm": "1000"},
    "vae by iwae": {"method__objective": "iwae", "method__binarise": "static"},
    "vae with vamp": {
        "method__likelihood": "logistic",
        "method__prior": "vamp",
        "method__pseudo_inputs": "5",
    },
}
pytestmark = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data"))


def wanted(name: str, source: Path, way: dict[str, str]) -> Experiment:
    return asked(name.split()[0], source, **METHODS[name], **way)


@pytest.fixture(scope="module")
def worlds(source: Path) -> Worlds:
    return of_worlds([wanted(name, source, way) for name in METHODS for way in WAYS])


@pytest.mark.long
def test_any_number_of_ranks_learns_the_same(name: str, worlds: Worlds) -> None:
    refuse_other_worlds(worlds, list(METHODS).index(name) * len(WAYS))


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS, ids=["parts", "elastic"])
def test_a_resume_has_the_same_bits(name: str, way: dict[str, str], source: Path) -> None:
    refuse_other_bits(wanted(name, source, way), (108,))
