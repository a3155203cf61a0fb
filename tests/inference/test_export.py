"""An exported model gives what the run gives, in every format; whatever is wrong with the folder is
refused by name.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import udl_dist
from tests.trained import METHODS, images
from udl_dist.errors import DataError, TrainingError, UdlError, UsageError
from udl_dist.inference import export as exporting
from udl_dist.inference import layout
from udl_dist.inference.export import ExportSettings, export


@pytest.fixture(scope="module")
def exported(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder of each method, to be read only."""
    folder = tmp_path_factory.mktemp("models")
    for method in METHODS:
        export(udl_dist.load(trained[method]), folder / method, ExportSettings())
    return {method: folder / method for method in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_an_exported_model_gives_what_the_run_gives(
    trained: dict[str, Path], exported: dict[str, Path], method: str
) -> None:
    run, model, given = udl_dist.load(trained[method]), udl_dist.load(exported[method]), images(7)
    assert (model.origin.images, model.origin.averaged) == (run.origin.images, method == "gan")
    for ability in ("encode", "reconstruct", "score"):
        if run.can(ability):
            assert torch.equal(getattr(model, ability)(given), getattr(run, ability)(given))
    if run.can("sample"):
        assert torch.equal(model.sample(4, seed=5), run.sample(4, seed=5))


def test_it_loads_with_torch_numpy_and_safetensors_alone(
    exported: dict[str, Path], tmp_path: Path
) -> None:
    for name in (
        "ray",
        "wandb",
        "webdataset",
        "braceexpand",
        "cv2",
        "PIL",
        "simplejpeg",
        "pyarrow",
        "xxhash",
        "tomli_w",
        "google_crc32c",
        "sklearn",
        "matplotlib",
        "mlxtend",
    ):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not installed here')")
    code = (
        "import sys, udl_dist\nfor folder in sys.argv[1:]:\n    model = udl_dist.load(folder)\n"
        "    print(model.decode(model.latent_dim * [0.0]).shape[0])"
    )
    command = [sys.executable, "-c", code, *map(str, exported.values())]
    path = f"{tmp_path}:{Path(udl_dist.__file__).parent.parent}"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={"PYTHONPATH": path}
    )
    assert done.stdout.split() == ["1"] * 3, done.stderr


@pytest.mark.long
def test_every_way_through_a_model_is_read_again_and_says_how_far_it_is(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    done = export(
        udl_dist.load(trained["ae"]),
        tmp_path / "model",
        ExportSettings(onnx=True, torch_export=True),
    )
    names = {
        f"{part}.{kind}" for part in ("encoder", "decoder", "whole") for kind in ("onnx", "pt2")
    }
    assert set(done.values["differences"]) == names | {layout.WEIGHTS}
    assert all(difference < 1e-5 for difference in done.values["differences"].values())
    assert udl_dist.load(tmp_path / "model").can("encode")


def test_a_generator_is_the_whole_of_a_gan_in_every_format(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    import onnxruntime

    model = udl_dist.load(trained["gan"])
    done = export(model, tmp_path / "model", ExportSettings(onnx=True, torch_export=True))
    assert set(done.values["differences"]) == {"generator.onnx", "generator.pt2", layout.WEIGHTS}
    assert all(difference < 1e-5 for difference in done.values["differences"].values())
    session = onnxruntime.InferenceSession(
        tmp_path / "model" / "generator.onnx", providers=["CPUExecutionProvider"]
    )
    latents = torch.randn(9, model.latent_dim)
    (drawn,) = session.run(None, {"inputs": latents.numpy()})
    torch.testing.assert_close(torch.from_numpy(drawn), model.decode(latents), atol=1e-5, rtol=0)
    with zipfile.ZipFile(
        tmp_path / "model" / "generator.pt2"
    ) as stored:  # no image of the data, and no pickle
        assert all(
            entry.file_size == 0 for entry in stored.infolist() if "sample_inputs" in entry.filename
        )


def test_a_file_that_gives_something_else_is_not_exported(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(
        TrainingError, match="model.safetensors gives other numbers .*: nothing was exported"
    ):
        export(udl_dist.load(trained["ae"]), tmp_path / "model", ExportSettings())
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_onnx_is_refused_with_what_to_install(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UsageError,
        match=r"--onnx needs onnx, onnxscript, onnxruntime: pip install 'udl-dist\[export\]'",
    ):
        export(udl_dist.load(trained["ae"]), tmp_path / "model", ExportSettings(onnx=True))


def test_a_folder_that_holds_something_is_left_alone(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="exists and is not empty"):
        export(udl_dist.load(trained["ae"]), tmp_path, ExportSettings())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_exported_model_is_not_exported_again(exported: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is an exported model already"):
        export(udl_dist.load(exported["ae"]), tmp_path / "new", ExportSettings())


def test_the_card_has_front_matter_figures_and_no_path_of_this_machine(
    trained: dict[str, Path], exported: dict[str, Path]
) -> None:
    card = (exported["vae"] / layout.CARD).read_text()
    front = card.split("---")[1]
    assert 'license: "other"' in front
    assert 'library_name: "udl-dist"' in front
    for words in (
        "## Data",
        "## Metrics",
        "held-out images",
        "val/negative_elbo",
        "## Limits",
        "latent_dim = 4",
        "![drawn images",
    ):
        assert words in card
    assert str(trained["vae"].parent) not in card
    assert str(trained["vae"].parent) not in (exported["vae"] / layout.CONFIG).read_text()


def test_the_card_tells_what_it_was_trained_in_and_believes_no_word_of_it(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(trained["ae"], tmp_path / "run")
    with (tmp_path / "run" / "environment.jsonl").open("a") as file:
        file.write(json.dumps({"images": 60, "GPU": "<b>`x`"}) + "\n")
    export(udl_dist.load(tmp_path / "run"), tmp_path / "model", ExportSettings())
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"* From 0 images on: udl-dist {udl_dist.__version__}, Python " in card
    assert "* From 60 images on: GPU &lt;b&gt;\\`x\\`." in card


def test_an_evaluation_stands_in_the_card_with_its_protocol(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(trained["ae"], tmp_path / "run")
    protocols: dict[str, dict[str, Any]] = {
        "a|b": {"seeds": 3},
        "other": {"seeds": 3},
        "last": {"window": 11},
    }
    common: dict[str, Any] = {"n": 14, "data": "<b>"}
    figures = {
        name: {"value": 0.25, "sd": 0.01, "floor": {"pca": 0.3}, "protocol": common | own}
        for name, own in protocols.items()
    }
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps({"figures": figures}))
    export(udl_dist.load(tmp_path / "run"), tmp_path / "model", ExportSettings())
    card = (tmp_path / "model" / layout.CARD).read_text()
    assert card.count("n 14, data &lt;b&gt;") == 1  # what all have alike is said once
    assert (
        "Protocol of all of these: n 14, data &lt;b&gt;.\n\nWhere it is named: seeds 3.\n" in card
    )
    assert "| a\\|b | 0.25 ± 0.01 | pca 0.3 | seeds |" in card
    assert "| last | 0.25 ± 0.01 | pca 0.3 | window 11 |" in card


def test_names_from_data_are_no_markup_in_the_card() -> None:
    from udl_dist.inference.card import plain

    assert plain("<script>alert(1)</script>") == "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert plain("a|b`c\x1b[31m\nd") == "a\\|b\\`c�\\[31m d"


def _config(folder: Path, **changes: object) -> None:
    path = folder / layout.CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("wound", "error", "words"),
    [
        (
            lambda model: (model / "weights.pkl").touch(),
            DataError,
            "'weights.pkl', which may be a pickle",
        ),
        (
            lambda model: (model / "pytorch_model.bin").touch(),
            DataError,
            "'pytorch_model.bin', which may be a pickle",
        ),
        (
            lambda model: (model / layout.WEIGHTS).write_bytes(b"\x80\x04K\x01."),
            DataError,
            "is not what was exported",
        ),
        (
            lambda model: (model / layout.WEIGHTS).unlink(),
            DataError,
            "model.safetensors is missing",
        ),
        (lambda model: (model / layout.CONFIG).unlink(), DataError, "config.json cannot be read"),
        (lambda model: _flip(model / layout.WEIGHTS), DataError, r"its size or sha256 differs"),
        (
            lambda model: _flip(model / layout.CALIBRATION),
            DataError,
            r"calibration.json is not what was exported",
        ),
        (lambda model: _config(model, format=99), UsageError, "newer udl-dist: its format is 99"),
        (lambda model: _config(model, format="x"), DataError, "there is no format 'x'"),
        (
            lambda model: _config(model, settings=3),
            DataError,
            "settings missing or of the wrong type",
        ),
        (lambda model: _config(model, method="os"), UsageError, "unknown method.name 'os'"),
        (
            lambda model: _config(model, shape=[1, 10**9, 10**9]),
            DataError,
            "is not a valid shape of images",
        ),
        (
            lambda model: _config(model, settings={"latent_dim": 10**12}),
            TrainingError,
            "is of other networks",
        ),
        (
            lambda model: _config(model, settings={"wide": 1}),
            UsageError,
            "unknown setting method.wide",
        ),
        (
            lambda model: _config(model, files={"../x": {}, layout.WEIGHTS: {}}),
            DataError,
            "lists '../x', which is not a file",
        ),
        (lambda model: _config(model, files={}), DataError, "does not list model.safetensors"),
        (
            lambda model: (model / layout.CONFIG).write_bytes(b"[" * 100_000),
            DataError,
            "cannot be read",
        ),
        (
            lambda model: (model / layout.CONFIG).write_bytes(b" " * 2**23),
            DataError,
            "are the most",
        ),
        (lambda model: (model / layout.CONFIG).write_text("[]"), DataError, "is not a JSON object"),
    ],
)
def test_a_model_folder_that_is_not_what_it_claims_is_refused(
    exported: dict[str, Path],
    tmp_path: Path,
    wound: Callable[[Path], object],
    error: type[UdlError],
    words: str,
) -> None:
    shutil.copytree(exported["ae"], tmp_path / "model")
    wound(tmp_path / "model")
    with pytest.raises(error, match=words):
        udl_dist.load(tmp_path / "model")


def test_a_model_can_be_exported_when_its_data_is_gone(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(trained["ae"], tmp_path / "run")
    settings = tmp_path / "run" / "experiment.toml"
    settings.write_text(settings.read_text().replace("packed", "vanished"))
    done = export(udl_dist.load(tmp_path / "run"), tmp_path / "model", ExportSettings())
    assert any("the data cannot be read" in line for line in done.lines())
    assert not (tmp_path / "model" / layout.CALIBRATION).exists()
    assert udl_dist.load(tmp_path / "model").can("encode")
