"""A trained model in use: loads light and quick, gives the same in any batches, refuses what it
cannot do.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import udl_dist
from tests.trained import METHODS, images
from udl_dist.errors import TrainingError, UsageError
from udl_dist.inference import model as models
from udl_dist.training import checkpoint

SHAPE = (1, 8, 8)


@pytest.fixture(params=METHODS)
def folder(request: pytest.FixtureRequest, trained: dict[str, Path]) -> Path:
    return trained[request.param]


def test_a_model_gives_what_it_can_and_refuses_the_rest_by_name(folder: Path) -> None:
    model, given = udl_dist.load(folder), images(5)
    uses: dict[str, Callable[[], torch.Tensor]] = {
        "encode": lambda: model.encode(given),
        "reconstruct": lambda: model.reconstruct(given),
        "score": lambda: model.score(given),
        "sample": lambda: model.sample(5),
        "decode": lambda: model.decode(torch.zeros(5, model.latent_dim)),
    }
    for ability, use in uses.items():
        if model.can(ability):
            assert use().shape[0] == 5
        else:
            with pytest.raises(
                UsageError, match=f"a model of method .* cannot {ability}, it can .*"
            ):
                use()


def test_what_comes_out_does_not_depend_on_how_many_go_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = udl_dist.load(folder), images(11)
    if model.can("encode"):
        whole = model.encode(given), model.reconstruct(given), model.score(given).float()
        monkeypatch.setattr(models, "BATCH_IMAGES", 4)
        torch.testing.assert_close(
            (model.encode(given), model.reconstruct(given), model.score(given).float()), whole
        )
        assert model.encode(given[:0]).shape == (0, model.latent_dim)
    if model.can("sample"):
        torch.testing.assert_close(model.sample(3, seed=1, start=2), model.sample(5, seed=1)[2:])
        assert not torch.equal(model.sample(2, seed=1), model.sample(2, seed=2))


def test_the_best_checkpoint_is_used_unless_another_is_asked_for(trained: dict[str, Path]) -> None:
    run = trained["vae"]
    stored = checkpoint.complete(run / "checkpoints")
    best = min(stored, key=lambda path: checkpoint.facts(path)["figures"]["val/negative_elbo"])
    assert udl_dist.load(run).origin.images == int(best.name)
    assert udl_dist.load(run, checkpoint="last").origin.images == 480
    assert udl_dist.load(run, checkpoint=int(stored[0].name)).origin.images == int(stored[0].name)
    assert "by val/negative_elbo" in udl_dist.load(run).origin.line()
    with pytest.raises(UsageError, match="no checkpoint '7': there are best, last, "):
        udl_dist.load(run, checkpoint="7")


def test_averaged_weights_are_used_where_a_run_keeps_them(trained: dict[str, Path]) -> None:
    model = udl_dist.load(trained["gan"])
    files, _ = checkpoint.load(
        checkpoint.path_of(trained["gan"] / "checkpoints", model.origin.images)
    )
    assert model.origin.averaged
    for name, value in model.method.saved_tensors().items():
        expected = (
            files["average"][name] if name.startswith("generator.") else files["networks"][name]
        )
        assert torch.equal(value, expected)
    assert not torch.equal(
        files["average"]["generator.0.weight"], files["networks"]["generator.0.weight"]
    )


def test_loading_imports_neither_ray_nor_wandb_nor_webdataset(trained: dict[str, Path]) -> None:
    code = (
        "import sys, udl_dist\nassert 'torch' not in sys.modules\n"
        "for folder in sys.argv[1:]:\n    udl_dist.load(folder)\n"
        "print(sorted({'ray', 'wandb', 'webdataset', 'cv2', 'torch._dynamo'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *map(str, trained.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["[]"]


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither a run folder nor an exported model"):
        udl_dist.load(tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        udl_dist.load(tmp_path / "nowhere")


def test_a_damaged_checkpoint_is_passed_over_and_said_and_never_when_it_is_the_best(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(trained["ae"], tmp_path / "run")
    stored = checkpoint.complete(tmp_path / "run" / "checkpoints")
    best = checkpoint.best_of(stored, "val/mse")
    assert best
    for damaged in {best, stored[-1]}:
        (damaged / "networks.safetensors").write_bytes(b"\x80\x04K\x01.")  # a pickle
    model = udl_dist.load(tmp_path / "run", checkpoint="last")
    assert model.origin.images < 480
    assert "passed over" in model.origin.notes[0]
    with pytest.raises(TrainingError, match="networks.safetensors is damaged"):
        udl_dist.load(tmp_path / "run")


def test_weights_of_other_networks_are_refused_by_the_first_that_differs(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(trained["ae"], tmp_path / "run")
    settings = tmp_path / "run" / "experiment.toml"
    settings.write_text(settings.read_text().replace("latent_dim = 4", "latent_dim = 5"))
    with pytest.raises(
        TrainingError, match=r"decoder.0.weight should be float32 \[16, 5\], is float32 \[16, 4\]"
    ):
        udl_dist.load(tmp_path / "run")


def test_output_that_is_no_number_is_refused(trained: dict[str, Path]) -> None:
    model = udl_dist.load(trained["ae"])
    model.method.networks["encoder"].get_parameter("1.weight").fill_(float("nan"))
    with pytest.raises(TrainingError, match="gives numbers that are not finite"):
        model.encode(images(2))


def test_a_device_that_is_not_there_is_refused(trained: dict[str, Path]) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="there is no device 'cuda' here"):
            udl_dist.load(trained["ae"], device="cuda")
    with pytest.raises(UsageError, match="there is no device 'tpu9'"):
        udl_dist.load(trained["ae"], device="tpu9")


def test_scores_are_the_error_and_the_bound(trained: dict[str, Path]) -> None:
    model, given = udl_dist.load(trained["vae"]), images(6)
    assert model.scores == ("reconstruction", "negative_elbo")
    by_hand = (
        (model.reconstruct(given) - model.images(given)).div(2).square().mean((1, 2, 3)).double()
    )
    torch.testing.assert_close(model.score(given, "reconstruction"), by_hand)
    assert not torch.allclose(
        model.score(given, seed=1), model.score(given, seed=2)
    )  # a draw of the latent
    with pytest.raises(
        UsageError, match="has no score 'fid': it has reconstruction, negative_elbo"
    ):
        model.score(given, "fid")


def test_pictures_are_pil_images(trained: dict[str, Path]) -> None:
    model = udl_dist.load(trained["gan"])
    pictures = model.pictures(model.sample(2))
    assert [picture.size for picture in pictures] == [(8, 8)] * 2
    assert json.dumps(pictures[0].getpixel((0, 0)))
