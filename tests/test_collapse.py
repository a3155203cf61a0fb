"""Alarms of methods that come to nothing: by crafted figures, and by a run that really collapses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.learn import asked, packed
from udl_dist import methods
from udl_dist.errors import TrainingError
from udl_dist.methods import Method
from udl_dist.packing.prepare import prepare
from udl_dist.runs import RunFolder
from udl_dist.training.ranks import Ranks
from udl_dist.worker import work


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data"))


def made(name: str, **flags: str) -> Method:
    experiment = asked(name, Path("x"), **flags)
    return methods.find(name)(experiment.method, (1, 8, 8))


def test_posterior_collapse_is_seen_but_not_during_the_warm_up() -> None:
    method = made("vae", method__warmup_images="100")
    assert method.alarms({"val/kl": 0.01}, 50) == {}
    assert method.alarms({"val/kl": 3.0}, 200) == {}
    assert method.alarms({"val/kl": 0.01}, 200)["posterior collapse"].startswith("KL 0.01 nats over 4 latents: lower")


def test_a_discriminator_that_wins_is_seen() -> None:
    method = made("gan")
    assert method.alarms({"train/real_logit": 2.0, "train/fake_logit": -9.0}, 0) == {}
    line = method.alarms({"train/real_logit": 9.0, "train/fake_logit": -12.0}, 0)["the discriminator wins"]
    assert line.startswith("real 9, generated -12 (logits): lower method.discriminator_rate")


def test_a_vae_that_collapses_is_told_once_or_stopped(source: Path, tmp_path: Path) -> None:
    flags = {"track__mode": "off", "method__beta": "1000", "train__learning_rate": "0.01",
             "train__total_images": "2400", "evaluate__every_images": "600"}  # fmt: skip
    experiment = asked("vae", source, run__folder=str(tmp_path / "warned"), **flags)
    (tmp_path / "warned").mkdir()
    work(experiment, prepare(experiment.data), Ranks())
    said = RunFolder(tmp_path / "warned").messages.read_text()
    assert said.count("ALARM: posterior collapse after ") == 1
    (tmp_path / "stopped").mkdir()
    experiment = asked("vae", source, run__folder=str(tmp_path / "stopped"), train__on_collapse="stop", **flags)
    with pytest.raises(TrainingError, match=r"posterior collapse after \d+ images: KL .* lower method.beta"):
        work(experiment, prepare(experiment.data), Ranks())
