"""What must hold on a GPU: `pytest -m gpu`. `python -m tests.bench.gpu` also measures speeds.

Each check is one of that script, which tries it small on a CPU too.
"""

import pytest
import torch

from tests.bench import gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here"),
]


@pytest.mark.parametrize("determinism", ["world", "elastic"])
@pytest.mark.parametrize("kind", gpu.KINDS)
def test_the_bits_repeat_and_a_resume_goes_on_with_them(kind: str, determinism: str) -> None:
    if determinism == "elastic" and kind == "gan":
        pytest.skip("batch normalisation has no elastic run")
    found = gpu.bits(kind, determinism, 32, 3)
    assert found["repeats"]
    assert found["resumes"]


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (28, 1)])
def test_the_bits_repeat_in_channels_first_format(size: int, channels: int) -> None:
    found = gpu.bits("vae", "world", size, channels, train__channels_last="false")
    assert found["repeats"]
    assert found["resumes"]


@pytest.mark.parametrize("kind", gpu.KINDS)
def test_losses_are_those_of_the_cpu(kind: str) -> None:
    found = gpu.agree(kind)
    assert found["float32"] < (5e-2 if kind.startswith("gan") else 1e-4)
    assert found["bfloat16"] < (0.5 if kind.startswith("gan") else 5e-2)


@pytest.mark.parametrize("kind", gpu.KINDS)
def test_weights_are_the_same_wherever_decoded_images_stay(kind: str) -> None:
    assert gpu.places(kind)["same"]


def test_two_bad_steps_in_a_row_leave_finite_statistics() -> None:
    found = gpu.two_bad_steps()
    assert found["rejected"] == [192, 240]
    assert found["finite"]


def test_a_batch_that_no_gpu_holds_is_refused_with_what_to_do() -> None:
    assert "set train.accumulate" in str(gpu.too_large()["refused"])


def test_a_run_on_the_cpu_leaves_the_gpu_alone() -> None:
    assert gpu.cpu_run()["cuda"] == "False"


def test_one_rank_by_nccl_has_the_losses_of_none() -> None:
    assert gpu.ddp()["apart"] <= 1e-6


@pytest.mark.parametrize(("kind", "flags"), [("vae", {}), ("ae", gpu.SYNC)])
def test_two_ranks_on_one_gpu_have_the_losses_of_one(kind: str, flags: dict[str, str]) -> None:
    found = gpu.two_ranks(kind, **flags)
    assert found["equal"]
    assert found["apart"] <= 1e-3
