"""The KL autoencoder and its adversary: known values, and gradients against plain autograd."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from tests.methods.cases import SMALL, TOKENIZER, batch, made, maker, part
from udl_dist.errors import UsageError
from udl_dist.methods.losses.adversary import DECAY, MOST, Adversary, AdversarySettings
from udl_dist.methods.method import Batch, Loss
from udl_dist.methods.networks.patch_gan import PatchDiscriminator

RGB64 = (3, 64, 64)


def numbers(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def kl(**values: Any) -> Any:
    """A small double-precision KL autoencoder whose adversary acts with the factor 0.7."""
    method = made("kl", TOKENIZER | {"latent_channels": 2, **values}).double()
    method.adversary.factor.fill_(0.7)
    return method


def plain_terms(method: Any, data: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Error, penalty and adversary of a batch in one ordinary graph."""
    latents = method._latents(data)
    output, _ = method._decoded(latents.maps)
    error = method.errors(data.images, output).mean()
    against = -method.adversary(output).flatten(1).mean(1).mean()
    return error, latents.penalty.mean(), against


# The codebook of Sun et al. 2024 is learned by gradient.
CODEBOOK = {"quantizer.kind": "gradient", "quantizer.codes": 16384}
F16 = {"widths": [128, 128, 256, 256, 512], "attention": "smallest"}


@pytest.mark.parametrize(
    ("name", "values", "millions"),
    [
        ("kl", {}, 83.65),  # Rombach et al. 2022, KL-f8
        ("kl", F16 | {"latent_channels": 16}, 69.6),  # KL-f16
        ("vq", F16 | CODEBOOK, 71.9),  # VQ-16
        ("vq", {"widths": [128, 256, 256, 512], "attention": "smallest"} | CODEBOOK, 70.1),  # VQ-8
    ],
)
def test_networks_have_as_many_weights_as_the_published(
    name: str, values: dict[str, Any], millions: float
) -> None:
    method = maker(name, values, (3, 256, 256)).on_meta()
    own = numbers(method) - numbers(method.networks["adversary"])
    assert own / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(("halvings", "millions"), [(3, 2.765), (2, 0.663)])
def test_a_patch_discriminator_has_as_many_weights_as_the_published(
    halvings: int, millions: float
) -> None:
    assert numbers(PatchDiscriminator(RGB64, 64, halvings)) / 1e6 == pytest.approx(
        millions, abs=1e-3
    )


@pytest.mark.parametrize(("side", "patches"), [(8, 2), (28, 5), (64, 6), (256, 30)])
def test_a_patch_discriminator_fits_the_image(side: int, patches: int) -> None:
    with torch.device("meta"):
        network = PatchDiscriminator((3, side, side), 4)
        assert network(torch.zeros(2, 3, side, side)).shape == (2, 1, patches, patches)


def test_the_kl_is_that_of_torch() -> None:
    method, data = kl(kl_weight=0.5), batch(dtype=torch.float64)
    mean, logvar = method._moments(method.compressed(data.images))
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    latents = method._latents(data)
    torch.testing.assert_close(latents.plots["kl"], expected.mean())
    torch.testing.assert_close(latents.penalty, 0.5 * expected / 64)
    torch.testing.assert_close(method.measure(data)["kl"], expected)


@pytest.mark.parametrize("error", ["l1", "l2"])
@pytest.mark.parametrize("learned", [False, True])
def test_the_gradient_is_that_of_error_penalty_and_weighted_adversary(
    error: str, learned: bool
) -> None:
    method = kl(error=error, learned_scale=learned, **{"adversary.weight": 0.9})
    if learned:
        method.log_scale.bias.data.fill_(0.3)
    data = batch(dtype=torch.float64)
    method.networks["adversary"].requires_grad_(False)
    weights = [value for value in method.parameters() if value.requires_grad]
    loss = method.loss(data)
    found = torch.autograd.grad(loss.value, weights)
    reconstruction, penalty, against = plain_terms(method, data)
    if learned:
        scale = method.log_scale.bias[0]
        reconstruction = reconstruction * (-scale).exp() + scale
    total = reconstruction + penalty + 0.9 * 0.7 * against
    torch.testing.assert_close(loss.value, total)
    for one, other in zip(found, torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(one, other)


def test_the_factor_is_the_ratio_of_gradients_at_the_last_layer_over_all_parts() -> None:
    method, whole = kl(), batch(dtype=torch.float64)
    last = method.decoder.conv_out.weight
    error, _, against = plain_terms(method, whole)
    expected = torch.autograd.grad(error, last, retain_graph=True)[0].norm() / (
        torch.autograd.grad(against, last)[0].norm() + 1e-4
    )
    parts = [method.loss(part(whole, places)).sums for places in (slice(0, 2), slice(2, 6))]
    summed = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    method.after_step(summed)
    torch.testing.assert_close(method.adversary.factor, expected)


def test_the_factor_is_at_most_its_limit_and_that_is_an_alarm() -> None:
    adversary = Adversary(AdversarySettings(acts_after_images=0), RGB64)
    sums = {
        "images": torch.tensor(1.0),
        "error_gradient": torch.full((2, 2), 1e9),
        "adversary_gradient": torch.zeros(2, 2),
    }
    adversary.after_step(sums)
    assert adversary.factor == MOST
    assert list(adversary.alarms(0.1, 10)) == ["no gradient from the adversary"]


def test_lecam_and_its_means_by_hand() -> None:
    method = kl(**{"adversary.lecam": 2.0, "adversary.loss": "softplus"})
    method.adversary.mean_logits.copy_(torch.tensor([0.5, -0.25]))
    data = batch(dtype=torch.float64)
    output, _ = method._decoded(method._latents(data).maps)
    real, fake = method.adversary(data.images), method.adversary(output)
    distance = (real + 0.25).clamp(min=0).square().mean() + (0.5 - fake).clamp(
        min=0
    ).square().mean()
    loss = method.adversary_loss(data)
    torch.testing.assert_close(loss.plots["lecam"], distance)
    adversarial = functional.softplus(-real).mean() + functional.softplus(fake).mean()
    torch.testing.assert_close(loss.value, adversarial + 2 * distance)
    method.after_step({"images": torch.tensor(6.0), **loss.sums})
    expected = DECAY * torch.tensor([0.5, -0.25]) + (1 - DECAY) * torch.stack(
        [real.mean(), fake.mean()]
    )
    torch.testing.assert_close(method.adversary.mean_logits, expected.double())


@pytest.mark.parametrize(("logit", "loss"), [(2.0, 0.0), (0.0, 1.0), (-2.0, 3.0)])
def test_hinge_by_hand(logit: float, loss: float) -> None:
    class Constant(Adversary):
        def forward(self, images: Tensor) -> Tensor:  # real images are ones, others zeros
            return (2 * images.mean((1, 2, 3)) - 1)[:, None] * logit

    adversary = Constant(AdversarySettings(lecam=0.0), RGB64)
    found: Loss = adversary.loss(torch.ones(3, *RGB64), torch.zeros(3, *RGB64))
    assert float(found.value) == pytest.approx(loss)
    assert float(adversary.against(torch.ones(2, *RGB64)).mean()) == pytest.approx(-logit)


def test_the_adversary_learns_first_then_acts_on_a_ramp() -> None:
    method = kl(
        **{
            "adversary.learns_after_images": 50,
            "adversary.acts_after_images": 200,
            "adversary.ramp_images": 100,
            "adversary.rate": 0.25,
        }
    )
    autoencoder, adversary = method.phases()
    assert (autoencoder.optimizer.rate, adversary.optimizer.rate) == (1.0, 0.25)
    assert (autoencoder.start_images, adversary.start_images) == (0, 50)
    before = method.loss(batch(dtype=torch.float64, seen=199))
    assert "adversary_weight" not in before.plots
    assert "error_gradient" not in before.sums
    for seen, share in ((200, 0.0), (250, 0.5), (300, 1.0), (900, 1.0)):
        plots = method.loss(batch(dtype=torch.float64, seen=seen)).plots
        assert float(plots["adversary_weight"]) == pytest.approx(0.7 * 0.5 * share)


def test_a_run_that_ends_before_the_adversary_acts_is_warned_of() -> None:
    method = kl(**{"adversary.acts_after_images": 200})
    assert method.check_images(9, 201) == ()
    (line,) = method.check_images(9, 200)
    assert "the adversary never acts: method.adversary.acts_after_images is 200" in line


def test_an_adversary_that_spoils_reconstructions_is_an_alarm() -> None:
    method = kl(**{"adversary.acts_after_images": 200})
    for error in (0.1, 0.1):
        method.after_step({"images": torch.tensor(6.0), "error": torch.tensor(6 * error).double()})
    assert float(method.adversary.error_before) == pytest.approx(0.1)
    assert method.alarms({"val/error": 0.3}, 100) == {}
    assert method.alarms({"val/error": 0.19}, 300) == {}
    (line,) = method.alarms({"val/error": 0.3}, 300).values()
    assert "3 times what it was before the adversary acted" in line


refusals: list[tuple[dict[str, Any], tuple[int, int, int], str]] = [
    ({}, (3, 30, 64), "30×64 is not a multiple of f = 8 on each side: set data.size to 32 and 64"),
    ({"widths": []}, RGB64, "method.widths is empty"),
    ({"adversary.halvings": 6}, RGB64, "method.adversary.halvings of 6 leave nothing"),
    (
        {"adversary.weight": 0.0, "adversary.lecam": 0.1},
        RGB64,
        "method.adversary.lecam has no meaning when method.adversary.weight is 0",
    ),
    (
        {"adversary.learns_after_images": 9, "adversary.acts_after_images": 8},
        RGB64,
        "acts_after_images is 8, before it learns at 9",
    ),
]


@pytest.mark.parametrize(("values", "shape", "words"), refusals)
def test_what_does_not_fit_is_refused(
    values: dict[str, Any], shape: tuple[int, int, int], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        maker("kl", values, shape).on_meta()


@pytest.mark.parametrize("change", [lambda images: images, lambda images: images * 0.5])
def test_sharpness_is_the_energy_of_neighbouring_differences_over_that_of_images(
    change: Callable[[Tensor], Tensor],
) -> None:
    method, data = kl(), batch(dtype=torch.float64)
    method.decode = lambda latents: change(data.images)
    with torch.no_grad():
        means = {name: value.mean(0) for name, value in method.measure(data).items()}
    scale = float(change(torch.ones(())))
    metrics = method.metrics(means)
    assert metrics["sharpness"] == pytest.approx(scale**2)
    assert (metrics["frechet_detail"] < 1e-6) == (scale == 1)
    assert metrics["psnr"] > 0


def vq(**values: Any) -> Any:
    return made("vq", SMALL["vq"] | values)


@torch.no_grad()
def test_codes_go_there_and_back() -> None:
    for values in ({}, {"quantizer.kind": "gradient"}):
        method, data = vq(**values).eval(), batch()
        indices = method.indices(data.images)
        assert indices.shape == (6, 4, 4)
        assert indices.dtype == torch.int64
        torch.testing.assert_close(method.decode_indices(indices), method.reconstruct(data.images))
        assert torch.equal(method.quantizer.indices(method.encode(data.images)), indices)


def test_the_encoder_gets_the_gradient_of_its_codes_and_of_the_commitment() -> None:
    method, data = (
        vq(**{"quantizer.commitment": 2.0, "error": "l2"}).double(),
        batch(dtype=torch.float64),
    )
    weight = method.quant_conv.weight
    (found,) = torch.autograd.grad(method.loss(data).value, weight)
    compressed = functional.normalize(method.compressed(data.images), dim=1)
    entries = method.quantizer.lookup(method.quantizer.indices(compressed)).detach()
    output, _ = method._decoded(compressed + (entries - compressed).detach())
    loss = method.errors(data.images, output).mean() + 2 * (compressed - entries).square().mean()
    torch.testing.assert_close(found, torch.autograd.grad(loss, weight)[0])


def test_usage_perplexity_and_bits_of_known_codes() -> None:
    method, data = vq(), batch()
    four = torch.arange(4).repeat(6, 4).view(6, 4, 4)
    method.indices = lambda images: four
    with torch.no_grad():
        means = {name: value.double().mean(0) for name, value in method.measure(data).items()}
    metrics = method.metrics(means)
    assert metrics["usage"] == 0.5
    assert metrics["perplexity"] == pytest.approx(4)
    assert metrics["bits"] == 16 * 3
    (line,) = method.alarms({"val/usage": 0.05}, 0).values()
    assert "5.0% of 8 codes are in use" in line
    assert method.alarms({"val/usage": 0.5}, 0) == {}


def test_more_codes_than_positions_of_training_images_are_refused() -> None:
    method = vq()
    assert method.check_images(1, 9) == ()  # 16 positions for 8 codes
    with pytest.raises(UsageError, match="makes 40 codes, more than the 32 positions of 2 train"):
        vq(**{"quantizer.codes": 40}).check_images(2, 9)


def test_the_perceptual_distance_is_added_with_its_weight_and_not_trained() -> None:
    plain = made("kl", TOKENIZER, (3, 32, 32))
    values = {"perceptual": "efficientnet-lite0", "perceptual_weight": 0.5}
    method, data = made("kl", TOKENIZER | values, (3, 32, 32)), batch(2, (3, 32, 32))
    assert method.networks.keys() == plain.networks.keys()
    assert method.saved_tensors().keys() == plain.saved_tensors().keys()
    assert not any(value.requires_grad for value in method.perceptual.parameters())
    assert method.loss_files == ("perceptual",)
    method.networks["adversary"].requires_grad_(False)
    weights = [value for value in method.parameters() if value.requires_grad]
    loss = method.loss(data)
    error, penalty, _ = plain_terms(method, data)
    output, _ = method._decoded(method._latents(data).maps)
    distance = method.perceptual(output, data.images).mean()
    torch.testing.assert_close(loss.plots["perceptual"], distance)
    total = error + 0.5 * distance + penalty
    torch.testing.assert_close(loss.value, total)
    found = torch.autograd.grad(loss.value, weights)
    for one, other in zip(found, torch.autograd.grad(total, weights), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    assert "perceptual" in method.measure(data)


def test_under_bfloat16_bottleneck_and_factor_stay_in_float32() -> None:
    method, data = made("kl", SMALL["kl"]), batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(data)
        latents = method._latents(data)
    assert loss.value.dtype == latents.maps.dtype == torch.float32
    assert loss.sums["error_gradient"].dtype == torch.float32
    exact = method.loss(data).sums["error_gradient"]
    torch.testing.assert_close(loss.sums["error_gradient"], exact, atol=0.02, rtol=0.1)
