"""What every method keeps, whatever package it is from, and how a method is found."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.methods.cases import CASES, DENSE, SHAPE, batch, made, maker, part
from udl_dist.errors import UsageError
from udl_dist.methods import find, names
from udl_dist.methods.method import Method, Phase

NO_DEVIATION = (
    "method.variance and method.sigma have no meaning when method.likelihood is bernoulli"
)
# What stands before a rounding gets the gradient of none (straight through), by design.
ROUNDED = ("vq", "vq by gradient", "fsq")
every_method = pytest.mark.parametrize("case", CASES)


def learn_only(method: Method, phase: Phase) -> list[Tensor]:
    """Freeze what the phase does not train, as the loop does, and return what it trains."""
    method.requires_grad_(False)
    return [
        value
        for name in phase.trains
        for value in method.networks[name].requires_grad_(True).parameters()
    ]


def gradient(method: Method, phase: Phase, *args: Any) -> Tensor:
    weights = learn_only(method, phase)
    return torch.cat(
        [value.flatten() for value in torch.autograd.grad(phase.loss(*args).value, weights)]
    )


@every_method
def test_each_phase_touches_every_parameter_of_its_learner_and_no_other(case: str) -> None:
    method = made(*CASES[case])
    for phase in method.phases():
        weights = learn_only(method, phase)
        loss = phase.loss(batch())
        assert loss.value.shape == ()
        assert loss.plots
        assert all(value.shape == () for value in loss.plots.values())
        assert not any(value.requires_grad for value in loss.sums.values())
        loss.value.backward()
        assert all(value.grad is not None for value in weights)
        reached = sum(value.grad is not None for value in method.parameters())
        assert reached == len(weights)
        method.zero_grad()


@every_method
def test_two_halves_average_to_the_whole(case: str) -> None:
    method = made(*CASES[case])
    # batch normalisation and dropout are not functions of one image while training
    method.double().eval()
    whole = batch(dtype=torch.float64)
    halves = [part(whole, slice(0, 3)), part(whole, slice(3, 6))]
    for phase in method.phases():
        loss, (one, other) = phase.loss(whole), [phase.loss(half) for half in halves]
        torch.testing.assert_close(loss.value, (one.value + other.value) / 2)
        for name, value in loss.plots.items():
            if name != "sigma":
                torch.testing.assert_close(value, (one.plots[name] + other.plots[name]) / 2)
        for name, value in loss.sums.items():
            torch.testing.assert_close(value, one.sums[name] + other.sums[name])
        gradients = [gradient(method, phase, half) for half in halves]
        torch.testing.assert_close(
            gradient(method, phase, whole), (gradients[0] + gradients[1]) / 2
        )


@every_method
def test_gradients_equal_finite_differences(case: str) -> None:
    method = made(*CASES[case])
    method.double().eval()
    data, small = batch(3, dtype=torch.float64), 1e-6
    for phase in method.phases():
        learn_only(method, phase)
        names = set(phase.trains)
        if case in ROUNDED:
            names -= {"encoder", "quant_conv", "quantizer"}
        weights = [value for name in names for value in method.networks[name].parameters()]
        found = torch.autograd.grad(phase.loss(data).value, weights)
        slope = torch.cat([value.flatten() for value in found])
        direction = torch.randn(
            slope.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(4)
        )
        direction = direction / direction.norm() + slope / slope.norm()
        losses = []
        for step in (small, -2 * small):
            with torch.no_grad():
                for value, move in zip(
                    weights, direction.split([v.numel() for v in weights]), strict=True
                ):
                    value += step * move.view_as(value)
            losses.append(phase.loss(data).value.detach())
        torch.testing.assert_close(
            (losses[0] - losses[1]) / (2 * small), slope @ direction, rtol=1e-3, atol=1e-6
        )


@every_method
def test_each_phase_lowers_its_own_loss(case: str) -> None:
    method = made(*CASES[case])
    for phase in method.phases():
        optimiser = torch.optim.Adam(learn_only(method, phase), lr=1e-2)
        losses = []
        for _ in range(12):
            optimiser.zero_grad()
            loss = phase.loss(batch()).value
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0] - 0.05 * abs(losses[0])


@every_method
def test_a_loss_is_a_pure_function_of_weights_and_batch(case: str) -> None:
    method = made(*CASES[case])
    method.eval()
    twin = copy.deepcopy(method)
    for phase, other in zip(method.phases(), twin.phases(), strict=True):
        assert torch.equal(phase.loss(batch()).value, other.loss(batch()).value)
    with torch.no_grad():
        for value in twin.parameters():
            value.add_(0.1)
    for phase, other in zip(method.phases(), twin.phases(), strict=True):
        assert not torch.equal(phase.loss(batch()).value, other.loss(batch()).value)


@every_method
def test_the_networks_are_those_trained_and_averaged_and_hold_every_weight(case: str) -> None:
    method = made(*CASES[case])
    assert set(method.networks) >= set(method.averaged())
    assert {name for phase in method.phases() for name in phase.trains} == set(method.networks)
    inside = {id(w) for network in method.networks.values() for w in network.parameters()}
    assert {id(weight) for weight in method.parameters()} == inside


@every_method
def test_on_the_meta_device_it_has_the_same_weights_and_draws_nothing(case: str) -> None:
    method = made(*CASES[case])
    before = torch.get_rng_state()
    without_memory = maker(*CASES[case]).on_meta()
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in without_memory.state_dict().items():
        assert value.is_meta
        assert value.shape == method.state_dict()[name].shape
    assert without_memory.state_dict().keys() == method.state_dict().keys()


@every_method
@torch.no_grad()
def test_what_a_method_can_do_has_the_shapes_of_the_contract(case: str) -> None:
    method, data = made(*CASES[case]), batch()
    method.eval()
    abilities: dict[str, Callable[[], Any]] = {
        "encode": lambda: method.encode(data.images),
        "decode": lambda: method.decode(torch.randn(6, *method.latent_shape), data.labels),
        "reconstruct": lambda: method.reconstruct(data.images, data.labels),
        "prior": lambda: method.prior(data.keys),
        "sample": lambda: method.sample(data.keys, data.labels),
        "measure": lambda: method.measure(data),
    }
    assert any(method.can(ability) for ability in abilities)
    for ability, use in abilities.items():
        if not method.can(ability):
            with pytest.raises(NotImplementedError):
                use()
        elif ability == "measure":
            assert all(len(value) == 6 and value.dim() <= 2 for value in use().values())
            metrics = method.metrics(
                {name: value.double().mean(0) for name, value in use().items()}
            )
            assert method.best in ("", *metrics)
        elif ability in ("encode", "prior"):
            assert use().shape == (6, *method.latent_shape)
        else:
            assert use().shape == (6, *SHAPE)
            assert use().abs().max() <= 1


@every_method
@torch.no_grad()
def test_values_of_an_image_do_not_depend_on_its_company(case: str) -> None:
    method, data = made(*CASES[case]), batch(dtype=torch.float64)
    method.double().eval()
    if method.can("measure"):
        for name, value in method.measure(data).items():
            torch.testing.assert_close(method.measure(part(data, slice(2, 3)))[name], value[2:3])
    method.float()
    if method.can("sample"):
        images, alone = method.sample(data.keys, data.labels), part(data, slice(2, 3))
        torch.testing.assert_close(
            method.sample(alone.keys, alone.labels), images[2:3], atol=1e-5, rtol=1e-4
        )
        assert not torch.allclose(*images[:2])


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("conditional")])
@torch.no_grad()
def test_a_conditional_method_makes_what_its_labels_say(case: str) -> None:
    method, data = made(*CASES[case]), batch()
    method.eval()
    one, other = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    same = [method.sample(data.keys, labels) for labels in (one, one, other)]
    assert torch.equal(same[0], same[1])
    assert not any(map(torch.allclose, same[0], same[2]))
    said = "makes images of a class: name one of ash, elm, oak"
    with pytest.raises(UsageError, match=said):
        method.sample(data.keys)
    with pytest.raises(UsageError, match=said):
        method.decode_codes(torch.rand(2, *method.latent_shape))
    name, values = CASES[case]
    with pytest.raises(UsageError, match="method.conditional needs a label for every image"):
        made(name, values, classes=())


def test_reconstruct_follows_from_encode_and_decode_and_sample_from_prior_and_decode() -> None:
    class Half(Method):
        def encode(self, images: Tensor) -> Tensor:
            return images

    class Other(Method):
        def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
            return latents

    class Whole(Half, Other):
        pass

    class Generator(Other):
        def prior(self, keys: Tensor) -> Tensor:
            return keys.float()

    assert not Half(None, SHAPE).can("reconstruct")
    assert not Other(None, SHAPE).can("reconstruct")
    assert Whole(None, SHAPE).can("reconstruct")
    assert not Whole(None, SHAPE).can("sample")
    assert Generator(None, SHAPE).can("sample")
    assert not Generator(None, SHAPE).can("reconstruct")


class Spatial(Method):
    """Latents [2, 4, 4] of an image of 8×8 pixels: each has its two middle columns' numbers."""

    latent_shape = (2, 4, 4)

    def encode(self, images: Tensor) -> Tensor:
        return images.view(-1, 4, 2, 8).permute(0, 2, 1, 3)[..., 2:6]

    def decode(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        assert latents.shape[1:] == (2, 4, 4)
        rows = latents.permute(0, 2, 1, 3).reshape(-1, 1, 8, 4)
        return nn.functional.pad(rows, (2, 2))


def test_latents_of_any_shape_are_rows_where_they_are_codes() -> None:
    method, images = Spatial(None, SHAPE), batch().images
    latents, codes = method.encode(images), method.codes(images)
    assert latents.shape == (6, 2, 4, 4)
    assert torch.equal(codes, latents.flatten(1))
    assert torch.equal(method.decode_codes(codes), method.decode(latents))
    assert torch.equal(method.decode_codes(codes)[..., 2:6], images[..., 2:6])
    assert torch.equal(method.reconstruct(images), method.decode_codes(codes))
    assert method.codes(images[:0]).shape == (0, 32)


def test_saved_tensors_are_loaded_whole_or_refused() -> None:
    one, other = made("ae", DENSE), made("ae", DENSE)
    with torch.no_grad():
        for value in other.parameters():
            value.add_(1)
    one.load_saved(other.saved_tensors())
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    tensors = other.saved_tensors()
    name = next(iter(tensors))
    for wrong in (
        tensors | {"more": torch.ones(1)},
        {k: v for k, v in tensors.items() if k != name},
    ):
        with pytest.raises(KeyError, match="is in one of both only"):
            one.load_saved(wrong)
    with pytest.raises(RuntimeError, match=name):
        one.load_saved(tensors | {name: torch.ones(1)})


def test_helpers_are_no_methods() -> None:
    assert names() == ["aae", "ae", "gan", "kl", "ladder", "vae", "vq"]
    with pytest.raises(UsageError, match="unknown method.name 'chance'"):
        find("chance")


NEW = '''
from dataclasses import dataclass
from udl_dist.methods.method import Loss, Method, Phase
from udl_dist.methods.networks.layers import Bias
from udl_dist.core.config_schema import setting

@dataclass(frozen=True)
class MeanSettings:
    strength: float = setting(2.0, "factor on the loss", above=0)

class Mean(Method):
    """Learns the mean image."""
    Settings = MeanSettings
    def __init__(self, settings, shape, classes=()):
        super().__init__(settings, shape, classes)
        self.mean = Bias(shape[2])
    def phases(self):
        return (Phase(("mean",), self.loss),)
    def loss(self, batch):
        mean = self.mean(batch.images * 0)
        error = (mean - batch.images).square().flatten(1).sum(1).mean()
        return Loss(self.settings.strength * error, {"error": error})
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package installed next to ours that brings one new file, with entry points for it."""
    (tmp_path / "newcomer.py").write_text(NEW)
    (tmp_path / "broken_newcomer.py").write_text("from udl_dist.methods.ae import Autoencoder")
    (tmp_path / "newcomer-1.0.dist-info").mkdir()
    (tmp_path / "newcomer-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: newcomer\nVersion: 1.0\n"
    )
    (tmp_path / "newcomer-1.0.dist-info" / "entry_points.txt").write_text(
        "[udl_dist.methods]\nmean_image = newcomer\nbroken = broken_newcomer\nvae = newcomer\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("installed")
def test_a_method_of_another_package_is_found_with_its_own_settings() -> None:
    assert "mean_image" in names()
    method = made("mean_image", {"strength": 3.0})
    loss = method.phases()[0].loss(batch())
    torch.testing.assert_close(loss.value, 3 * loss.plots["error"])
    assert method.can("reconstruct") is False
    with pytest.raises(
        UsageError, match=r"unknown setting method.strenght: did you mean strength\?"
    ):
        made("mean_image", {"strenght": 1.0})


@pytest.mark.usefixtures("installed")
def test_a_package_cannot_replace_our_methods_or_bring_a_file_without_one() -> None:
    assert find("vae").__module__ == "udl_dist.methods.vae"
    with pytest.raises(
        UsageError, match="broken: broken_newcomer must define one subclass of Method, found 0"
    ):
        find("broken")


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("latent_dim", [0, -3, 2.5, True, "8"])
def test_a_bad_latent_size_is_refused_by_name(name: str, latent_dim: object) -> None:
    with pytest.raises(UsageError, match="method.latent_dim"):
        made(name, {"latent_dim": latent_dim})


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        (
            "ae",
            {"tied": True},
            "method.tied makes one dense layer .* method.network.kind must be 'dense'",
        ),
        (
            "ae",
            {"tied": True, "network.kind": "dense", "network.widths": [8]},
            r"method.network.widths must be \(\)",
        ),
        (
            "ae",
            {"tied": True, "network.kind": "dense", "network.depth": 1},
            "method.network.depth must be 0",
        ),
        ("ae", {"noise_level": 0.2}, "method.noise_level is set, but method.noise is none"),
        ("ae", {"noise": "mask"}, "method.noise is mask, but method.noise_level is 0"),
        (
            "ae",
            {"noise": "mask", "noise_level": 1.5},
            "method.noise_level is a share of pixels and at most 1, not 1.5",
        ),
        ("ae", {"patch": 2}, "method.patch has no meaning when method.noise is none"),
        (
            "ae",
            {"noise": "patches", "noise_level": 0.1},
            "noise_level = 0.1 hides 0 of the 4 patches of an image",
        ),
        (
            "ae",
            {"noise": "patches", "noise_level": 0.9},
            "noise_level = 0.9 hides 4 of the 4 patches of an image",
        ),
        ("ae", {"noise": "masc"}, "method.noise must be"),
        ("vae", {"likelihood": "bernoulli", "sigma": 0.1}, NO_DEVIATION),
        ("vae", {"likelihood": "bernoulli", "variance": "fixed"}, NO_DEVIATION),
        ("vae", {"likelihood": "gaussian", "binarise": "epoch"}, "method.binarise has no meaning"),
        (
            "vae",
            {"likelihood": "logistic", "sigma": 0.1},
            "no meaning when method.likelihood is logistic",
        ),
        (
            "vae",
            {"likelihood": "logistic", "binarise": "static"},
            "method.binarise has no meaning when method.likelihood is logistic",
        ),
        ("vae", {"samples": 3}, "method.samples has no meaning when method.objective is elbo"),
        (
            "vae",
            {"objective": "iwae", "free_bits": 0.1},
            "method.free_bits has no meaning when method.objective is iwae",
        ),
        (
            "vae",
            {"objective": "iwae", "beta": 2.0},
            "method.beta has no meaning when method.objective is iwae",
        ),
        (
            "vae",
            {"objective": "iwae", "warmup_images": 9},
            "method.warmup_images has no meaning when method.objective is iwae",
        ),
        (
            "vae",
            {"pseudo_inputs": 3},
            "method.pseudo_inputs has no meaning when method.prior is normal",
        ),
        (
            "vae",
            {"prior": "vamp", "free_bits": 0.1},
            "method.free_bits has no meaning when method.prior is vamp",
        ),
        (
            "vae",
            {"prior": "vamp", "network.norm": "batch"},
            "method.network.norm = batch does not suit method.prior = vamp",
        ),
        ("vae", {"likelihood": "gaussian", "sigma": 0.0}, "method.sigma must be greater than 0"),
        ("vae", {"beta": 0.0, "warmup_images": 10}, "method.warmup_images has no meaning"),
        ("gan", {"network.depth": 1}, "method.network has no meaning"),
        (
            "gan",
            {"discriminator": "conv", "dropout": 0.1},
            "method.dropout belongs to the article's discriminator",
        ),
        ("gan", {"r1": 0.0, "r1_every": 3}, "method.r1_every has no meaning when method.r1 is 0"),
        (
            "gan",
            {"generator": "conv", "discriminator": "article", "width": 8},
            "method.width has no meaning",
        ),
    ],
)
def test_settings_that_would_be_ignored_are_refused_in_one_line(
    name: str, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        made(name, values)


def test_dense_networks_are_refused_nothing_they_use() -> None:
    made("ae", DENSE | {"network.depth": 2, "network.norm": "batch"})
