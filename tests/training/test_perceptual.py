"""A method with a perceptual loss: planned, trained, resumed with its file, used without it."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import udl_dist
from tests.trained import finished
from udl_dist import experiment as experiments
from udl_dist import methods
from udl_dist.core.config_schema import setting
from udl_dist.errors import TrainingError, UsageError
from udl_dist.experiment import Experiment
from udl_dist.inference.export import ExportSettings, export
from udl_dist.methods.losses import perceptual
from udl_dist.methods.method import Batch, Loss, Method, Phase, Shape
from udl_dist.methods.networks import sizes
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint

GRAY = (1, 8, 8)


@dataclass(frozen=True)
class ComparedSettings:
    latent_dim: int = setting(4, "numbers in the latent of an image", low=1)
    perceptual: str = setting("", "the network whose features are compared")

    def __post_init__(self) -> None:
        object.__setattr__(self, "perceptual", perceptual.absolute(self.perceptual))


class Compared(Method):
    """A linear autoencoder whose loss is perceptual."""

    Settings = ComparedSettings
    frozen = ("perceptual",)
    loss_files = ("perceptual",)

    def __init__(
        self, settings: ComparedSettings, shape: Shape, classes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(settings, shape, classes)
        self.latent_shape = (settings.latent_dim,)
        self.perceptual: nn.Module = nn.Identity()
        if settings.perceptual:
            self.perceptual = perceptual.load(settings.perceptual, shape)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, settings.latent_dim))
        self.decoder = nn.Sequential(nn.Linear(settings.latent_dim, 64), nn.Unflatten(1, shape))

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(("encoder", "decoder"), self.loss),)

    def loss(self, batch: Batch) -> Loss:
        output = self.reconstruct(batch.images)
        value = (output - batch.images).square().flatten(1).sum(1).mean()
        if self.settings.perceptual:
            value = value + self.perceptual(output, batch.images).mean()
        return Loss(value, {"error": value})

    def encode(self, images: Tensor) -> Tensor:
        latents: Tensor = self.encoder(images)
        return latents

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = self.decoder(latents)
        return images.tanh()

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        errors = (self.reconstruct(batch.images) - batch.images) / 2
        return {"mse": errors.square().flatten(1).mean(1)}


class Small(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.into, self.on = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 2, 1)
        random = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.3, generator=random)

    def forward(self, images: Tensor) -> list[Tensor]:
        found = self.into(images).relu()
        return [found, self.on(found)]


def written(path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of TorchScript that the environment trusts, and its sha256."""
    torch.jit.save(torch.jit.script(Small(seed)), str(path))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("UDL_TRUSTED_NETWORKS", sha256)
    return sha256


def experiment(source: Path, folder: Path, network: str, images: int) -> Experiment:
    flags = {"method.name": "ae", "method.perceptual": network, "track.mode": "off"}
    flags |= {"data.source": str(source), "data.readers": "0", "data.cache": str(source.parent)}
    flags |= {"data.size": "8", "data.channels": "1", "data.held_out_fraction": "0.2"}
    flags |= {"train.batch_size": "12", "train.total_images": str(images)}
    flags |= {"evaluate.every_images": "60", "evaluate.pictures": "false"}
    return experiments.load(None, flags | {"run.folder": str(folder)})


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "find", lambda name: Compared)


@pytest.mark.filterwarnings("ignore")
def test_a_run_resumes_with_the_same_file_and_refuses_another(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = str(tmp_path / "network.pt")
    written(Path(network), 1, monkeypatch)
    first = Path(network).read_bytes()
    finished(experiment(source, tmp_path / "cut", network, 120))
    newest = checkpoint.newest(RunFolder(tmp_path / "cut").checkpoints, print)
    assert newest is not None
    assert checkpoint.facts(newest)["frozen"] == {"perceptual": hashlib.sha256(first).hexdigest()}
    written(Path(network), 2, monkeypatch)
    with pytest.raises(TrainingError, match="the frozen network perceptual is not the one"):
        finished(experiment(source, tmp_path / "cut", network, 240))
    written(Path(network), 1, monkeypatch)
    Path(network).write_bytes(first)
    monkeypatch.setenv("UDL_TRUSTED_NETWORKS", hashlib.sha256(first).hexdigest())
    finished(experiment(source, tmp_path / "cut", network, 240))
    finished(experiment(source, tmp_path / "whole", network, 240))
    cut, whole = (udl_dist.load(tmp_path / name).method for name in ("cut", "whole"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, cut.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore")
def test_a_trained_model_needs_neither_the_file_nor_trust(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tmp_path / "some-where" / "network.pt"
    network.parent.mkdir()
    written(network, 1, monkeypatch)
    run = finished(experiment(source, tmp_path / "run", str(network), 60))
    network.unlink()
    monkeypatch.delenv("UDL_TRUSTED_NETWORKS")
    model = udl_dist.load(run)
    export(model, tmp_path / "exported", ExportSettings())
    again = udl_dist.load(tmp_path / "exported")
    images = torch.rand(3, *GRAY) * 2 - 1
    torch.testing.assert_close(again.reconstruct(images), model.reconstruct(images))
    for path in (tmp_path / "exported").rglob("*"):
        assert b"some-where" not in path.read_bytes(), path  # where the file lay
    with pytest.raises(UsageError, match="cannot be read"):
        finished(experiment(source, tmp_path / "run", str(network), 120))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["efficientnet-lite0", "script"])
def test_the_plan_counts_its_operations_without_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "script":
        name = str(tmp_path / "network.pt")
        written(Path(name), 1, monkeypatch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        methods_ = [
            sizes.MethodMaker(Compared, ComparedSettings(perceptual=each), GRAY).on_meta()
            for each in ("", name)
        ]
        assert torch.initial_seed() == 0
    without, method = methods_
    assert all(value.is_meta for value in method.parameters())
    assert sizes.cost(method).flops > 2 * sizes.cost(without).flops > 0
    assert list(method.networks) == ["encoder", "decoder"]
    assert json.dumps(list(method.saved_tensors())) == json.dumps(list(without.saved_tensors()))
    with pytest.raises(UsageError, match="cannot be read"):
        sizes.MethodMaker(Compared, ComparedSettings(perceptual="missing"), GRAY).on_meta()
