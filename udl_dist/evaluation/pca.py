"""Baselines without a network: raw pixels, and principal components in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from udl_dist.evaluation.metric_group import CodeMap

# Batches [B, C, H, W] in [-1, 1]; each call starts again from the first image.
Images = Callable[[], Iterable[Tensor]]

# Directions beyond those requested, so that the last requested ones converge as fast as others.
EXTRA = 16
MOST_PASSES = 8  # over the images
SETTLED = 2e-3  # iteration ends when a pass lowers the error by less than this share of it
CHUNK_FLOATS = 2**23  # pixels in memory as floats at a time: 32 MiB
LARGEST_SIDE = 32  # of raw pixels; larger images are averaged


def pixels(images: Tensor) -> Tensor:  # [B, C, H, W] -> [B, F]
    """Images as rows of raw pixels, averaged to 32 × 32 at most: the baseline of codes."""
    sides = (min(LARGEST_SIDE, images.shape[2]), min(LARGEST_SIDE, images.shape[3]))
    return functional.adaptive_avg_pool2d(images, sides).flatten(1)


def errors(
    fitted: Images, measured: Images, components: Sequence[int]
) -> tuple[dict[int, float], int]:
    """Mean squared error per pixel, in [0, 1], of `measured` images after PCA of `fitted` ones.

    Returns the errors by number of components, and the number of fitted images. Component counts
    that this number does not allow are left out. Memory is that of a few matrices of pixels ×
    components; the covariance, which has pixels² entries, is never computed.
    """
    mean, count = _mean(fitted)
    # N images span at most N - 1 directions.
    wanted = [size for size in components if size < count]
    if not wanted:
        return {}, count
    basis = _basis(fitted, mean, count, max(wanted))  # [D, K], the greatest variance first
    explained = torch.zeros(basis.shape[1], dtype=torch.float64)
    total, seen = 0.0, 0
    for rows in _centred(measured, mean):
        # |x|² = |projection|² + |error|²: one pass gives the errors of every number of components.
        explained += (rows @ basis).double().square().sum(0)
        total += float(rows.double().square().sum())
        seen += len(rows)
    reached = explained.cumsum(0)
    left = {size: total - float(reached[min(size, len(reached)) - 1]) for size in wanted}
    return {size: max(0.0, value) / (seen * len(mean)) for size, value in left.items()}, count


def principal(covariance: Tensor, components: int) -> Tensor:  # [D, D] -> [D, K]
    """The directions of most variance, of a covariance in memory; the greatest comes last."""
    vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors  # in rising order
    return vectors[:, max(0, len(covariance) - components) :]


def code_map(fitted: Tensor, rows: Tensor, labels: Tensor) -> CodeMap:  # [N, F], [M, F], [M]
    """`rows` along the two directions in which the `fitted` ones vary most."""
    centre = fitted.double().mean(0)
    covariance = torch.cov(fitted.double().T).view(len(centre), -1)
    basis = principal(covariance, 2).flip(1)  # the greatest first
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = basis * largest.sign()  # a direction has no sign of its own
    points = functional.pad((rows.double() - centre) @ basis, (0, 2 - basis.shape[1]))
    shares = (basis * (covariance @ basis)).sum(0) / covariance.trace().clamp(min=1e-30)
    names = [
        f"direction {number}: {100 * share:.0f} % of the variance"
        for number, share in enumerate(shares.tolist(), 1)
    ]
    return CodeMap(points, labels, (names[0], names[1] if len(names) > 1 else "none"))


def _basis(
    images: Images, mean: Tensor, count: int, components: int
) -> Tensor:  # -> [D, K] float32
    """Orthonormal directions by subspace iteration (Halko et al. 2011, algorithm 4.4)."""
    pixels = len(mean)
    # More directions than asked for converge in fewer passes, and a pass decodes all images.
    width = min(components + EXTRA + components // 4, pixels, count)
    start = torch.randn(pixels, width, generator=torch.Generator().manual_seed(0))
    basis: Tensor = torch.linalg.qr(start).Q
    before = float("inf")
    for _ in range(MOST_PASSES):
        # covariance × basis, and the variance of all pixels
        product, total = torch.zeros_like(basis), 0.0
        for rows in _centred(images, mean):
            product.addmm_(rows.T, rows @ basis)
            total += float(rows.double().square().sum())
        # Rayleigh-Ritz: the eigenvectors of the covariance restricted to the basis.
        values, vectors = torch.linalg.eigh((basis.T @ product).double())
        best: Tensor = basis @ vectors.flip(1)[:, :components].float()
        # The variance that the best directions leave; `width == pixels` spans everything, exact at
        # once.
        error = total - float(values.flip(0)[:components].sum())
        if width == pixels or error >= before * (1 - SETTLED) or error <= total * 1e-9:
            break
        basis, before = torch.linalg.qr(product).Q, error
    return best


def _mean(images: Images) -> tuple[Tensor, int]:
    """The mean image, [D] in [0, 1], and the number of images."""
    total, count = torch.zeros(()), 0
    for batch in images():
        # (Σ x + n) / 2 = Σ (x + 1) / 2: pixels in [0, 1].
        total = total + (batch.flatten(1).double().cpu().sum(0) + len(batch)) / 2
        count += len(batch)
    return (total / max(1, count)).float(), count


def _centred(images: Images, mean: Tensor) -> Iterable[Tensor]:
    """Pixels in [0, 1] without their mean, [B, D] float32, in parts of bounded memory."""
    for batch in images():
        for part in torch.split(batch.flatten(1), max(1, CHUNK_FLOATS // len(mean))):
            yield (part.float().cpu() + 1) / 2 - mean
