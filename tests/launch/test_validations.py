"""Validations while a run goes on: what they may take is worked out before, so that no clock moves
a point.
"""

from pathlib import Path

import pytest

from tests.launch.test_worker import curves, finished, wanted
from tests.training.learn import asked
from udl_dist import cli
from udl_dist.data.loader.opening import open_streams
from udl_dist.data.packing.prepare import prepare
from udl_dist.errors import UsageError
from udl_dist.evaluation.settings import COST, EvaluateSettings
from udl_dist.launch.notices import SHARE_AFTER_SECONDS, ValidationTime
from udl_dist.launch.plan import checked_plan, plan
from udl_dist.training import checkpoint


@pytest.mark.parametrize("total", [480, 27_000, 1_200_000, 10**8])
@pytest.mark.parametrize("held_out", [0, 18, 537, 10_000, 10**6])
def test_validations_stay_within_their_share_of_a_run(total: int, held_out: int) -> None:
    for share in (0.05, 0.01, 1.0):
        settings = EvaluateSettings(share=share)
        seen = settings.seen(held_out)
        count = -(-total // settings.interval(total, seen))
        assert count * seen * COST <= share * total or count == 1  # the one at the end
        assert count <= 10
    assert EvaluateSettings(every_images=7).interval(total, held_out) == 7


def test_a_part_of_the_held_out_images_is_the_same_for_every_seed(source: Path) -> None:
    prepared = prepare(asked("ae", source).data)
    whole, one, other = (
        open_streams(prepared, seed, most_held_out=most)[1]
        for seed, most in ((0, 0), (0, 5), (1, 5))
    )
    assert whole
    assert one
    assert other
    assert (whole.records, one.records) == (18, 5)
    assert one.fingerprint == other.fingerprint != whole.fingerprint
    images = [next(stream.once(18)).images for stream in (whole, one, other)]
    assert (images[1] == images[2]).all()
    assert {image.tobytes() for image in images[1]} < {image.tobytes() for image in images[0]}


def test_a_run_validates_where_its_plan_says_and_a_resumed_one_at_the_same_images(
    source: Path, tmp_path: Path
) -> None:
    flags = {
        "evaluate__every_images": "0",
        "evaluate__images": "6",
        "train__total_images": "480",
        "run__keep_checkpoints": "9",
    }
    whole = wanted("vae", source, tmp_path / "whole", **flags)
    finished(whole)
    planned = plan(whole)
    assert (planned.validation_images, planned.validate_images) == (6, 96)
    assert planned.validation_share == 5 * 6 * COST / 480
    points = curves(tmp_path / "whole")
    looked = [point["images"] for point in points if "val/kl" in point]
    assert looked == [96, 192, 288, 384, 480]
    assert len(points) == 20  # one every 24 images
    facts = checkpoint.facts(checkpoint.path_of(tmp_path / "whole" / "checkpoints", 480))
    assert facts["held_out"] == 6
    experiment = wanted("vae", source, tmp_path / "parts", **flags)
    assert finished(experiment, stop_after=3)["stopped"]
    (tmp_path / "parts" / "stop").unlink()
    finished(experiment)
    assert curves(tmp_path / "parts") == points


def test_the_plan_tells_what_validations_take(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--train.epochs", "20", "--method.name", "ae", "--data.size", "8"]
    flags += ["--train.batch-size", "128"]
    (tmp_path / "job.toml").write_text(f'[data]\nsource = "{source}"\n')
    with pytest.raises(SystemExit):
        cli.main(["train", str(tmp_path / "job.toml"), *flags, "--dry-run"])
    said = capsys.readouterr().out
    assert "every 288 images and at the end, of 18 held-out images: about 4.7 % of the run" in said


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (
            "val/negativ_elbo",
            "not a metric of this method: did you mean val/negative_elbo.*there are val/recon",
        ),
        ("val/kl", "does not tell which run is better: take val/negative_elbo"),
        ("train/kl", "is not a held-out metric: those begin with val/"),
    ],
)
def test_the_best_checkpoint_is_by_a_figure_that_is_reported(
    source: Path, best: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        checked_plan(asked("vae", source, run__best=best))
    assert checked_plan(asked("vae", source, run__best="val/mse"))


def test_nothing_is_best_where_nothing_is_held_out(source: Path) -> None:
    with pytest.raises(UsageError, match="needs held-out images"):
        plan(asked("vae", source / "train", run__best="val/mse", data__held_out_fraction="0"))


def test_validations_that_take_too_long_are_spoken_of_once() -> None:
    judged = ValidationTime(0.05)
    assert judged.add(0.04 * SHARE_AFTER_SECONDS) == ""
    assert "validations take 6 % of the time (evaluate.share = 0.05)" in judged.add(
        0.02 * SHARE_AFTER_SECONDS
    )
    assert judged.add(SHARE_AFTER_SECONDS) == ""
