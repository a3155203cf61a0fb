"""Tokenizers at work: equal for any number of ranks while the adversary acts, and after a resume.

The discriminator learns from the fifth of twenty steps on, and acts from the tenth.
"""

from pathlib import Path

import pytest
import torch

from tests.training import gloo
from tests.training.learn import Run, asked, packed
from udl_dist.experiment import Experiment
from udl_dist.training.distributed import Ranks
from udl_dist.training.loop import LoopState

# Squares: the slope of |x| jumps at 0, and rounding decides on which side a pixel lies.
METHODS: dict[str, dict[str, str]] = {
    "kl": {"method__error": "l2"},
    # Half of the codes die in the first steps and are restarted.
    "vq": {"method__error": "l2", "method__quantizer__decay": "0.5"},
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
    kind = name.split()[0]
    return asked(kind, source, **METHODS[name], **way)


def trained(experiments: list[Experiment]) -> list[tuple[torch.Tensor, str]]:
    """Every number of the state, buffers too, and its hash after each training, on this rank."""
    found = []
    for experiment in experiments:
        run = Run(experiment, Ranks())
        list(run.reports(every=120, validate=120))
        # The bias of keys adds one number to all logits of a query, which softmax ignores: its
        # gradient is rounding alone, and Adam makes steps of it.
        state = {
            key: value
            for key, value in run.learning.method.saved_tensors().items()
            if not key.endswith("to_k.bias")
        }
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
        # Relative to numbers above 1: sums of latents reach 12, where floats are 1e-6 apart.
        difference = (plain - alone[place][0]).abs() / alone[place][0].abs().clamp(min=1)
        # Of vq one weight of three ranks is 1.02e-6 away: Adam makes a step of rounding.
        assert difference.max() <= (2e-6 if name == "vq" else 1e-6), f"{world} ranks"
        assert worlds[world][place + 1][1] == alone[place + 1][1], f"{world} ranks, elastic"


def refuse_other_bits(experiment: Experiment, stops: tuple[int, ...]) -> None:
    """Compare a whole run with runs that are cut after so many images and resumed."""
    whole = Run(experiment)
    list(whole.reports(every=240, validate=240))
    for stop in stops:
        first = Run(experiment)
        state, kept = LoopState(), {}
        for report in first.reports(every=240, validate=240, save_requested=lambda: True):
            if report.images == stop:
                state, kept = report.state, first.state()
                break
        second = Run(experiment)
        second.learning.restore(kept)
        list(second.reports(stop, every=240, validate=240, resumed=state))
        assert second.hash() == whole.hash(), f"cut after {stop} images"


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
