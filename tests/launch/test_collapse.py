"""Alarms of methods that come to nothing: by crafted figures, and by a run that really
collapses.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import gloo
from tests.training.learn import Run, asked, packed
from udl_dist import methods
from udl_dist.core import rng
from udl_dist.data.packing.prepare import prepare
from udl_dist.errors import TrainingError
from udl_dist.experiment import Experiment
from udl_dist.launch.worker import work
from udl_dist.methods.method import Batch, Method
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training.batches import to_batch
from udl_dist.training.distributed import Ranks
from udl_dist.training.validation import validate


def made(name: str, **flags: str) -> Method:
    experiment = asked(name, Path("x"), **flags)
    return methods.find(name)(experiment.method, (1, 8, 8))


def test_posterior_collapse_is_seen_but_not_during_the_warm_up() -> None:
    method = made("vae", method__warmup_images="100")
    assert method.alarms({"val/kl": 0.01}, 50) == {}
    assert method.alarms({"val/kl": 3.0}, 200) == {}
    assert method.alarms({"val/kl": 0.01}, 200)["posterior collapse"].startswith(
        "KL 0.01 nats: lower"
    )


def test_a_discriminator_that_wins_is_seen() -> None:
    method = made("gan")
    assert method.alarms({"train/real_logit": 2.0, "train/fake_logit": -9.0}, 0) == {}
    line = method.alarms({"train/real_logit": 9.0, "train/fake_logit": -12.0}, 0)[
        "the discriminator wins"
    ]
    assert line.startswith(
        "real 9, generated -12 (logits), its loss inf: lower method.discriminator_rate"
    )


@pytest.mark.parametrize("loss", [0.003, 0.02])
def test_a_discriminator_that_makes_no_error_has_won_at_smaller_logits(loss: float) -> None:
    """As seen for 25,000 images of two runs that made garbage."""
    figures = {"train/real_logit": 6.0, "train/fake_logit": -5.0, "train/discriminator": loss}
    assert list(made("gan").alarms(figures, 5_000)) == ["the discriminator wins"]
    # healthy, soon after the start
    assert made("gan").alarms(figures | {"train/discriminator": 0.09}, 5_000) == {}


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (
            {"val/contrast": 3.5},
            "3.5 times the contrast and 1 times the fine detail of real ones: set method.r1",
        ),
        ({"val/contrast": 5.4}, "5.4 times the contrast"),
        ({"val/detail": 12.0}, "12 times the fine detail of real ones: set method.r1"),
        (
            {"val/detail": 0.04},
            "0.04 times the fine detail of real ones, they are blurred: train longer",
        ),
        # Mosaics of the right contrast and detail, on drawn faces.
        ({"val/frechet_share": 0.41}, "0.41 of the variance of real ones away from them: train"),
    ],
)
def test_generated_images_unlike_real_ones_are_reported_from_both_sides(
    figures: dict[str, float], words: str
) -> None:
    assert made("gan").alarms(HEALTHY | figures, 5_000) == {}  # a generator starts with noise
    alarms = made("gan").alarms(HEALTHY | figures, 25_000)
    assert list(alarms) == ["unlike real images"]
    assert words in alarms["unlike real images"]


def test_a_vae_that_collapses_is_reported_once_or_stopped(source: Path, tmp_path: Path) -> None:
    flags = {
        "track__mode": "off",
        "method__beta": "1000",
        "train__learning_rate": "0.01",
        "train__total_images": "2400",
        "evaluate__every_images": "600",
    }
    experiment = asked("vae", source, run__folder=str(tmp_path / "warned"), **flags)
    (tmp_path / "warned").mkdir()
    work(experiment, prepare(experiment.data), Ranks())
    reported = RunFolder(tmp_path / "warned").messages.read_text()
    assert reported.count("ALARM: posterior collapse after ") == 1
    (tmp_path / "stopped").mkdir()
    experiment = asked(
        "vae", source, run__folder=str(tmp_path / "stopped"), train__on_collapse="stop", **flags
    )
    with pytest.raises(
        TrainingError,
        match=r"posterior collapse after \d+ images: .* in use, KL .* lower method.beta",
    ):
        work(experiment, prepare(experiment.data), Ranks())


HEALTHY = {
    "val/spread": 0.2,
    "val/contrast": 0.2,
    "val/detail": 1.0,
    "val/headroom": 0.8,
    "val/logit_scale": 20.0,
}


@pytest.mark.parametrize(
    ("figures", "name", "line"),
    [
        (
            {"val/spread": 0.03},
            "mode collapse",
            "generated images have 0.03 of the spread of real ones: lower",
        ),
        (
            {"val/spread": 0.0, "val/contrast": 0.001},
            "dead generator",
            "contrast 0.001, headroom 0.8 of the real",
        ),
        (
            {"val/spread": 0.0, "val/headroom": 0.0},
            "dead generator",
            "contrast 0.2, headroom 0 of the real images': lower",
        ),
        (
            {"val/logit_scale": 800.0},
            "exploding scale",
            "logits of size 8e+02: lower train.learning_rate",
        ),
        (
            {"train/fake_logit": -300.0},
            "exploding scale",
            "logits of size 3e+02: lower train.learning_rate",
        ),
    ],
)
def test_a_lost_gan_is_reported_by_the_one_name_it_has(
    figures: dict[str, float], name: str, line: str
) -> None:
    alarms = made("gan").alarms(HEALTHY | figures, 0)
    assert list(alarms) == [name]
    assert alarms[name].startswith(line)


@pytest.mark.parametrize("name", ["ae", "vae", "gan"])
def test_neither_healthy_figures_nor_none_alarm(name: str) -> None:
    healthy = HEALTHY | {"val/latent_scale": 10.0, "val/kl": 5.0, "val/active_units": 1.0}
    assert made(name).alarms(healthy, 25_000) == made(name).alarms({}, 25_000) == {}


@pytest.mark.parametrize("name", ["ae", "vae"])
def test_latents_that_explode_are_seen(name: str) -> None:
    assert list(made(name).alarms({"val/latent_scale": 150.0}, 0)) == ["exploding scale"]


def test_latents_that_no_image_moves_are_a_collapse_at_any_kl() -> None:
    method = made("vae")
    line = method.alarms({"val/kl": 3.0, "val/active_units": 0.0}, 0)["posterior collapse"]
    assert line.startswith("0 of 4 latents in use, KL 3 nats: lower")
    assert list(method.alarms({"train/kl": 0.01}, 0)) == ["posterior collapse"], (
        "without held-out images"
    )


def crafted(images: torch.Tensor, generated: torch.Tensor) -> dict[str, float]:
    """The figures of a GAN that answers real images with `generated` ones."""
    method: Any = methods.find("gan")(asked("gan", Path("x")).method, (images.shape[1], 8, 8))
    method.sample = lambda keys, labels=None: generated
    with torch.no_grad():
        values = method.measure(
            Batch(images, rng.keys(0, len(images)), rng.keys(0, len(images)), 0)
        )
    figures: dict[str, float] = method.metrics(
        {name: value.double().mean(0) for name, value in values.items()}
    )
    return figures


def test_shares_of_the_real_images_are_those_by_hand() -> None:
    real = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same = crafted(real, real)
    assert [same[name] for name in ("spread", "contrast", "detail", "headroom")] == pytest.approx(
        [1, 1, 1, 1]
    )
    assert same["frechet_share"] == pytest.approx(0, abs=1e-4)
    half = crafted(real, real / 2)
    assert (half["spread"], half["contrast"], half["detail"]) == pytest.approx((0.25, 0.25, 0.25))
    same = crafted(real, real[:1].expand_as(real))
    assert same["spread"] == pytest.approx(0, abs=1e-6)
    assert same["contrast"] > 0.5
    blank = crafted(real, real.mean((1, 2, 3), keepdim=True).expand_as(real))
    assert blank["contrast"] == pytest.approx(0, abs=1e-6)
    assert crafted(real, real.sign())["headroom"] == 0
    mean = crafted(real, real.mean(0).expand_as(real))
    assert mean["frechet_share"] == pytest.approx(1, abs=1e-4)
    colours = torch.rand(50, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = colours.mean((2, 3), keepdim=True).expand_as(colours)
    assert crafted(colours, plain)["contrast"] == pytest.approx(0, abs=1e-6), (
        "a plain colour is blank"
    )
    assert "spread" not in crafted(real[:1], real[:1]), "one image has no spread to have a share of"


RUNS: dict[str, tuple[str, dict[str, str]]] = {
    "posterior collapse": ("vae", {"method__beta": "1000", "train__learning_rate": "0.01"}),
    # A discriminator that hardly learns: all that is generated goes to the one image that it likes
    # best.
    "mode collapse": (
        "gan",
        {
            "method__discriminator_rate": "1e-5",
            "train__learning_rate": "0.01",
            "train__seed": "1",
            "images": "4800",
            "every": "480",
        },
    ),
    "the discriminator wins": (
        "gan",
        {"method__discriminator_rate": "100", "method__r1": "0", "train__learning_rate": "1e-4"},
    ),
    "dead generator, exploding scale": ("gan", {"train__learning_rate": "1"}),
    "exploding scale of an ae": ("ae", {"train__learning_rate": "10"}),
    "exploding scale of a vae": ("vae", {"train__learning_rate": "10"}),
}


def said(
    method: str, source: Path, folder: Path, images: str = "2400", every: str = "240", **flags: str
) -> str:
    """What a short run said; `every` so many images it is looked at."""
    folder.mkdir()
    flags = {
        "track__mode": "off",
        "evaluate__pictures": "false",
        "train__total_images": images,
        "evaluate__every_images": every,
    } | flags
    experiment = asked(method, source, run__folder=str(folder), **flags)
    work(experiment, prepare(experiment.data), Ranks())
    messages = RunFolder(folder).messages
    return messages.read_text() if messages.exists() else ""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (name == "mode collapse")) for name in RUNS],
)
def test_a_run_that_really_fails_says_so(name: str, source: Path, tmp_path: Path) -> None:
    method, flags = RUNS[name]
    lines = said(method, source, tmp_path / "run", **flags)
    for alarm in name.split(" of ")[0].split(", "):
        assert f"ALARM: {alarm} after " in lines


@pytest.mark.parametrize("method", ["ae", "vae", "gan"])
def test_a_healthy_run_raises_no_alarm_at_any_step(
    method: str, source: Path, tmp_path: Path
) -> None:
    assert "ALARM" not in said(method, source, tmp_path / "run", images="600", every="12")


def measured(experiments: list[Experiment]) -> list[dict[str, float]]:
    """What a fresh method measures in this rank."""
    runs = [fresh(experiment) for experiment in experiments]
    return [
        validate(run.learning, run.held_out, run.experiment.train, run.ranks)
        for run in runs
        if run.held_out
    ]


def fresh(experiment: Experiment) -> Run:
    """A run before its first step; of a VAE's latents, all but the last eight are far from 0 and
    move little.
    """
    run = Run(experiment, Ranks())
    if experiment.method_name == "vae":
        last: Any = run.learning.method.networks["encoder"][-1]  # type: ignore[index]
        still = max(0, experiment.method.latent_dim - 8)
        with torch.no_grad():
            last.weight[:still] *= torch.linspace(0.001, 0.3, still)[:, None]
            last.bias[:still] = 5.0
    return run


def test_figures_over_columns_are_exact_in_every_world(source: Path, tmp_path: Path) -> None:
    few = packed(tmp_path, records=7)  # two of them held out: of three ranks one has none
    experiments = [asked(name, source, method__latent_dim="24") for name in ("ae", "vae", "gan")]
    experiments += [asked(name, few, train__batch_size="3") for name in ("ae", "vae", "gan")]
    (alone,) = gloo.run(1, measured, experiments)
    run = fresh(experiments[1])
    assert run.held_out
    with torch.no_grad():
        latents = torch.cat(
            [
                run.learning.method.encode(to_batch(records, run.ranks.device).images)
                for records in run.held_out.once(99)
            ]
        )
    variances = latents.double().var(0, correction=0)
    assert 8 <= alone[1]["val/active_units"] == (variances > 0.01).sum() <= 20
    assert "val/latent" not in alone[1]
    assert alone[3]["val/mse"] > 0
    for world in (2, 3):
        for theirs in gloo.run(world, measured, experiments):
            for figures, others in zip(alone, theirs, strict=True):
                assert figures == pytest.approx(others, rel=1e-6, abs=1e-9)
