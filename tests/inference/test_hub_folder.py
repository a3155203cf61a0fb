"""A tokenizer as a folder of diffusers: diffusers computes the same, another run starts from it,
and what does not fit is refused by name.

Runs are real, with noise on their weights: at first the last layers of blocks and of attention are
zero, so that their arithmetic would not show.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import udl_dist
from tests.methods.cases import TOKENIZER, made, maker
from tests.trained import run
from tests.training.learn import asked
from udl_dist.cli import main
from udl_dist.core import rng
from udl_dist.errors import DataError, UdlError, UsageError
from udl_dist.inference import calibration, hub_folder, sources, warm_start
from udl_dist.inference.export import ExportSettings, export
from udl_dist.inference.model import Model
from udl_dist.inference.sources import as_batch, open_run
from udl_dist.launch.plan import checked_plan
from udl_dist.methods.method import Batch

FOR_HUB = ExportSettings(format="diffusers")
SHORT = {"train__total_images": "12", "evaluate__every_images": "0"}
# Widths, attention, height and width, channels.
KINDS: dict[str, tuple[str, str, str, str]] = {
    "middle": ("4,8", "middle", "8", "1"),
    "smallest": ("12,8,16", "smallest", "8,16", "3"),
    "none": ("8", "none", "12,8", "1"),
}


@pytest.fixture(scope="module")
def diffusers() -> Iterator[Any]:
    """The library, without the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import diffusers

        yield diffusers


@pytest.fixture(scope="module")
def models(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """A model of each kind, no weight of which is zero."""
    folder, found = tmp_path_factory.mktemp("kl"), {}
    torch.manual_seed(0)
    for name, (widths, attention, size, channels) in KINDS.items():
        values = {"method__widths": widths, "method__attention": attention}
        values |= {"data__size": size, "data__channels": channels}
        found[name] = udl_dist.load(run("kl", source, folder / name, **values, **SHORT))
        for value in found[name].method.parameters():
            value.add_(torch.randn_like(value), alpha=0.2)
    return found


@pytest.fixture(scope="module")
def folders(
    models: dict[str, Model], diffusers: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Their exports, to be read only."""
    folder = tmp_path_factory.mktemp("hub")
    for name, model in models.items():
        done = export(model, folder / name, FOR_HUB)
        # What export itself finds, by diffusers and by our own reading.
        assert done.values["differences"][hub_folder.WEIGHTS] == 0
        assert done.values["differences"]["diffusers"] < 1e-5
    return {name: folder / name for name in models}


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_computes_the_same(
    diffusers: Any, models: dict[str, Model], folders: dict[str, Path], kind: str
) -> None:
    model, network = models[kind], diffusers.AutoencoderKL.from_pretrained(folders[kind])
    method: Any = model.method
    images = torch.rand(3, *model.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        posterior, (mean, logvar) = (
            network.encode(images).latent_dist,
            method.compressed(images).chunk(2, 1),
        )
        theirs, (ours, _) = network.decode(mean).sample, method._decoded(mean)
    torch.testing.assert_close(posterior.mean, model.encode(images), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(posterior.logvar, logvar, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs.clamp(-1, 1), model.decode(mean), atol=1e-5, rtol=0)
    assert network.state_dict().keys() == load_file(folders[kind] / hub_folder.WEIGHTS).keys()


def test_the_default_networks_are_those_of_stable_diffusion(diffusers: Any) -> None:
    # As in the config.json of its autoencoder, for images of 256 pixels.
    config = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "sample_size": 256,
    }
    with torch.device("meta"):
        network = diffusers.AutoencoderKL.from_config(config)
    method = maker("kl", {}, (3, 256, 256)).on_meta()
    layout, own = method.hub(), method.saved_tensors()
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    assert shapes == {name: own[mine].shape for name, mine in layout.names.items()}
    assert {key: network.config[key] for key in layout.config} == layout.config


@pytest.mark.parametrize("attention", ["none", "middle", "smallest"])
def test_a_vq_model_has_the_same_networks(diffusers: Any, attention: str) -> None:
    from udl_dist.methods.networks.hub import hub_layout

    method = made("kl", TOKENIZER | {"widths": [8, 4, 8], "attention": attention}, (3, 8, 16))
    layout = hub_layout(method, "VQModel", {"num_vq_embeddings": 5, "vq_embed_dim": 4}, ())
    network = diffusers.VQModel.from_config(dict(layout.config))
    assert set(network.state_dict()) == {*layout.names, "quantize.embedding.weight"}
    decoder = {name: value for name, value in method.saved_tensors().items() if "decoder" in name}
    assert not network.load_state_dict(decoder, strict=False).unexpected_keys
    noise = torch.randn(2, 4, *method.latent_shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(network.decoder(noise), method.decoder(noise))


def held_out_latents(model: Model) -> Tensor:  # [N, z, h, w]
    assert model.origin.experiment
    stream, held_out = open_run(model.origin.experiment)
    return torch.cat([model.encode(as_batch(part).images) for part in (held_out or stream).once(5)])


def test_statistics_are_of_the_latents_of_all_held_out_images(
    models: dict[str, Model], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BATCH_IMAGES", 7)
    for kind, folder in folders.items():
        every, config = held_out_latents(models[kind]).double(), _config(folder)
        assert len(every) == 18
        expected = {
            "scaling_factor": 1 / float(every.std(correction=0)),
            "shift_factor": float(every.mean()),
            "latents_mean": every.mean((0, 2, 3)).tolist(),
            "latents_std": every.std((0, 2, 3), correction=0).tolist(),
        }
        # Now in parts, of which the last is smaller.
        again = calibration.latent_statistics(models[kind]).config()
        for key, value in expected.items():
            assert config[key] == pytest.approx(value, rel=1e-4, abs=1e-6)
            assert again[key] == pytest.approx(value, rel=1e-4, abs=1e-6)
        card = (folder / "README.md").read_text()
        assert f"so scaling_factor is {config['scaling_factor']:.6g}" in card
        assert "latents of 18 held-out images" in card


def test_statistics_of_many_images_are_of_some_at_random(
    models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BATCH_IMAGES", 4)
    monkeypatch.setattr(calibration, "MOST_IMAGES", 10)
    model = models["middle"]
    assert model.origin.experiment
    _, held_out = open_run(model.origin.experiment)
    assert held_out
    some = torch.from_numpy(next(held_out.batches(0, 10)).images)
    known = calibration.latent_statistics(model)
    assert known.images == 10
    assert known.std == pytest.approx(float(model.encode(some).double().std(correction=0)))


def test_without_the_data_the_scale_is_left_out_and_said(
    models: dict[str, Model], diffusers: Any, tmp_path: Path
) -> None:
    run_folder = Path(shutil.copytree(models["middle"].origin.folder, tmp_path / "run"))
    settings = run_folder / "experiment.toml"
    settings.write_text(settings.read_text().replace("packed", "vanished"))
    done = export(udl_dist.load(run_folder), tmp_path / "model", FOR_HUB)
    assert any(line.startswith("latents were not measured") for line in done.lines())
    assert "latents were not measured" in (tmp_path / "model" / "README.md").read_text()
    assert "scaling_factor" not in _config(tmp_path / "model")
    network = diffusers.AutoencoderKL.from_pretrained(tmp_path / "model")
    assert network.config.scaling_factor == 0.18215


def test_without_diffusers_the_files_are_read_by_us_alone(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    done = export(models["none"], tmp_path / "model", FOR_HUB)
    assert done.values["differences"] == {hub_folder.WEIGHTS: 0}
    assert any(line.startswith("diffusers is not installed") for line in done.lines())


def test_what_has_no_class_in_diffusers_is_refused(
    models: dict[str, Model], trained: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="diffusers has no class for method ae: export it without"):
        export(udl_dist.load(trained["ae"]), tmp_path / "model", FOR_HUB)
    with pytest.raises(UsageError, match="--onnx and --torch-export belong to the format udl"):
        export(models["none"], tmp_path / "model", replace(FOR_HUB, torch_export=True))
    assert not (tmp_path / "model").exists()


def test_the_command_writes_the_folder_and_others_say_what_it_is(
    models: dict[str, Model], diffusers: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_folder, model = str(models["none"].origin.folder), str(tmp_path / "model")
    with pytest.raises(SystemExit, match="0"):
        main(["export", run_folder, model, "--format", "diffusers"])
    assert "diffusers gives the same reconstructions" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["sample", model])
    said = capsys.readouterr().err
    assert "is a 'AutoencoderKL' of diffusers, which only train.init_from reads" in said


def test_a_run_starts_with_the_weights_of_a_folder(
    models: dict[str, Model], folders: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    started = run(
        "kl",
        source,
        tmp_path / "new",
        train__init_from=str(folders["middle"]),
        train__learning_rate="1e-12",
        **SHORT,
    )
    names = sorted(models["middle"].method.hub().names.values())
    found, given = (
        {name: model.method.saved_tensors()[name] for name in names}
        for model in (udl_dist.load(started), models["middle"])
    )
    torch.testing.assert_close(found, given, atol=1e-6, rtol=0)
    stored = json.loads((started / "init.json").read_text())
    assert stored["method"] == "AutoencoderKL of diffusers"
    assert stored["taken"] == names
    assert all(name.startswith("adversary.") for name in stored["anew"])


def test_names_of_attention_that_diffusers_had_before_are_read_too(
    diffusers: Any, models: dict[str, Model], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["smallest"], tmp_path / "model"))
    former = {new: old for old, new in hub_folder.FORMER.items()}

    def renamed(name: str) -> str:
        for new, old in former.items():
            name = name.replace(f".{new}.", f".{old}.")
        return name

    _stored(folder, lambda every: {renamed(name): value for name, value in every.items()})
    method, images = models["smallest"].method, torch.zeros(1, 3, 8, 16)
    found = hub_folder.read(folder, method)
    assert all(torch.equal(value, method.saved_tensors()[name]) for name, value in found.items())
    with torch.no_grad():
        network = diffusers.AutoencoderKL.from_pretrained(folder)
        torch.testing.assert_close(network.encode(images).latent_dist.mean, method.encode(images))


def test_other_widths_are_first_weights_of_its_own(folders: dict[str, Path]) -> None:
    method = made("kl", TOKENIZER | {"widths": [4, 12]})
    found = warm_start.read(str(folders["middle"]), method)
    assert "encoder.conv_in.weight" in found.tensors
    assert found.unmatched["decoder.conv_in.bias"] == "[8] there, [12] here"
    assert f"tensors of {folders['middle']}: AutoencoderKL of diffusers; first" in found.line()


def _config(folder: Path, **changes: object) -> dict[str, Any]:
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(config))
    return config


def _stored(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / hub_folder.WEIGHTS
    save_file(change(load_file(path)), path)


def _pickled(folder: Path) -> None:
    (folder / hub_folder.WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")


wounds: list[tuple[Callable[[Path], object], type[UdlError], str]] = [
    (
        lambda folder: _config(folder, _class_name="VQModel"),
        UsageError,
        "is a 'VQModel' of diffusers, this method is its AutoencoderKL",
    ),
    (_pickled, DataError, "but diffusion_pytorch_model.bin, a pickle that may run code"),
    (
        lambda folder: (folder / hub_folder.WEIGHTS).unlink(),
        DataError,
        "has no diffusion_pytorch_model.safetensors: copy it again",
    ),
    (
        lambda folder: (folder / hub_folder.WEIGHTS).write_bytes(b"\x80\x04K\x01."),
        DataError,
        "is not a valid safetensors file",
    ),
    (
        lambda folder: _stored(
            folder,
            lambda every: {name: one for name, one in every.items() if "conv_in" not in name},
        ),
        DataError,
        "lacks decoder.conv_in.bias, decoder.conv_in.weight, encoder.conv_in.bias and 1 more",
    ),
    (
        lambda folder: _stored(folder, lambda every: every | {"more": torch.zeros(1)}),
        DataError,
        "has more, which this method lacks",
    ),
    (
        # As diffusers fills in what a configuration leaves out.
        lambda folder: (folder / "config.json").write_text('{"_class_name": "AutoencoderKL"}'),
        UsageError,
        "norm_num_groups is 32, that of this method 1",
    ),
    (
        lambda folder: _config(folder, mid_block_add_attention=False),
        UsageError,
        "mid_block_add_attention is False, that of this method True",
    ),
]


@pytest.mark.parametrize(("wound", "error", "words"), wounds)
def test_a_folder_that_does_not_fit_is_refused_by_the_plan(
    folders: dict[str, Path],
    source: Path,
    tmp_path: Path,
    wound: Callable[[Path], object],
    error: type[UdlError],
    words: str,
) -> None:
    folder = Path(shutil.copytree(folders["middle"], tmp_path / "model"))
    wound(folder)
    with pytest.raises(error, match=words):
        checked_plan(asked("kl", source, train__init_from=str(folder)))


def test_a_method_without_a_class_does_not_start_from_a_folder(
    folders: dict[str, Path], source: Path
) -> None:
    with pytest.raises(UsageError, match="which has no class for this method: name a run of"):
        checked_plan(asked("ae", source, train__init_from=str(folders["middle"])))


def test_a_tensor_that_was_not_written_shows(
    models: dict[str, Model], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["middle"]
    hub = model.method.hub()
    names = {name: own for name, own in hub.names.items() if name != "quant_conv.bias"}
    monkeypatch.setattr(type(model.method), "hub", lambda self: replace(hub, names=names))
    images = torch.zeros(1, *model.shape)
    (folder := folders["middle"].parent / "partial").mkdir()
    hub_folder.write(model, None, folder)
    assert not hub_folder.own_difference(model, folder, images) < 1  # NaN


QUANTIZERS: dict[str, dict[str, Any]] = {
    "ema": {"quantizer.kind": "ema"},
    "gradient": {"quantizer.kind": "gradient", "quantizer.normalise": False},
}


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("attention", ["none", "smallest"])
@torch.no_grad()
def test_vqmodel_computes_the_same(
    diffusers: Any, kind: str, attention: str, tmp_path: Path
) -> None:
    values = QUANTIZERS[kind] | {"attention": attention, "adversary.width": 4}
    values |= {"widths": [4, 8], "blocks": 1, "latent_channels": 6, "adversary.halvings": 1}
    method = made("vq", values | {"quantizer.codes": 16, "quantizer.dimensions": 3}, (3, 16, 16))
    for value in method.parameters():
        value.add_(torch.randn_like(value), alpha=0.2)
    method.eval()
    hub = method.hub()
    config = {**hub.config, "_class_name": hub.class_name}
    (tmp_path / "config.json").write_text(json.dumps(config))
    saved = method.saved_tensors()
    stored = {theirs: saved[own].contiguous() for theirs, own in hub.names.items()}
    save_file(stored, tmp_path / hub_folder.WEIGHTS)
    network = diffusers.VQModel.from_pretrained(tmp_path)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = network.encode(images).latents
    torch.testing.assert_close(latents, method.compressed(images), atol=1e-5, rtol=1e-5)
    _, _, (_, _, indices) = network.quantize(latents)
    assert torch.equal(indices.view(3, 8, 8), method.indices(images))
    decoded = network.decode(latents).sample.clamp(-1, 1)
    torch.testing.assert_close(decoded, method.reconstruct(images), atol=1e-5, rtol=1e-5)
    # Back again: a codebook that was loaded is in use, and no entry is restarted.
    again = made("vq", values | {"quantizer.codes": 16, "quantizer.dimensions": 3}, (3, 16, 16))
    again.load_saved(again.saved_tensors() | hub_folder.read(tmp_path, again))
    again.eval()
    assert torch.equal(again.indices(images), method.indices(images))
    if kind == "ema":
        sums = again._latents(Batch(images, rng.keys(0, 3), rng.keys(1, 3), 0)).sums
        again.quantizer.after_step(sums)
        moved = (again.quantizer.codebook - method.quantizer.codebook).norm(dim=1)
        assert float(moved.max()) < 0.5


@pytest.mark.parametrize(
    "values", [{"kind": "fsq"}, {"kind": "gradient", "codes": 16}], ids=["fsq", "gradient"]
)
def test_a_quantizer_that_diffusers_lacks_is_refused_by_name(values: dict[str, Any]) -> None:
    named = {f"quantizer.{name}": value for name, value in values.items()}
    with pytest.raises(UsageError, match=f"no class for method.quantizer.kind = {values['kind']}"):
        made("vq", TOKENIZER | named).hub()
