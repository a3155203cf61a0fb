"""Networks are what their descriptions say, in shape, count and cost, at every size; and they start
well.
"""

import itertools
import math
import subprocess
import sys
from typing import Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from udl_dist.methods.networks.modules import build

from udl_dist.core.config_schema import from_dict
from udl_dist.errors import UsageError
from udl_dist.methods.networks import Network, NetworkSettings, decoder, encoder, halvings, kernel
from udl_dist.methods.networks.layers import (
    Activation,
    ActivationKind,
    Bias,
    Conv,
    ConvTranspose,
    Dropout,
    Linear,
    Norm,
    NormKind,
    Residual,
)

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
AUTOMATIC = NetworkSettings(widths=())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.kind}-{s.depth}-{s.norm}")
def test_a_built_network_has_the_described_shapes_and_parameters(
    settings: NetworkSettings, shape: tuple[int, ...]
) -> None:
    there, back = encoder(settings, shape, 5), decoder(settings, 5, shape)
    images = torch.rand(2, *shape)
    latents = there.build()(images)
    assert latents.shape == (2, *there.outputs) == (2, 5)
    assert back.build()(latents).shape == (2, *back.outputs) == (2, *shape)
    for network in (there, back):
        assert network.parameters == sum(value.numel() for value in network.build().parameters())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_automatic_widths_leave_four_to_eight_pixels(shape: tuple[int, ...]) -> None:
    convolutions = [
        layer for layer in encoder(AUTOMATIC, shape, 5).layers if isinstance(layer, Conv)
    ]
    smallest = halvings((shape[1], shape[2]), len(convolutions))[-1]
    assert 4 <= max(smallest) <= 8
    assert [layer.channels for layer in convolutions] == [32, 64, 128, 256, 256][
        : len(convolutions)
    ]
    assert decoder(AUTOMATIC, 5, shape).outputs == shape


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.kind}-{s.depth}-{s.norm}")
def test_described_multiply_adds_equal_those_torch_counts(settings: NetworkSettings) -> None:
    for network in (encoder(settings, (3, 28, 27), 5), decoder(settings, 5, (3, 28, 27))):
        module = network.build()
        with FlopCounterMode(display=False) as counter:
            module(torch.rand(2, *network.inputs))
        # two images; a multiply-add is two operations
        assert counter.get_total_flops() == 2 * 2 * network.flops


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.kind}-{s.depth}-{s.norm}")
def test_activations_bound_what_is_stored_for_the_gradient(settings: NetworkSettings) -> None:
    for network in (encoder(settings, (3, 28, 27), 5), decoder(settings, 5, (3, 28, 27))):
        module, images, stored = network.build(), torch.rand(64, *network.inputs), dict[int, int]()
        parameters = {value.data_ptr() for value in module.parameters()}

        def keep(
            value: torch.Tensor, parameters: set[int] = parameters, stored: dict[int, int] = stored
        ) -> torch.Tensor:
            if value.data_ptr() not in parameters:
                stored[value.untyped_storage().data_ptr()] = value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            module(images).tanh()  # the loss keeps what comes out
        assert 0.4 * network.activations <= sum(stored.values()) / 64 <= 1.1 * network.activations


@pytest.mark.parametrize("side", range(2, 40))
def test_halving_and_doubling_are_exact_at_every_size(side: int) -> None:
    sides = (side, side + 1)
    half = halvings(sides, 1)[1]
    assert Conv(1, 1, kernel(sides), 2).outputs((1, *sides)) == (1, *half)
    assert ConvTranspose(1, 1, kernel(sides)).outputs((1, *half)) == (1, *sides)


def test_automatic_widths_stop_where_a_thin_image_cannot_be_halved() -> None:
    assert encoder(AUTOMATIC, (1, 4, 200), 5).build()(torch.rand(2, 1, 4, 200)).shape == (2, 5)
    assert decoder(AUTOMATIC, 5, (1, 4, 200)).outputs == (1, 4, 200)


def test_too_many_levels_are_refused_with_the_number_that_fits() -> None:
    with pytest.raises(
        UsageError,
        match="network.widths has 6 entries, but an image of 28×28 can be halved 5 times",
    ):
        encoder(NetworkSettings(widths=(8,) * 6), (1, 28, 28), 4)
    encoder(NetworkSettings(widths=(8,) * 5), (1, 28, 28), 4)


@pytest.mark.parametrize(
    "values", [{"widths": [0]}, {"depth": -1}, {"norm": "layer"}, {"kind": "dens"}, {"width": [8]}]
)
def test_a_bad_network_setting_is_refused_by_name(values: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"network.{next(iter(values))}"):
        from_dict(NetworkSettings, values, "network.")


@pytest.mark.parametrize("norm", ["none", "group", "batch"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_before_batch_normalisation_has_no_bias_and_every_other_has(
    kind: Literal["dense", "conv"], norm: NormKind
) -> None:
    settings, shape = NetworkSettings(kind, (6, 16), 0, norm), (3, 28, 28)
    for network in (encoder(settings, shape, 5), decoder(settings, 5, shape)):
        for layer, following in itertools.pairwise((*network.layers, None)):
            if isinstance(layer, Linear | Conv | ConvTranspose):
                assert layer.bias is not (norm == "batch" and isinstance(following, Norm))


@pytest.mark.parametrize("channels", [1, 3, 6, 8, 20, 32, 48, 100, 256, 1024])
def test_groups_divide_the_channels_and_are_not_too_small(channels: int) -> None:
    groups = Norm("group", channels).groups
    assert channels % groups == 0
    assert groups == 1 or channels / groups >= 8
    assert Norm("group", channels, flat=True).groups == 1


@pytest.mark.parametrize(
    "layer",
    [
        Linear(512, 512, 1.0),
        Conv(64, 64, (3, 3), 1, 1.0),
        Conv(64, 64, (4, 4), 2, 1.0),
        ConvTranspose(64, 64, (4, 4), 1.0),
        ConvTranspose(64, 64, (3, 3), 1.0),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_starts_with_the_scale_it_was_given(layer: Linear | Conv | ConvTranspose) -> None:
    torch.manual_seed(0)
    out = build(layer)(
        torch.randn(16, layer.inputs, *(() if isinstance(layer, Linear) else (16, 16)))
    )
    inner = out if out.dim() == 2 else out[:, :, 2:-2, 2:-2]  # away from the padding
    assert 0.9 < inner.std() < 1.1


def test_a_deep_chain_without_norm_keeps_its_scale() -> None:
    torch.manual_seed(0)
    settings = NetworkSettings("dense", (256,) * 20, norm="none", activation="relu")
    assert 0.2 < encoder(settings, (1, 16, 16), 256).build()(torch.randn(64, 1, 16, 16)).std() < 2


@pytest.mark.parametrize(
    "settings", [s for s in SETTINGS if s.depth], ids=lambda s: f"{s.kind}-{s.norm}"
)
def test_residual_blocks_start_as_nothing(settings: NetworkSettings) -> None:
    blocks = [
        layer for layer in encoder(settings, (1, 8, 8), 4).layers if isinstance(layer, Residual)
    ]
    assert len(blocks) == 4
    features = torch.randn(3, 16, *((2, 2) if settings.kind == "conv" else ()))
    assert torch.equal(build(blocks[-1])(features), features)


def test_the_last_layer_of_a_decoder_starts_small() -> None:
    torch.manual_seed(0)
    assert decoder(AUTOMATIC, 8, (1, 28, 28)).build()(torch.randn(64, 8)).std() < 0.2


def test_the_same_seed_gives_the_same_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat(
            [value.flatten() for value in encoder(AUTOMATIC, (1, 28, 28), 4).build().parameters()]
        )

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    "settings", [s for s in SETTINGS if s.kind == "conv"], ids=lambda s: f"{s.depth}-{s.norm}"
)
def test_channels_last_gives_the_same_numbers(settings: NetworkSettings) -> None:
    network = encoder(settings, (3, 28, 28), 4)
    module, images = network.build(), torch.rand(4, 3, 28, 28)
    usual = module(images)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
    torch.testing.assert_close(
        module(images.to(memory_format=torch.channels_last)), usual, atol=1e-5, rtol=1e-4
    )


def test_small_layers_do_what_they_say() -> None:
    numbers = torch.tensor([[-1.0, 2.0]])
    torch.testing.assert_close(
        build(Activation("leaky_relu", 0.2))(numbers), torch.tensor([[-0.2, 2.0]])
    )
    torch.testing.assert_close(build(Bias(2, 0.5))(numbers), torch.tensor([[-0.5, 2.5]]))
    dropped = build(Dropout(0.25))(torch.ones(40_000))
    assert math.isclose((dropped == 0).float().mean(), 0.25, abs_tol=0.01)
    assert Network((2,), (Bias(2),)).parameters == 2


def test_describing_and_counting_does_not_import_torch() -> None:
    code = (
        "import sys; from udl_dist.methods import find, names; from udl_dist.core.config_schema"
        " import from_dict\nfor name in names():\n    method = find(name)\n    networks ="
        " method(from_dict(method.Settings, {}), (1, 28, 28)).describe()\n    assert"
        " all(n.parameters and n.activations and n.flops for n in networks.values())\nassert"
        " 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
