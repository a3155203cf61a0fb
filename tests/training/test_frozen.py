"""A frozen child of a method: it helps a loss, and is neither trained, averaged nor saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import udl_dist
from tests.trained import finished
from tests.training import gloo
from tests.training.learn import Run, asked
from udl_dist import methods
from udl_dist.errors import TrainingError
from udl_dist.experiment import Experiment
from udl_dist.methods.ae import AESettings
from udl_dist.methods.method import Batch, Loss, Method, Phase
from udl_dist.runs.run_folder import RunFolder
from udl_dist.training import checkpoint
from udl_dist.training.distributed import Ranks


class Helped(Method):
    """A linear autoencoder whose loss compares features of a fixed network."""

    Settings = AESettings
    frozen = ("helper",)
    best = "features"
    seed = 5  # of the helper

    def __init__(self, settings: Any, shape: Any, classes: tuple[str, ...] = ()) -> None:
        super().__init__(settings, shape, classes)
        self.latent_shape = (4,)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.Unflatten(1, shape))
        # What in training would differ from image to image and from step to step.
        self.helper = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))
        random = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for weight in self.helper.parameters():
                if not weight.is_meta:
                    weight.copy_(torch.randn(weight.shape, generator=random))

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(("encoder", "decoder"), self.loss),)

    def loss(self, batch: Batch) -> Loss:
        error = self._errors(batch).mean()
        return Loss(error, {"features": error})

    def encode(self, images: Tensor) -> Tensor:
        latents: Tensor = self.encoder(images)
        return latents

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        images: Tensor = self.decoder(latents)
        return images.tanh()

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        return {"features": self._errors(batch)}

    def _errors(self, batch: Batch) -> Tensor:
        assert not self.helper.training
        features = self.helper(self.decode(self.encode(batch.images))) - self.helper(batch.images)
        errors: Tensor = features.square().flatten(1).sum(1)
        return errors


class OtherHelper(Helped):
    seed = 6


def helped(experiment: Experiment, ranks: Ranks | None = None) -> Run:
    return Run(experiment, ranks, Helped)


def copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_it_is_neither_trained_nor_averaged_nor_saved(source: Path) -> None:
    run = helped(asked("ae", source, train__average_half_life="50", train__weight_decay="0.1"))
    method: Any = run.learning.method
    average: Any = run.learning.average
    before, weights = copied(method.helper), run.weights().clone()
    reports = list(run.reports())
    assert reports[-1].metrics["train/features"] < reports[0].metrics["train/features"]
    assert not torch.equal(run.weights(), weights)
    for name, value in copied(method.helper).items():
        assert torch.equal(value, before[name]), name
    assert all(value.grad is None for value in method.helper.parameters())
    assert list(method.networks) == ["encoder", "decoder"]
    assert average.helper is method.helper
    for file, tensors in run.learning.tensors().items():
        assert not [name for name in tensors if "helper" in name], file
    assert run.learning.tensors()["networks"].keys() == {
        f"{network}.{part}" for network in ("encoder.1", "decoder.0") for part in ("weight", "bias")
    }
    trained = {id(value) for phase in run.learning.phases for value in phase.parameters()}
    assert not trained & {id(value) for value in method.helper.parameters()}


def test_it_stays_in_evaluation_mode_whatever_the_method_is_in(source: Path) -> None:
    run = helped(asked("ae", source, train__average_half_life="50"))
    both: list[Any] = [run.learning.method, run.learning.average]
    for method in both:
        for mode in (True, False, True):
            assert method.train(mode) is method
            assert method.encoder.training is mode
            assert not any(module.training for module in method.helper.modules())
    # After validations, and with asserts in every loss.
    list(run.reports(validate=24))
    assert both[0].encoder.training
    assert not any(module.training for module in both[0].helper.modules())


def hashed(plain: Experiment, elastic: Experiment) -> tuple[Tensor, bool, str]:
    """Weights, whether a resume has the same bits, and the hash of an elastic run."""
    run, half = helped(plain, Ranks()), {}
    for report in run.reports():
        if report.images == 120:
            half = run.state()
    again = helped(plain, Ranks())
    again.learning.restore(half)
    list(again.reports(120))
    other = helped(elastic, Ranks())
    list(other.reports())
    return run.weights(), again.hash() == run.hash(), other.hash()


def test_worlds_agree_and_resume_to_the_bit(source: Path) -> None:
    plain = asked(
        "ae", source, train__optimizer="sgd", train__beta1="0", train__learning_rate="1e-5"
    )
    elastic = asked("ae", source, run__determinism="elastic")
    found = {world: gloo.run(world, hashed, plain, elastic) for world in (1, 2, 3)}
    alone, _, bits = found[1][0]
    for ranks in found.values():
        for weights, alike, elastic_bits in ranks:
            assert (weights - alone).abs().max().item() <= 1e-6
            assert alike
            assert elastic_bits == bits


def in_folder(source: Path, folder: Path, images: int) -> Experiment:
    flags = {"track__mode": "off", "evaluate__every_images": "60", "evaluate__pictures": "false"}
    return asked("ae", source, run__folder=str(folder), train__total_images=str(images), **flags)


def test_a_run_knows_its_helper_by_its_sha256_and_refuses_another(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "find", lambda name: Helped)
    finished(in_folder(source, tmp_path / "cut", 120))
    newest = checkpoint.newest(RunFolder(tmp_path / "cut").checkpoints, print)
    assert newest is not None
    stored = checkpoint.facts(newest)["frozen"]
    assert list(stored) == ["helper"] and len(stored["helper"]) == 64
    monkeypatch.setattr(methods, "find", lambda name: OtherHelper)
    with pytest.raises(
        TrainingError, match=r"the frozen network helper is not the one .* \(sha256"
    ):
        finished(in_folder(source, tmp_path / "cut", 240))
    monkeypatch.setattr(methods, "find", lambda name: Helped)
    finished(in_folder(source, tmp_path / "cut", 240))
    finished(in_folder(source, tmp_path / "whole", 240))
    cut, whole = (udl_dist.load(tmp_path / name).method for name in ("cut", "whole"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, cut.state_dict()[name]), name


def test_a_loaded_model_has_its_helper(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "find", lambda name: Helped)
    method: Any = udl_dist.load(finished(in_folder(source, tmp_path / "run", 60))).method
    fresh: Any = Helped(method.settings, method.shape)
    for name, value in fresh.helper.state_dict().items():
        assert torch.equal(value, method.helper.state_dict()[name])
    points = (tmp_path / "run" / "checkpoints").glob("*/*.json")
    assert any("helper" in json.dumps(json.loads(path.read_text())) for path in points)
