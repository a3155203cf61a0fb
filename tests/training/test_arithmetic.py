"""What a worker sets for repeatable bits and for precision. The flags are those of a GPU; a CPU
needs none of them.
"""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from udl_dist.training import arithmetic

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in arithmetic.REPEATABLE:
        monkeypatch.delenv(name, raising=False)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    flags = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = flags
    torch.use_deterministic_algorithms(False)
    for name in arithmetic.REPEATABLE:
        os.environ.pop(name, None)


@pytest.mark.parametrize(
    ("precision", "tf32"), [("float32", False), ("tf32", True), ("bfloat16", True)]
)
def test_precision_is_one_choice_for_linear_and_convolution(precision: str, tf32: bool) -> None:
    arithmetic.set_up(CUDA, "world", precision)
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is tf32


@pytest.mark.parametrize(
    ("determinism", "repeatable"), [("none", False), ("world", True), ("elastic", True)]
)
def test_determinism_sets_all_that_it_promises(determinism: str, repeatable: bool) -> None:
    found = arithmetic.set_up(CUDA, determinism, "float32")
    assert torch.are_deterministic_algorithms_enabled() is repeatable
    assert torch.backends.cudnn.deterministic is repeatable
    assert torch.backends.cudnn.benchmark is not repeatable
    assert [name in os.environ for name in arithmetic.REPEATABLE] == [repeatable] * len(
        arithmetic.REPEATABLE
    )
    assert found["determinism"] == determinism
    assert [found.get(name) for name in arithmetic.REPEATABLE] == (
        list(arithmetic.REPEATABLE.values()) if repeatable else [None] * len(arithmetic.REPEATABLE)
    )


def test_what_the_user_has_set_stays_and_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    assert arithmetic.set_up(CUDA, "world", "tf32")["NCCL_ALGO"] == "Tree"


def test_a_cpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32
    assert arithmetic.set_up(CPU, "world", "tf32") == {
        "precision": "float32",
        "determinism": "world",
    }
    assert before == (torch.backends.cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32)
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_thread_that_starts_after_it_takes_denormal_numbers_for_zero() -> None:
    # In a new process: torch's threads keep what they inherited at their start.
    code = (
        "import torch; from udl_dist.training.arithmetic import set_up;"
        "torch.set_num_threads(4); set_up(torch.device('cpu'), 'world', 'float32');"
        "print((torch.full((2**22,), 1e-30) * 1e-9).count_nonzero().item())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "0\n"
