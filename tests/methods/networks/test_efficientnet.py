"""EfficientNet-Lite0 against the package whose layout its weights have."""

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_images
from torch import Tensor

from udl_dist.methods.networks import feature_files
from udl_dist.methods.networks.efficientnet import EfficientNetLite0


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    made = feature_files.read("efficientnet-lite0").network
    assert isinstance(made, EfficientNetLite0)
    return made


def theirs(network: EfficientNetLite0, images: Tensor) -> list[Tensor]:
    """The last map of each size, by the package with the same weights."""
    oracle = EfficientNet.from_name("efficientnet-lite0", image_size=list(images.shape[2:]))
    values = dict(zip(oracle.state_dict(), network.state_dict().values(), strict=False))
    oracle.load_state_dict(values, strict=False)  # without its classes
    oracle.eval()
    found, seen = [], oracle._swish(oracle._bn0(oracle._conv_stem(images)))
    for block in oracle._blocks:
        if block._block_args.stride in (2, [2]):
            found.append(seen)
        seen = block(seen)
    return [*found, oracle.extract_features(images)]


@pytest.mark.parametrize("sides", [(64, 64), (28, 28), (50, 33), (97, 40)])
@torch.no_grad()
def test_its_maps_are_those_of_the_package_at_any_size(
    network: EfficientNetLite0, sides: tuple[int, int]
) -> None:
    images = torch.rand(2, 3, *sides, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found, expected = network(images), theirs(network, images)
    assert [one.shape[1] for one in found] == [16, 24, 40, 112, 1280]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_images_from_minus_one_to_one_are_what_its_weights_were_trained_on(
    network: EfficientNetLite0,
) -> None:
    photographs = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    values = network.conv_stem(photographs / 127.5 - 1)
    ratios = values.var((0, 2, 3)) / network.bn0.running_var
    assert 0.6 < float(ratios.median()) < 1.6
