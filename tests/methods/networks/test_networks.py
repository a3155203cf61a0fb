"""Networks make their shapes at every size, and they start well."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import nn

from udl_dist.core.config_schema import from_dict
from udl_dist.errors import UsageError
from udl_dist.methods.networks import NetworkSettings, decoder, encoder
from udl_dist.methods.networks.gan import ArticleDiscriminator, ArticleGenerator
from udl_dist.methods.networks.layers import (
    ActivationKind,
    Bias,
    NormKind,
    Residual,
    activation,
    conv,
    conv_transpose,
    halvings,
    kernel,
    linear,
    norm,
)
from udl_dist.methods.networks.resnet import ResNetEncoder

Shape = tuple[int, int, int]
Weighted = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
SHAPES = [
    (1, 28, 28),
    (3, 32, 32),
    (1, 45, 27),
    (3, 64, 64),
    (3, 20, 33),
    (1, 96, 96),
    (3, 128, 128),
    (3, 256, 256),
]
STYLES: list[tuple[NormKind, ActivationKind]] = [
    ("group", "silu"),
    ("none", "leaky_relu"),
    ("batch", "tanh"),
]
KINDS: list[Literal["dense", "conv"]] = ["dense", "conv"]
SETTINGS = [
    NetworkSettings(kind, (6, 16), depth, norm, activation)
    for kind, depth, (norm, activation) in itertools.product(KINDS, (0, 2), STYLES)
]
AUTOMATIC = NetworkSettings("conv")


def ids(settings: NetworkSettings) -> str:
    return f"{settings.kind}-{settings.depth}-{settings.norm}"


def layers(network: nn.Module) -> Iterator[nn.Module]:
    """The modules that hold no other, in the order in which they run."""
    return (module for module in network.modules() if not list(module.children()))


def weighted(network: nn.Module) -> list[Weighted]:
    return [layer for layer in layers(network) if isinstance(layer, Weighted)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("latents", [(5,), (2, 3, 4)], ids=["flat", "spatial"])
@pytest.mark.parametrize("settings", SETTINGS, ids=ids)
def test_a_network_takes_and_makes_any_size(
    settings: NetworkSettings, latents: tuple[int, ...], shape: Shape
) -> None:
    there, back = encoder(settings, shape, latents), decoder(settings, latents, shape)
    made = there(torch.rand(2, *shape))
    assert made.shape == (2, *latents)
    assert back(made).shape == (2, *shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_automatic_widths_leave_four_to_eight_pixels(shape: Shape) -> None:
    channels = [
        layer.out_channels
        for layer in weighted(encoder(AUTOMATIC, shape, (5,)))
        if isinstance(layer, nn.Conv2d)
    ]
    smallest = halvings((shape[1], shape[2]), len(channels))[-1]
    assert 4 <= max(smallest) <= 8
    assert channels == [32, 64, 128, 256, 256][: len(channels)]
    assert decoder(AUTOMATIC, (5,), shape)(torch.rand(1, 5)).shape == (1, *shape)


@pytest.mark.parametrize("side", range(2, 40))
def test_halving_and_doubling_are_exact_at_every_size(side: int) -> None:
    sides = (side, side + 1)
    half = halvings(sides, 1)[1]
    assert conv(1, 1, kernel(sides), 2)(torch.rand(1, 1, *sides)).shape[2:] == half
    assert conv_transpose(1, 1, kernel(sides))(torch.rand(1, 1, *half)).shape[2:] == sides


def test_automatic_widths_stop_where_a_thin_image_cannot_be_halved() -> None:
    assert encoder(AUTOMATIC, (1, 4, 200), (5,))(torch.rand(2, 1, 4, 200)).shape == (2, 5)
    assert decoder(AUTOMATIC, (5,), (1, 4, 200))(torch.rand(2, 5)).shape == (2, 1, 4, 200)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("conv", "network.widths has 6 entries, but an image of 28×28 can be halved 5 times"),
        # 14, 7, 3, 1 after the first convolution.
        ("resnet", "network.widths has 6 entries, but an image of 28×28 allows 4: give at most 4"),
    ],
)
def test_too_many_levels_are_refused_with_the_number_that_fits(
    kind: Literal["conv", "resnet"], said: str
) -> None:
    most = 5 if kind == "conv" else 4
    with pytest.raises(UsageError, match=said):
        encoder(NetworkSettings(kind, (8,) * 6), (1, 28, 28), (4,))
    with pytest.raises(UsageError, match=said):
        decoder(NetworkSettings(kind, (8,) * 6), (4,), (1, 28, 28))
    encoder(NetworkSettings(kind, (8,) * most), (1, 28, 28), (4,))


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize(("name", "value"), [("attention", [8]), ("first_stride", 1)])
def test_what_only_resnet_has_is_refused_elsewhere(kind: str, name: str, value: object) -> None:
    said = f"method.network.{name} is for method.network.kind = resnet only"
    with pytest.raises(UsageError, match=said):
        from_dict(NetworkSettings, {"kind": kind, name: value}, "method.network.")
    from_dict(NetworkSettings, {name: value}, "method.network.")


def test_attention_is_at_the_maps_of_the_named_size_alone() -> None:
    def attends(*sizes: int) -> list[int]:
        network = encoder(NetworkSettings(widths=(8, 8, 8), attention=sizes), (1, 28, 28), (4,))
        assert isinstance(network, ResNetEncoder)
        blocks: list[Any] = [*network.down_blocks, network.mid_block]  # of 14, 7, 3 and 3 pixels
        return [len(block.attentions) for block in blocks]

    assert attends() == [0, 0, 0, 0]
    assert attends(16) == [1, 0, 0, 0]
    assert attends(8, 16) == [1, 1, 0, 0]
    assert attends(4) == [0, 0, 0, 1]  # the smallest: in the middle


def test_a_spatial_latent_is_the_smallest_map_or_refused_with_its_size() -> None:
    settings, shape = NetworkSettings(widths=(8, 8)), (1, 28, 40)  # 14×20, then 7×10
    assert encoder(settings, shape, (3, 7, 10))(torch.rand(2, *shape)).shape == (2, 3, 7, 10)
    assert decoder(settings, (3, 7, 10), shape)(torch.rand(2, 3, 7, 10)).shape == (2, *shape)
    said = "a latent of 8×10 does not fit the network, whose smallest map is 7×10"
    with pytest.raises(UsageError, match=said):
        encoder(settings, shape, (3, 8, 10))
    with pytest.raises(UsageError, match=said):
        decoder(settings, (3, 8, 10), shape)


@pytest.mark.parametrize("first_stride", [1, 2])
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_resnet_takes_and_makes_any_size_and_starts_small(
    shape: Shape, first_stride: Literal[1, 2]
) -> None:
    torch.manual_seed(0)
    settings = NetworkSettings(widths=(8, 16), attention=(8,), first_stride=first_stride)
    made = encoder(settings, shape, (5,))(torch.rand(2, *shape))
    assert made.shape == (2, 5)
    back = decoder(settings, (5,), shape)(made)
    assert back.shape == (2, *shape)
    assert back.std() < 0.2


@pytest.mark.parametrize(
    "values", [{"widths": [0]}, {"depth": -1}, {"norm": "layer"}, {"kind": "dens"}, {"width": [8]}]
)
def test_a_bad_network_setting_is_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"network.{next(iter(values))}"):
        from_dict(NetworkSettings, values, "network.")


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm_kind", ["none", "group", "batch"])
def test_a_layer_before_batch_normalisation_has_no_bias_and_every_other_has(
    norm_kind: NormKind, kind: Literal["dense", "conv"], depth: int
) -> None:
    settings, shape = NetworkSettings(kind, (6, 16), depth, norm_kind), (3, 28, 28)
    for network in (encoder(settings, shape, (5,)), decoder(settings, (5,), shape)):
        assert_no_useless_bias(network)


def assert_no_useless_bias(network: nn.Module) -> None:
    # What a block adds is added to its input as well, which no norm follows.
    ends = [weighted(block)[-1] for block in network.modules() if isinstance(block, Residual)]
    for layer, following in itertools.pairwise((*layers(network), nn.Identity())):
        if isinstance(layer, Weighted):
            mixing = isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d) and layer not in ends
            assert (layer.bias is None) == mixing, layer


@pytest.mark.parametrize("channels", [1, 3, 6, 8, 20, 32, 48, 100, 256, 1024])
def test_groups_divide_the_channels_and_are_not_too_small(channels: int) -> None:
    groups = norm("group", channels).num_groups
    assert isinstance(groups, int)
    assert channels % groups == 0
    assert groups == 1 or channels / groups >= 8
    assert norm("group", channels, flat=True).num_groups == 1


@pytest.mark.parametrize("gain", [1.0, 2.0])
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda gain: linear(512, 512, gain), (512,)),
        (lambda gain: conv(64, 64, gain=gain), (64, 16, 16)),
        (lambda gain: conv(64, 64, (4, 4), 2, gain), (64, 16, 16)),
        (lambda gain: conv_transpose(64, 64, (4, 4), gain), (64, 16, 16)),
        (lambda gain: conv_transpose(64, 64, (3, 3), gain), (64, 16, 16)),
    ],
    ids=["linear", "conv", "halving", "doubling", "doubling to odd"],
)
def test_a_layer_starts_with_the_scale_it_was_given(
    make: object, inputs: tuple[int, ...], gain: float
) -> None:
    assert callable(make)
    torch.manual_seed(0)
    layer = make(gain)
    out = layer(torch.randn(16, *inputs))
    inner = out if out.dim() == 2 else out[:, :, 2:-2, 2:-2]  # away from the padding
    assert 0.9 < inner.std() / gain < 1.1
    assert not layer.bias.any()


@pytest.mark.parametrize("kind", ["relu", "leaky_relu", "elu", "tanh"])
def test_a_deep_chain_without_norm_keeps_its_scale(kind: ActivationKind) -> None:
    torch.manual_seed(0)
    settings = NetworkSettings("dense", (256,) * 20, norm="none", activation=kind)
    out = encoder(settings, (1, 16, 16), (256,))(torch.randn(64, 1, 16, 16))
    assert 0.2 < out.std() < 3


@pytest.mark.parametrize("settings", [s for s in SETTINGS if s.depth], ids=ids)
def test_residual_blocks_start_as_nothing(settings: NetworkSettings) -> None:
    for network in (encoder(settings, (1, 8, 8), (4,)), decoder(settings, (4,), (1, 8, 8))):
        blocks = [module for module in network.modules() if isinstance(module, Residual)]
        assert len(blocks) == 4
        for block in blocks:
            channels = weighted(block)[0].weight.shape[0]
            features = torch.randn(3, channels, *((2, 2) if settings.kind == "conv" else ()))
            assert torch.equal(block(features), features)
            # Not stuck there: its last layer gets a gradient.
            block(features).square().sum().backward()
            slope = weighted(block)[-1].weight.grad
            assert slope is not None and slope.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_of_a_decoder_starts_with_its_gain(kind: Literal["dense", "conv"]) -> None:
    torch.manual_seed(0)
    small, large = (
        decoder(NetworkSettings(kind), (8,), (1, 28, 28), *gain)(torch.randn(256, 8)).std()
        for gain in ((), (1.0,))
    )
    assert small < 0.2
    assert 6 < large / small < 15


def test_the_same_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        network = encoder(AUTOMATIC, (1, 28, 28), (4,))
        return torch.cat([value.flatten() for value in network.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("settings", [s for s in SETTINGS if s.kind == "conv"], ids=ids)
def test_channels_last_gives_the_same_numbers(settings: NetworkSettings) -> None:
    network, images = encoder(settings, (3, 28, 28), (4,)), torch.rand(4, 3, 28, 28)
    usual = network(images)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    torch.testing.assert_close(
        network(images.to(memory_format=torch.channels_last)), usual, atol=1e-5, rtol=1e-4
    )


def test_small_layers_do_what_they_say() -> None:
    numbers = torch.tensor([[-1.0, 2.0]])
    torch.testing.assert_close(activation("leaky_relu")(numbers), torch.tensor([[-0.2, 2.0]]))
    torch.testing.assert_close(Bias(2, 0.5)(numbers), torch.tensor([[-0.5, 2.5]]))
    torch.testing.assert_close(Residual(Bias(2, 0.5))(numbers), torch.tensor([[-1.5, 4.5]]))
    assert torch.equal(norm("none", 2)(numbers), numbers)


@pytest.mark.parametrize(
    ("shape", "start", "channels"),
    [
        ((1, 4, 4), (4, 4), [1]),  # nothing to double: a convolution
        ((1, 16, 16), (4, 4), [128, 1]),  # the article's
        ((1, 28, 28), (4, 4), [128, 64, 1]),
        ((3, 32, 32), (4, 4), [128, 64, 3]),
        ((1, 45, 27), (6, 4), [128, 64, 1]),
        ((3, 96, 96), (6, 6), [128, 64, 32, 3]),
        ((3, 128, 128), (4, 4), [128, 64, 32, 32, 3]),
    ],
    ids=str,
)
def test_the_article_s_generator_doubles_its_way_to_any_size(
    shape: Shape, start: tuple[int, int], channels: list[int]
) -> None:
    network = ArticleGenerator(10, shape)
    dense = [layer.weight.shape for layer in weighted(network) if isinstance(layer, nn.Linear)]
    assert dense == [(256, 10), (512, 256), (1024, 512), (256 * math.prod(start), 1024)]
    found = [layer.out_channels for layer in weighted(network) if not isinstance(layer, nn.Linear)]
    assert found == channels
    assert_no_useless_bias(network)
    torch.manual_seed(0)
    assert network(torch.randn(4, 10)).shape == (4, *shape)


def test_a_generator_starts_with_images_that_differ() -> None:
    torch.manual_seed(0)
    images = ArticleGenerator(10, (1, 28, 28))(torch.randn(64, 10))
    assert images.std(0).mean() > 0.5


@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_article_s_discriminator_halves_twice_and_has_one_logit(
    dropout: float, shape: Shape
) -> None:
    network = ArticleDiscriminator(dropout, shape)
    found = [layer.out_channels for layer in weighted(network) if isinstance(layer, nn.Conv2d)]
    assert found == [64, 128]
    assert all(layer.bias is not None for layer in weighted(network))
    assert [layer.p for layer in layers(network) if isinstance(layer, nn.Dropout)] == (
        [0.3, 0.3] if dropout else []
    )
    assert network(torch.rand(2, *shape)).shape == (2, 1)
