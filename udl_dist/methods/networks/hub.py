"""How image tokenizers are named in diffusers, where `from_pretrained` loads them.

Our networks have its names and its arithmetic, so a layout is a configuration and a list of names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from udl_dist.methods.networks.resnet import groups_of

if TYPE_CHECKING:
    from torch import Tensor

    from udl_dist.methods.tokenizer import Tokenizer

# The networks that a reconstruction passes; an adversary and a scale serve training alone.
NETWORKS = ("encoder", "quant_conv", "post_quant_conv", "decoder")


@dataclass(frozen=True)
class HubLayout:
    """A class of diffusers, its configuration, and the names of its tensors."""

    class_name: str
    config: Mapping[str, Any]  # without statistics of latents
    names: Mapping[str, str]  # diffusers' name of a tensor -> ours
    # The keys of its configuration among scaling_factor, shift_factor, latents_mean, latents_std.
    statistics: tuple[str, ...]
    # Our tensors from those that have a name there: others may follow from them.
    complete: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


def hub_layout(
    method: Tokenizer, class_name: str, own: Mapping[str, Any], statistics: tuple[str, ...]
) -> HubLayout:
    """The layout of a tokenizer; `own` are the keys that this class alone has, or has otherwise."""
    settings, channels = method.settings, method.shape[0]
    more, count = settings.attention == "smallest", len(settings.widths) - 1
    # The smallest maps are those of the last block of the encoder and of the first of the decoder.
    smallest = (f"{'Attn' if more else ''}Down", f"{'Attn' if more else ''}Up")
    config = {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ["DownEncoderBlock2D"] * count + [f"{smallest[0]}EncoderBlock2D"],
        "up_block_types": [f"{smallest[1]}DecoderBlock2D"] + ["UpDecoderBlock2D"] * count,
        "block_out_channels": list(settings.widths),
        "layers_per_block": settings.blocks,
        "latent_channels": settings.latent_channels,
        "norm_num_groups": groups_of(settings.widths),
        "act_fn": "silu",
        # One number, by which diffusers also cuts larger images into tiles.
        "sample_size": max(method.shape[1:]),
        "mid_block_add_attention": settings.attention != "none",
        # Nothing is known of 16 bits: pipelines then decode in float32.
        "force_upcast": True,
    }
    tensors = method.saved_tensors()
    names = {name: name for name in tensors if name.partition(".")[0] in NETWORKS}
    return HubLayout(class_name, config | dict(own), names, statistics)
