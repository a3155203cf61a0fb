"""One Ray for all tests of this folder that ask for it."""

from collections.abc import Iterator

import pytest

from tests.launch.rays import one_ray


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    with one_ray(3):
        yield
