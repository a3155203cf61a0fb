"""What the plan accepts can be trained, and what would die in a worker is refused before one is
started.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.learn import asked
from udl_dist import experiment as experiments
from udl_dist import methods
from udl_dist.core import rng
from udl_dist.errors import UsageError
from udl_dist.launch import plan as plans
from udl_dist.launch.plan import checked_plan
from udl_dist.methods.method import Batch


@pytest.mark.parametrize("setting", ["train__beta1", "train__beta2"])
def test_a_decay_of_one_is_refused(setting: str, source: Path) -> None:
    with pytest.raises(UsageError, match=r"train.beta[12] must be less than 1, not 1.0"):
        asked("ae", source, **{setting: "1"})


@pytest.mark.parametrize(
    "flags",
    [
        {"method__latent_dim": "1000000000000"},
        {"method__network__widths": "10000000000"},
        {"train__batch_size": "1000000000000", "train__total_images": "1000000000000"},
    ],
)
def test_a_run_that_no_memory_here_can_hold_is_refused(flags: dict[str, str], source: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"a worker would need about [\d,]+ GiB of memory, this machine has [\d,]+: ",
    ):
        checked_plan(asked("ae", source, **flags))
    assert (
        checked_plan(asked("ae", source, run__address="elsewhere:6379", **flags)).memory_bytes > 0
    )


def test_images_at_the_end_of_their_sizes_are_refused_too(source: Path) -> None:
    with pytest.raises(UsageError, match="a worker would need about"):
        checked_plan(asked("ae", source, data__size="4096", method__network__widths="30000"))


def test_settings_that_need_more_images_are_refused(source: Path) -> None:
    vamp = {"method__prior": "vamp", "method__pseudo_inputs": "1000"}
    with pytest.raises(UsageError, match=r"pseudo_inputs is 1,000, more than the [\d]+ training"):
        plans.plan(asked("vae", source, **vamp))


def test_by_default_there_is_a_worker_for_each_gpu_and_one_without(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = asked("ae", source, train__batch_size="12")
    assert "workers      1, 12 images each a step" in plans.plan(wanted).lines()
    elsewhere = asked("ae", source, train__batch_size="12", run__address="elsewhere:6379")
    line = "workers      one a GPU of the cluster, 1 to 12 images each a step"
    assert line in plans.plan(elsewhere).lines()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert "workers      4, 3 images each a step" in plans.plan(wanted).lines()
    ahead = asked("ae", source, data__readers="auto", run__workers="1")
    assert "threads      3 of a worker read and decode ahead" in plans.plan(ahead).lines()
    on_cpus = asked("ae", source, train__batch_size="12", run__device="cpu")
    assert plans.plan(on_cpus).workers == 1


CONV = {"method__network__kind": "conv", "method__network__widths": "4,8"}
LAST = "; convolutions in channels-last format"


@pytest.mark.parametrize(
    ("method", "flags", "words"),
    [
        ("ae", {}, "TF32 on a GPU, float32 on a CPU"),
        ("ae", CONV, f"TF32 on a GPU, float32 on a CPU{LAST}"),
        ("ae", CONV | {"train__channels_last": "false"}, "TF32 on a GPU, float32 on a CPU"),
        ("ae", {"train__precision": "bfloat16", "train__compile": "true"}, "bfloat16; compiled"),
        (
            "gan",
            {"train__compile": "true", "train__precision": "float32"},
            f"float32{LAST}; compiled but for discriminator, which a penalty differentiates twice",
        ),
    ],
)
def test_the_plan_says_how_a_step_computes(
    method: str, flags: dict[str, str], words: str, source: Path
) -> None:
    assert f"computes     {words}" in plans.plan(asked(method, source, **flags)).lines()


@pytest.mark.parametrize("flags", [{}, {"run__workers": "2"}, {"train__accumulate": "2"}])
def test_batch_normalisation_of_one_image_is_refused(flags: dict[str, str], source: Path) -> None:
    share = 2 if flags else 1
    norm = {"method__network__norm": "batch", **flags}
    with pytest.raises(
        UsageError, match=rf"batch normalisation .* raise train.batch_size to {2 * share}, or"
    ):
        plans.plan(asked("ae", source, train__batch_size=str(share), **norm))
    plans.plan(asked("ae", source, train__batch_size=str(2 * share), **norm))


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("method", ["ae", "vae", "gan"])
def test_the_smallest_images_and_latents_can_be_learned_or_are_refused(
    method: str, size: int, source: Path
) -> None:
    flags = {
        "method.name": method,
        "method.latent_dim": "1",
        "train.epochs": "1",
        "data.channels": "1",
    }
    experiment_flags = flags | {"data.source": str(source), "data.size": str(size)}
    experiment = experiments.load(None, experiment_flags)
    if size == 1:
        chain = {"gan": {"method.generator": "conv"}}.get(method, {"method.network.kind": "conv"})
        with pytest.raises(UsageError, match="can be halved"):
            plans.plan(experiments.load(None, experiment_flags | chain))
    plans.plan(experiment)
    made: Any = methods.find(method)(experiment.method, experiment.data.shape)
    keys = rng.keys(0, 4)
    batch = Batch(torch.zeros(4, *experiment.data.shape), keys, keys, 0)
    for phase in made.phases():
        assert phase.loss(batch).value.isfinite()
    with torch.no_grad():
        metrics = made.metrics(
            {name: value.double().mean(0) for name, value in made.measure(batch).items()}
        )
    assert all(value == value for value in metrics.values())


@pytest.mark.parametrize(
    ("method", "flags", "expected"),
    [
        (
            "ae",
            {
                "data__size": "28",
                "method__network__kind": "conv",
                "method__network__widths": "32,64",
            },
            "encoder conv 32-64-4, decoder conv 3136-32-1",
        ),
        ("vae", {}, "encoder dense 16-8, decoder dense 16-64"),
        (
            "vae",
            {"method__network__depth": "2"},
            "encoder dense 16-16-16-8, decoder dense 16-16-16-64",
        ),
        (
            "vae",
            {"method__likelihood": "gaussian", "method__variance": "learned"},
            "encoder dense 16-8, decoder dense 16-64, sigma bias",
        ),
    ],
)
def test_the_plan_prints_each_network_by_kind_and_widths(
    method: str, flags: dict[str, str], expected: str, source: Path
) -> None:
    lines = plans.plan(asked(method, source, **flags)).lines()
    assert f"networks     {expected}" in lines


CONV = {"method__network__kind": "conv", "method__network__widths": "8"}
RESNET = {**CONV, "method__network__kind": "resnet"}


@pytest.mark.parametrize(
    ("method", "flags", "expected"),
    [
        ("ae", {}, ""),
        ("ae", CONV, ""),  # 8 x 8
        ("ae", {**CONV, "data__size": "17,18"}, "encoder and decoder: the smallest map has 9 x 9 "),
        ("ae", {**RESNET, "data__size": "18"}, "encoder and decoder: the smallest map has 9 x 9 "),
        ("ae", {**RESNET, "data__size": "18", "method__network__attention": "16"}, ""),
        ("ae", {**RESNET, "data__size": "6,40"}, ""),  # a strip: 3 x 20
        (
            "vae",
            {"data__size": "128", "method__network__kind": "resnet", "method__network__widths": ""},
            "",
        ),
        ("gan", {}, ""),
        ("gan", {"data__size": "36"}, "generator and discriminator: the smallest map has 9 x 9 "),
    ],
)
def test_the_plan_warns_of_networks_that_never_see_the_whole_image(
    method: str, flags: dict[str, str], expected: str, source: Path
) -> None:
    flags = {"data__size": "16", **flags}
    planned = plans.plan(asked(method, source, **flags))
    said = [line for line in planned.lines() if line.startswith("warning")]
    assert [line.startswith(f"warning      {expected}") for line in said] == [True] * bool(expected)
    assert len(planned.warnings) == len(said)


def test_the_plan_prints_the_flops_of_an_image(source: Path) -> None:
    planned = plans.plan(asked("ae", source))
    # Two dense layers and their mirror image; a multiply-add is two.
    forward = 2 * 2 * (64 * 16 + 16 * 4)
    # The gradient of the weights, and that of what goes into each layer but the first.
    backward = forward + 2 * (16 * 4 + 4 * 16 + 16 * 64)
    assert planned.flops_per_image == forward + backward == 11_008
    assert (
        "flops        11,008 an image and step, forward and backward of every phase"
        in planned.lines()
    )


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({}, "once: 100 % of the images stay in memory, 0.0 MiB a machine"),
        ({"data__decoded_bytes": "1664"}, "once: 50 % of the images stay"),
        ({"data__decoded_bytes": "0"}, "in every epoch"),
        ({"data__random_crop": "0.5"}, "in every epoch"),
    ],
)
def test_the_plan_says_which_images_are_decoded_once(
    flags: dict[str, str], line: str, source: Path
) -> None:
    lines = plans.plan(asked("ae", source, **flags)).lines()
    assert any(each.startswith("decoded ") and line in each for each in lines), lines
