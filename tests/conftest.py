"""Shared by all tests: one torch thread (tiny tensors gain nothing from more, and lose much on a
busy machine).
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# before torch is imported, here and in child processes
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

# No test is timed: a busy machine fails no one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Long tests run one at a time: they time things, and share the one cluster of this machine."""
    if config.option.markexpr == "long":
        config.option.numprocesses = 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need another Ray than the rest come first, so that Ray starts twice, not thrice;
    the two processes then take files in this order.
    """
    items.sort(key=lambda item: "test_capacity" not in item.nodeid)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Whatever Ray is up at the end is ended."""
    yield
    from tests.launch import rays

    rays.end()


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """As before after each test: a worker's own part, run in this process, sets them to 0."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture
def cluster(ray_session: None) -> None:
    """A Ray of four cores, one for all tests that use it."""
    from tests.launch import rays

    rays.start()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 packed images of 8 px, a fifth held out, to be read only."""
    from tests.training.learn import packed

    return packed(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of each method, to be read only."""
    from tests.trained import runs

    return runs(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE on images of four classes, to be read only."""
    from tests.trained import of_corners

    return of_corners(tmp_path_factory.mktemp("labelled"))
