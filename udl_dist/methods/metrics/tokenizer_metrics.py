"""How reconstructions differ from the images: errors, sharpness, and a distance of both sets."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from udl_dist.methods.metrics import descriptor, frechet

EXACT = 1e-10  # an error that no image of 8 bits could show; its PSNR is 100 dB


# [B, C, H, W] twice -> each [B] or [B, D]
def values_of(images: Tensor, output: Tensor) -> dict[str, Tensor]:
    """What each image adds to the means that `metrics` compares."""
    mse = (output - images).div(2).square().flatten(1).mean(1)  # of pixels in [0, 1]
    values = {"mse": mse, "psnr": -10 * mse.clamp(min=EXACT).log10()}
    for name, each in (("real", images), ("output", output)):
        values |= frechet.moments(descriptor.describe(each), name)
        down, across = each.diff(dim=2).square(), each.diff(dim=3).square()
        values[f"{name}_differences"] = down.flatten(1).mean(1) + across.flatten(1).mean(1)
    return values


def metrics(means: Mapping[str, Tensor]) -> dict[str, float]:
    """Errors; the Fréchet distance of reconstructions from images in the descriptor; sharpness.

    `sharpness` is the energy of differences of neighbouring pixels over that of the images.
    """
    sharpness = means["output_differences"] / means["real_differences"]
    return {
        "mse": float(means["mse"]),
        "psnr": float(means["psnr"]),
        "frechet_detail": frechet.distance(means, "real", "output"),
        "sharpness": float(sharpness),
    }
