"""Images for the tests of searches."""

from pathlib import Path

import pytest

from tests.training.learn import packed


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data"))
