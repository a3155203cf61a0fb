"""torch.compile for real: what is compiled, what stays eager, and the same numbers either way."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from tests.training.learn import Run, asked
from udl_dist.methods.losses import gan_losses

pytestmark = [
    pytest.mark.skipif(
        not shutil.which("g++"), reason="no g++, which torch.compile needs on a CPU"
    ),
    pytest.mark.filterwarnings("default"),  # torch's compiler warns of what torch itself deprecates
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()
    counters.clear()


def compiled_frames() -> int:
    return int(counters["frames"]["ok"])


def pair(method: str, source: Path, **flags: str) -> tuple[Run, Run]:
    """The same run compiled and eager."""
    flags = {"train__total_images": "36"} | flags
    return Run(asked(method, source, train__compile="true", **flags)), Run(
        asked(method, source, **flags)
    )


def losses(run: Run, name: str = "train/loss") -> list[float]:
    return [report.metrics[name] for report in run.reports(validate=10**6)]


# Of the compiler's three parts aot_eager lacks the last, C++ by g++, which takes half a minute.
FAST = "aot_eager"
BACKENDS = [FAST, pytest.param("inductor", marks=pytest.mark.long)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["ae", pytest.param("vae", marks=pytest.mark.long)])
def test_networks_are_compiled_and_keep_their_names(
    method: str, backend: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    compiled, eager = pair(method, source)
    assert losses(compiled) == pytest.approx(losses(eager), rel=1e-4)
    assert compiled_frames() >= len(compiled.learning.method.networks)
    assert set(compiled.learning.tensors()["networks"]) == set(eager.learning.tensors()["networks"])
    eager.learning.restore(compiled.learning.tensors())
    assert eager.hash() == compiled.hash()


@pytest.mark.long
def test_validation_is_eager_and_compiles_nothing_more(source: Path) -> None:
    run = Run(asked("ae", source, train__compile="true", train__total_images="48"))
    reports = run.reports(validate=24)
    first, _ = next(reports), next(reports)
    before = compiled_frames()
    assert not first.validated and before > 0
    validated = [report for report in reports if report.validated]
    assert validated and compiled_frames() == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_that_is_differentiated_twice_stays_eager(
    backend: str, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code has no second derivative: R1 would be an error, or its gradient silently
    zero.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    flags = {
        "method__discriminator": "conv",
        "method__dropout": "0.3",
        "method__network__activation": "silu",
    }
    compiled, eager = pair("gan", source, **flags)
    assert compiled.experiment.method.r1 > 0
    assert losses(compiled, "train/discriminator") == pytest.approx(
        losses(eager, "train/discriminator"), rel=1e-3
    )
    networks = compiled.learning.method.networks
    assert compiled_frames() > 0 and "forward" in vars(networks["generator"])
    assert "forward" not in vars(networks["discriminator"])
    assert gradient_of_the_penalty(compiled) == pytest.approx(
        gradient_of_the_penalty(eager), rel=1e-3
    )
    assert gradient_of_the_penalty(compiled) > 0


@pytest.mark.long
def test_the_tenth_training_of_a_process_is_compiled_too(source: Path) -> None:
    for number in range(10):
        before = compiled_frames()
        losses(pair("ae", source, train__seed=str(number))[0])
        assert compiled_frames() > before, number


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("vae", {"train__accumulate": "3"}),  # parts of 2, 3 and 3 images
        ("gan", {"train__accumulate": "3", "method__r1": "0", "method__dropout": "0"}),
        ("vae", {"run__determinism": "elastic", "train__batch_size": "26"}),  # of 2 and 3
        ("vae", {"train__accumulate": "2"}),  # of 4: code for this size
    ],
    ids=["vae", "gan", "elastic", "even"],
)
def test_parts_of_several_sizes_are_compiled_once(
    method: str, flags: dict[str, str], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is traced and how often; a backend that makes no code shows it in a second.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    flags = {"train__batch_size": "8", "train__total_images": "104"} | flags
    compiled, eager = pair(method, source, **flags)
    name = "train/discriminator" if method == "gan" else "train/loss"
    assert losses(compiled, name) == pytest.approx(losses(eager, name), rel=1e-4)
    networks = len(compiled.learning.method.networks)
    # Those of a GAN twice, with and without a gradient of what they make or see.
    assert compiled_frames() == networks * (2 if method == "gan" else 1)


@pytest.mark.long
def test_without_a_penalty_both_networks_of_a_gan_are_compiled(source: Path) -> None:
    flags = {"method__discriminator": "conv", "method__dropout": "0.3", "method__r1": "0"}
    compiled, eager = pair("gan", source, **flags)
    assert losses(compiled, "train/discriminator") == pytest.approx(
        losses(eager, "train/discriminator"), rel=1e-3
    )
    assert compiled_frames() >= 2


def gradient_of_the_penalty(run: Run) -> float:
    """The norm of what R1 alone asks of the discriminator's weights."""
    method: Any = run.learning.method
    real = torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8).requires_grad_(True)
    discriminator = method.networks["discriminator"].requires_grad_(True)
    weights, images = method.settings.penalty_weights(0), {"real": real}
    penalty = gan_losses.penalties(weights, images, {"real": method._logits(real, None)})["r1"]
    gradients = torch.autograd.grad(penalty, list(discriminator.parameters()), allow_unused=True)
    return float(sum(gradient.square().sum() for gradient in gradients if gradient is not None))


@pytest.mark.long
def test_without_a_compiler_the_run_is_refused_with_what_to_do(
    source: Path, tmp_path: Path
) -> None:
    experiment = asked(
        "ae", source, train__compile="true", track__mode="off", run__folder=str(tmp_path / "run")
    )
    (tmp_path / "job.toml").write_text(experiment.to_toml())
    program = (
        "import sys; from pathlib import Path; from udl_dist import experiment\n"
        "from udl_dist.data.packing.prepare import prepare\n"
        "from udl_dist.training.distributed import Ranks; from udl_dist.launch.worker import work\n"
        "asked = experiment.load(Path(sys.argv[1]), {}); work(asked, prepare(asked.data), Ranks())"
    )
    without = {
        **os.environ,
        "CXX": "no-such-compiler",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "job.toml")],
        capture_output=True,
        text=True,
        env=without,
    )
    assert "TrainingError: train.compile: PyTorch's compiler failed" in done.stderr
    assert "leave train.compile out" in done.stderr.splitlines()[-1]


@pytest.mark.long
def test_a_spectral_norm_is_compiled_and_moves_once_a_step(source: Path) -> None:
    flags = {"method__discriminator": "conv", "method__dropout": "0.3", "method__r1": "0"}
    compiled, eager = pair("gan", source, method__spectral_norm="true", **flags)
    assert losses(compiled, "train/discriminator") == pytest.approx(
        losses(eager, "train/discriminator"), rel=1e-3
    )
    assert compiled_frames() >= 2
    buffers = zip(
        compiled.learning.method.own_buffers(), eager.learning.method.own_buffers(), strict=True
    )
    for one, other in buffers:
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
