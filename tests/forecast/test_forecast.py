"""`udl plan` as a person meets it: measured here, with parts of elsewhere, and refused in one line."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.test_cli import refused, udl
from tests.training.learn import asked, packed
from udl_dist import settings
from udl_dist.errors import UsageError
from udl_dist.experiment import Experiment
from udl_dist.forecast import parts as measured_parts
from udl_dist.forecast.forecast import forecast
from udl_dist.forecast.parts import Parts
from udl_dist.forecast.settings import ForecastSettings


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(tmp_path_factory.mktemp("data"))


@pytest.fixture
def job(source: Path) -> Experiment:
    return asked("vae", source, run__workers="2", data__readers="1")


def parts_of(asked_of: Experiment, **changes: float | str) -> Parts:
    """Parts of a GPU machine; a step of six images."""
    found = Parts(
        job=measured_parts.fingerprint(asked_of), images=6, device="some GPU", processes=2, compute_seconds=0.1,
        host_seconds=0.01, decode_seconds=1e-3, record_bytes=1e5, node_bytes_per_second=1e9, read_bytes=2**30,
        reduces=1.0, gradient_bytes=1e6, sync_seconds=1e-5, link_bytes_per_second=1e9, checkpoint_bytes=10**6,
        copy_seconds=0.01, write_bytes_per_second=1e8,
    )  # fmt: skip
    return replace(found, **changes)  # type: ignore[arg-type]


def test_two_workers_are_measured_here_and_their_parts_are_kept(job: Experiment, tmp_path: Path) -> None:
    kept = tmp_path / "parts.toml"
    found = forecast(job, ForecastSettings(measure_seconds=0.1), save=kept)
    parts = found.parts
    assert (parts.images, parts.device, parts.reduces) == (6, "cpu", 1.0)
    assert parts.gradient_bytes == 4 * sum(found.plan.parameters.values())
    assert parts.compute_seconds > 0 and parts.decode_seconds > 0 and parts.node_bytes_per_second > 0
    assert parts.checkpoint_bytes > 3 * parts.gradient_bytes  # weights and two moments
    if parts.processes == 2:
        assert parts.sync_seconds > 0 and parts.link_bytes_per_second > 0
        assert found.step.reduce_seconds > 0
    again = forecast(job, ForecastSettings(), kept)
    assert again.parts == parts and again.step == found.step
    assert {row.origin for row in again.rows if row.name == "compute_seconds"} == {f"measured, in {kept}"}
    assert not list(tmp_path.glob(".*"))


def test_the_batch_grows_with_the_workers_or_stays(job: Experiment, tmp_path: Path) -> None:
    parts_of(job).save(kept := tmp_path / "parts.toml")
    wide = ForecastSettings(nodes=64, gpus_per_node=8, records=10**8, record_bytes=1e5, link_bytes_per_second=1e10,
                            node_bytes_per_second=1e10)  # fmt: skip
    found = forecast(job, wide, kept)
    assert (found.inputs.workers, found.plan.batch_size, found.plan.records) == (512, 6 * 512, 10**8)
    assert found.index_bytes == 32 * 10**8 and not found.cares
    assert found.images_per_second == pytest.approx(6 * 512 / found.step.seconds)
    assert found.as_dict()["epoch_worker_hours"] == pytest.approx(found.epoch_seconds * 512 / 3600)
    origins = {row.name: row.origin for row in found.rows}
    assert origins["link_bytes_per_second"] == origins["record_bytes"] == "as you said"
    assert origins["compute_seconds"] == f"measured, in {kept}" and origins["storage_bytes_per_second"].startswith("as")
    with pytest.raises(UsageError, match=r"train.batch_size = 12 is less than run.workers = 512"):
        forecast(job, replace(wide, batch="stays"), kept)
    one = forecast(asked("vae", Path(job.data.source), run__workers="2", data__readers="1",
                         train__batch_size="3072"), replace(wide, batch="stays"), kept)  # fmt: skip
    assert one.plan.batch_size == 3072 and one.step == found.step


def test_what_was_not_measured_where_it_will_be_is_told(job: Experiment, tmp_path: Path) -> None:
    parts_of(job, device="cpu", read_bytes=10).save(kept := tmp_path / "parts.toml")
    found = forecast(job, ForecastSettings(nodes=2, gpus_per_node=2, records=1000, record_bytes=1e6), kept)
    told = "\n".join(found.lines())
    for words in ("steps were measured on a CPU", "no network was measured", "decoding was measured on records of",
                  "storage was measured on no more than"):  # fmt: skip
        assert words in told
    assert len(found.cares) == 4
    said = forecast(job, ForecastSettings(gpus_per_node=2, compute_seconds=0.2), kept)
    assert said.inputs.compute_seconds == 0.2 and not said.cares


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--nodes", "0"), ("nodes must be at least 1, not 0",)),
        (("--record-bytes", "0"), ("record_bytes must be greater than 0",)),
        (("--records", "many"), ("records must be whole number or nothing, not 'many'",)),
        (("--nods", "3"), ("unknown setting nods: did you mean nodes?",)),
        (("--train.batchsize", "3"), ("unknown setting train.batchsize", "train.batch_size")),
        (("--gpus-per-node", "2", "--workers-per-node", "2"), ("gpus_per_node and workers_per_node", "one of them")),
        (("--cpus-per-node", "1"), ("cpus_per_node = 1 is less than 2 workers",)),
        (("--run.determinism", "elastic"), ("elastic", "leave it out")),
        (("--parts", "none.toml"), ("no file none.toml", "--save")),
        (("--parts", "broken.toml"), ("the parts in broken.toml are damaged",)),
        (("--parts", "odd.toml"), ("the parts in odd.toml are damaged", "unknown setting colour")),
        (("--parts", "short.toml"), ("the parts in short.toml are damaged, ", "is missing")),
        (("--parts", "other.toml"), ("the parts in other.toml are of another job",)),
        (("--parts", "share.toml"), ("of 7 images a worker and step, here it has 6",)),
        (("--parts", "alone.toml"), ("--link-bytes-per-second and --sync-seconds",)),
        (("--parts", "good.toml", "--save", "nowhere/p.toml"), ("cannot write the parts to nowhere/p.toml",)),
    ],
)
def test_what_cannot_be_worked_out_is_refused(
    flags: tuple[str, ...], parts: tuple[str, ...], job: Experiment, tmp_path: Path
) -> None:
    (tmp_path / "job.toml").write_text(job.to_toml())
    (tmp_path / "broken.toml").write_text("images = 6 images")
    (tmp_path / "odd.toml").write_text("colour = 3")
    (tmp_path / "short.toml").write_text("images = 6")
    parts_of(job).save(tmp_path / "good.toml")
    parts_of(job, job="another").save(tmp_path / "other.toml")
    parts_of(job, images=7).save(tmp_path / "share.toml")
    parts_of(job, sync_seconds=0.0, link_bytes_per_second=0.0).save(tmp_path / "alone.toml")
    refused(udl("plan", "job.toml", *flags, cwd=tmp_path), 2, *parts)


def test_the_command_answers_machines(job: Experiment, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(job.to_toml())
    parts_of(job).save(tmp_path / "parts.toml")
    done = udl("plan", "job.toml", "--parts", "parts.toml", "--gpus-per-node", "2", "--json", cwd=tmp_path)
    figures = json.loads(done.stdout)
    assert figures["workers"] == 2 and figures["bottleneck"] == "computing"
    assert tomllib.loads((tmp_path / "parts.toml").read_text())["images"] == 6


def test_what_has_no_say_in_a_step_may_differ(job: Experiment, source: Path) -> None:
    name = measured_parts.fingerprint(job)
    same = asked("vae", source, train__learning_rate="0.1", train__total_images="480", train__batch_size="24")
    assert measured_parts.fingerprint(same) == name
    for flags in ({"train__optimizer": "sgd"}, {"method__latent_dim": "5"}, {"data__flip": "true"}):
        assert measured_parts.fingerprint(asked("vae", source, **flags)) != name
    assert settings.to_dict(parts_of(job))["images"] == 6
