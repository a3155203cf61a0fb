"""VGG-16 as a network of features, as LPIPS uses it (Zhang et al. 2018)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

# Channels of the convolutions of each level (Simonyan & Zisserman 2015, table 1, column D).
LEVELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Mean and std of ImageNet for images in [-1, 1], as LPIPS rounds them.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
HEADS = tuple(f"lin{number}.model.1.weight" for number in range(len(LEVELS)))


class VGG16(nn.Module):
    """Maps of 64, 128, 256, 512 and 512 channels, after the last ReLU before each halving.

    Sides of images are at least 16 pixels. `heads` are the weights of channels that LPIPS learned
    from people's judgements, [c, 1, 1] for each map; () for a file without them.
    """

    MARK: ClassVar = "features.0.weight"  # a file with this tensor holds its weights

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for level in LEVELS:
            for channels in level:
                layers += [nn.Conv2d(before, channels, 3, 1, 1), nn.ReLU()]
                before = channels
            layers.append(nn.MaxPool2d(2))
        # The numbers of layers are those in the names of torchvision's weights. The last halving
        # comes before its classifier.
        self.features = nn.ModuleList(layers[:-1])
        self.heads: tuple[Tensor, ...] = ()
        self.shift: Tensor
        self.scale: Tensor
        for name, value in (("shift", SHIFT), ("scale", SCALE)):
            # On the CPU also where networks are made on meta: no file holds them.
            constant = torch.tensor(value, device="cpu")[:, None, None]
            self.register_buffer(name, constant, persistent=False)

    # [B, 3, H, W] in [-1, 1] -> five of [B, c, h, w]
    def forward(self, images: Tensor) -> list[Tensor]:
        values, found = (images - self.shift) / self.scale, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(values)
            values = layer(values)
        return [*found, values]

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Take torchvision's `features.*`, and the heads if they are there; raise RuntimeError for
        others, KeyError for some of the heads.
        """
        own = {name: value for name, value in tensors.items() if name.startswith("features.")}
        self.load_state_dict(own, assign=True)
        if any(re.match(r"lin\d", name) for name in tensors):
            for name, level in zip(HEADS, LEVELS, strict=True):
                if tensors[name].shape != (1, level[-1], 1, 1):
                    raise RuntimeError(f"{name} is {list(tensors[name].shape)}")
            self.heads = tuple(tensors[name][0] for name in HEADS)
