"""A run that starts with the weights of another: taken by name and shape, said, stored by hash, and
never taken again.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

import udl_dist
from tests.trained import finished, run
from tests.training.learn import asked
from udl_dist import experiment as experiments
from udl_dist.data.packing.prepare import prepare
from udl_dist.errors import UsageError
from udl_dist.experiment import Experiment
from udl_dist.inference.export import ExportSettings, export
from udl_dist.launch.plan import checked_plan
from udl_dist.launch.worker import work
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training.distributed import Ranks


def still(method: str, source: Path, folder: Path, init_from: Path, **flags: str) -> Path:
    """A run of one step that moves next to nothing."""
    return run(
        method,
        source,
        folder,
        train__init_from=str(init_from),
        train__total_images="12",
        train__learning_rate="1e-12",
        **flags,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return udl_dist.load(folder).method.saved_tensors()


@pytest.mark.parametrize("method", ["ae", "vae", "gan"])
def test_a_run_starts_with_the_weights_of_another_and_keeps_their_hash(
    method: str, trained: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    average = {"train__average_half_life": "100"} if method == "gan" else {}
    made = still(method, source, tmp_path / "new", trained[method], **average)
    torch.testing.assert_close(weights(made), weights(trained[method]), atol=1e-6, rtol=0)
    stored = json.loads((made / "init.json").read_text())
    assert stored["weights"] == udl_dist.load(trained[method]).origin.weights
    assert (stored["from"], stored["anew"]) == (str(trained[method]), {})
    said = RunFolder(made).messages.read_text()
    count = len(stored["taken"])
    assert f"starts from {count} of {count} tensors of {trained[method]}: " in said


def test_an_exported_model_will_do(trained: dict[str, Path], source: Path, tmp_path: Path) -> None:
    export(udl_dist.load(trained["ae"]), tmp_path / "model", ExportSettings())
    made = still("ae", source, tmp_path / "new", tmp_path / "model")
    torch.testing.assert_close(weights(made), weights(trained["ae"]), atol=1e-6, rtol=0)


def test_what_does_not_fit_starts_fresh_and_is_said(
    trained: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    made = still("ae", source, tmp_path / "new", trained["ae"], method__latent_dim="5")
    stored = json.loads((made / "init.json").read_text())
    assert stored["taken"] and stored["anew"]
    assert all(why.endswith(" here") for why in stored["anew"].values())  # of other shapes
    before, after = weights(trained["ae"]), weights(made)
    for name in stored["taken"]:
        torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    assert "; first weights of its own for " in RunFolder(made).messages.read_text()


def test_networks_that_have_nothing_in_common_are_refused_by_the_plan(
    trained: dict[str, Path], source: Path
) -> None:
    with pytest.raises(UsageError, match="is of other networks, none of its tensors fits"):
        checked_plan(
            asked(
                "ae",
                source,
                train__init_from=str(trained["ae"]),
                method__network__widths="9,7",
                method__latent_dim="3",
            )
        )
    with pytest.raises(UsageError, match="there is no folder"):
        checked_plan(asked("ae", source, train__init_from="nowhere"))
    with pytest.raises(UsageError, match="must be a folder on a disk"):
        asked("ae", source, train__init_from="s3://bucket/run")


def test_a_resumed_run_takes_nothing_again_and_its_source_may_be_gone(
    trained: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    origin = Path(shutil.copytree(trained["ae"], tmp_path / "origin"))
    whole = still_running("ae", source, tmp_path / "whole", origin, 240)
    finished(whole)
    finished(still_running("ae", source, tmp_path / "cut", origin, 120))
    shutil.rmtree(origin)
    longer = still_running("ae", source, tmp_path / "cut", origin, 240)
    checked_plan(longer)
    work(longer, prepare(longer.data), Ranks())
    assert weights(tmp_path / "cut").keys() == weights(tmp_path / "whole").keys()
    for name, value in weights(tmp_path / "whole").items():
        assert value.equal(weights(tmp_path / "cut")[name])


def still_running(
    method: str, source: Path, folder: Path, init_from: Path, images: int
) -> Experiment:
    flags = {
        "train__init_from": str(init_from),
        "train__total_images": str(images),
        "run__folder": str(folder),
        "track__mode": "off",
        "run__best": "val/mse",
        "evaluate__every_images": "60",
    }
    return asked(method, source, **flags)


def test_a_relative_folder_is_made_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    made = experiments.load(
        None, {"method.name": "ae", "train.init_from": "runs/a", "train.epochs": "1"}
    )
    assert made.train.init_from == str(tmp_path / "runs" / "a")
