"""EfficientNet-Lite0 as a network of features, in the layout of its published weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

# Of each stage: kernel, stride of its first block, widening inside a block, channels, blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, HEAD = 32, 1280  # channels
NORM = 1e-3  # ε of the norms


class EfficientNetLite0(nn.Module):
    """Maps of 16, 24, 40, 112 and 1,280 channels, at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size.

    Tan & Le 2019, table 1, without squeeze and excitation and with ReLU6 (the "Lite" variant).
    """

    MARK: ClassVar = "_conv_stem.weight"  # a file with this tensor holds its weights

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = SameConv(3, STEM, 3, 2)
        self.bn0 = nn.BatchNorm2d(STEM, NORM)
        self.blocks = nn.ModuleList()
        before = STEM
        for kernel, stride, widening, channels, blocks in STAGES:
            for number in range(blocks):
                first = stride if number == 0 else 1
                self.blocks.append(MobileBlock((before, channels), kernel, first, widening))
                before = channels
        self.conv_head = SameConv(before, HEAD, 1)
        self.bn1 = nn.BatchNorm2d(HEAD, NORM)

    # [B, 3, H, W] in [-1, 1] -> five of [B, c, h, w]
    def forward(self, images: Tensor) -> list[Tensor]:
        # No mean and std of ImageNet, which the example of the package subtracts: on photographs
        # the stem then has 3 to 5 times the variance that its norm was trained to, without 0.6 to
        # 1.1 times.
        values = functional.relu6(self.bn0(self.conv_stem(images)))
        found = []
        for block in self.blocks:
            assert isinstance(block, MobileBlock)
            if block.stride > 1:
                found.append(values)
            values = block(values)
        return [*found, functional.relu6(self.bn1(self.conv_head(values)))]

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Take published weights; raise RuntimeError for others."""
        names = {name: name.removeprefix("_").replace("._", ".") for name in tensors}
        own = {names[name]: value for name, value in tensors.items() if name[:4] != "_fc."}
        self.load_state_dict(own, assign=True)


class MobileBlock(nn.Module):
    """Widened by a 1×1 convolution, filtered channel by channel, narrowed again, and added."""

    def __init__(self, channels: tuple[int, int], kernel: int, stride: int, widening: int) -> None:
        super().__init__()
        before, after = channels
        wide = before * widening
        self.stride, self.adds = stride, stride == 1 and before == after
        if widening > 1:
            self.expand_conv = SameConv(before, wide, 1)
            self.bn0 = nn.BatchNorm2d(wide, NORM)
        self.widens = widening > 1
        self.depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide)
        self.bn1 = nn.BatchNorm2d(wide, NORM)
        self.project_conv = SameConv(wide, after, 1)
        self.bn2 = nn.BatchNorm2d(after, NORM)

    def forward(self, values: Tensor) -> Tensor:  # [B, c, h, w] -> [B, d, h / stride, w / stride]
        wide = functional.relu6(self.bn0(self.expand_conv(values))) if self.widens else values
        wide = functional.relu6(self.bn1(self.depthwise_conv(wide)))
        narrow: Tensor = self.bn2(self.project_conv(wide))
        return narrow + values if self.adds else narrow


class SameConv(nn.Conv2d):
    """A convolution to ⌈side / stride⌉, padded as TensorFlow does: if unevenly, more at the end."""

    def __init__(
        self, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding = []
        for side in (values.shape[3], values.shape[2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(functional.pad(values, padding))
