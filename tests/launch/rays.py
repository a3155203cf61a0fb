"""One Ray for a module of tests: started once, ended with the last of them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults import firing
from udl_dist.launch.ray_runtime import ENVIRONMENT


@contextmanager
def one_ray(cores: int, gpus: int = 0) -> Iterator[None]:
    """A Ray that says it has so many cores and GPUs; it is there already for whatever would start
    one.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        with firing():
            ray.init(address="local", num_cpus=cores, num_gpus=gpus, **quiet)
        yield
        ray.shutdown()
