"""How many workers and trials fit: CPU cores and GPUs are both counted, on a real Ray that says it
has them.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.launch import rays
from tests.search.asked import wanted
from tests.training.learn import asked
from udl_dist.errors import ClusterError
from udl_dist.experiment import Experiment
from udl_dist.launch import capacity, process_group
from udl_dist.search import tuner

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(autouse=True)
def large_cluster(ray_session: None) -> None:
    """96 cores and 8 GPUs would be a usual node; here a sixth of the cores."""
    rays.start(cores=16, gpus=8)


def run(source: Path, workers: str, cores: int) -> Experiment:
    return asked(
        "ae", source, run__workers=workers, run__cpus_per_worker=str(cores), run__device="cuda"
    )


@pytest.mark.parametrize(("cores", "workers"), [(1, 8), (2, 8), (4, 4), (6, 2), (16, 1)])
def test_the_scarcer_of_cores_and_gpus_decides(cores: int, workers: int, source: Path) -> None:
    assert capacity.next_group(run(source, "1..8", cores)).workers == workers


@pytest.mark.parametrize(
    ("cores", "flags", "workers"),
    [
        (2, {}, 8),  # every GPU
        (4, {}, 4),  # as many as have cores
        (1, {"train__batch_size": "11"}, 5),  # two images each, or more
        (1, {"train__batch_size": "24", "train__accumulate": "2"}, 6),
        (3, {"run__determinism": "elastic"}, 4),  # of five the largest divisor of 12
        (1, {"run__device": "cpu"}, 1),
    ],
)
def test_by_default_there_is_a_worker_for_each_gpu_of_the_cluster(
    cores: int, flags: dict[str, str], workers: int, source: Path
) -> None:
    wanted = asked(
        "ae", source, **{"train__batch_size": "64", "run__cpus_per_worker": str(cores)} | flags
    )
    assert wanted.run.workers == "auto"
    assert capacity.automatic_of_cluster(wanted).run.workers == workers


def test_what_does_not_fit_is_refused_with_both_kinds(source: Path) -> None:
    with pytest.raises(
        ClusterError,
        match="8 needs 32 CPU cores and 8 GPUs, the cluster has 16 CPU cores and 8 GPUs: "
        "set run.workers to 4 or fewer",
    ):
        capacity.next_group(run(source, "8", 4))
    with pytest.raises(
        ClusterError,
        match="1 needs 17 CPU cores and 1 GPU, the cluster has 16 CPU cores and 8 GPUs: "
        "lower run.cpus_per_worker",
    ):
        capacity.next_group(run(source, "1", 17))


@pytest.mark.parametrize(
    ("share", "trials"), [(1.0, 8), (0.6, 8), (0.5, 16), (0.34, 16), (0.1, 16)]
)
def test_trials_share_a_gpu_but_no_trial_lies_on_two(
    share: float, trials: int, source: Path, tmp_path: Path
) -> None:
    search = wanted(source, tmp_path)
    settings = replace(search.settings, gpu_share=share)
    assert tuner.capacity_for(replace(search, settings=settings)).parallel == trials


def test_workers_tell_both_libraries_the_interface_of_ray(source: Path) -> None:
    import ray

    def reported() -> tuple[str | None, str | None]:
        process_group.choose_interface()
        return os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("NCCL_SOCKET_IFNAME")

    gloo, nccl = ray.get(ray.remote(num_cpus=1)(reported).remote())
    assert gloo and nccl == f"={gloo}"
