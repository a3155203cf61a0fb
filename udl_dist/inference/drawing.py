"""`udl sample`, `reconstruct` and `traverse`: the pictures that a model makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from pathlib import Path

import torch
from torch import Tensor

from udl_dist.core import rng
from udl_dist.data.packing.finding import READ
from udl_dist.errors import UsageError
from udl_dist.evaluation import similarity
from udl_dist.evaluation.pictures import grid
from udl_dist.inference import sources
from udl_dist.inference.calibration import calibration
from udl_dist.inference.model import BATCH_IMAGES, Model, Prior
from udl_dist.inference.outcome import Outcome, is_picture, new_folder, outcome, save, writing

# 64 rows of 64.
MOST_IN_GRID = 4096
BACKGROUND = 96 / 127.5 - 1  # that of a grid
SEED = "seed:"  # an end of an interpolation that is drawn


@dataclass(frozen=True)
class Draw:
    """How many new images, from what random seed, prior and class ("": all classes in turn)."""

    count: int
    seed: int = 0
    prior: Prior = "auto"
    label: str = ""


def sample(model: Model, draw: Draw, out: Path) -> Outcome:
    """Draw new images into one PNG grid, or each into a folder."""
    count, seed, prior = draw.count, draw.seed, draw.prior
    if count < 1:
        raise UsageError(f"--n {count}: draw at least one image")
    if is_picture(out):
        if count > MOST_IN_GRID:
            raise UsageError(
                f"--n {count} is too much for one picture ({MOST_IN_GRID:,}): name a folder with"
                " --out"
            )
        # As square as possible.
        save(grid(_drawn(model, draw), ceil(sqrt(count))), out)
        where = str(out)
    else:
        _drawn(model, replace(draw, count=1))  # refused before a folder is made
        _write_singles(model, draw, new_folder(out))
        where = f"{out}/000000.png to {count - 1:06d}.png"
    said = f"{count:,} images, seed {seed}: {where}"
    return outcome(model, [said], out=str(out), n=count, seed=seed, prior=prior)


def reconstruct(
    model: Model, names: Sequence[str], most: int, out: Path, label: str = ""
) -> Outcome:
    """Images over their reconstructions in one PNG grid, or each reconstruction in a folder."""
    model.require("reconstruct")
    given = sources.read(model, names, most)
    images, count = given.images, len(given.keys)
    rebuilt = model.reconstruct(images, label or None)
    errors = similarity.mse(rebuilt, images)
    # The mean of the PSNRs, as `udl evaluate` gives it, not the PSNR of the mean error.
    mse, psnr = float(errors.mean()), float(similarity.psnr(errors).mean())
    if is_picture(out):
        # Rows come in pairs, so an unfinished row is filled up with the grey of the grid.
        columns = min(count, 16)
        pairs = zip(torch.split(images, columns), torch.split(rebuilt, columns), strict=True)
        rows = [_padded(row, columns) for pair in pairs for row in pair]
        save(grid(torch.cat(rows), columns), out)
    else:
        folder = new_folder(out)
        pictures = zip(given.keys, model.pictures(rebuilt), strict=True)
        with writing(folder):
            for number, (key, picture) in enumerate(pictures):
                picture.save(folder / f"{number:06d}-{_file_name(key)}.png")
    which = f"{count} images"
    # Without this line it would seem that a folder of 10,000 images was measured by 64 of them.
    if count < given.total:
        which = f"the first {count:,} of {given.total:,} images (--n {given.total} takes all)"
    said = f"{which}: mean squared error {mse:.5f} (pixels in [0, 1]), PSNR {psnr:.2f} dB: {out}"
    return outcome(model, [said], out=str(out), n=count, images=given.total, mse=mse, psnr=psnr)


@dataclass(frozen=True)
class Walk:
    """How many latents to walk along, in how many steps, and how many std to either side."""

    axes: int
    steps: int
    reach: float
    label: str = ""  # the class, in a conditional model


def traverse(model: Model, walk: Walk, base: str, seed: int, out: Path) -> Outcome:
    """Walk along single latents, a row for each: those that vary most over images first.

    The middle is the latent of the image `base`, or the mean one, or a drawn one where there is no
    encoder; a row goes as many std to either side as `walk` says.
    """
    model.require("decode")
    axes, steps, reach = walk.axes, walk.steps, walk.reach
    if steps < 2 or axes < 1:
        raise UsageError(f"--axes {axes} --steps {steps}: give at least one axis and two steps")
    # A GAN has no encoder to measure its latents by, but draws them from N(0, 1).
    middle, std = torch.zeros(model.latent_dim), torch.ones(model.latent_dim)
    if model.can("encode"):
        known = calibration(model)
        middle, std = torch.tensor(known.latent_mean), torch.tensor(known.latent_deviation)
    elif not base:
        base = f"{SEED}0"  # the mean of normal latents is not a draw: draws are never near it
    if base:
        middle = _latent(model, base, seed)
    # Stable: without an encoder all are equal, and the first ones are shown in their order.
    chosen = std.argsort(descending=True, stable=True)[:axes]
    # [axes, steps, Z]
    latents = middle.repeat(len(chosen), steps, 1)
    for row, axis in enumerate(chosen.tolist()):
        latents[row, :, axis] += torch.linspace(-reach, reach, steps) * std[axis]
    # A row of the grid for each axis.
    save(grid(model.decode(latents.flatten(0, 1), walk.label or None), steps), out)
    named = ", ".join(f"{axis} (std {std[axis]:.3g})" for axis in chosen.tolist())
    return outcome(
        model,
        [f"latents {named}, from -{reach:g} to {reach:g} std: {out}"],
        out=str(out),
        axes=chosen.tolist(),
        deviations=std[chosen].tolist(),
        steps=steps,
        reach=reach,
    )


def interpolate(model: Model, ends: tuple[str, str], walk: Walk, seed: int, out: Path) -> Outcome:
    """Go from one image (or `seed:N`, a drawn latent) to another in the steps of `walk`; on a
    sphere if latents are normal.
    """
    model.require("decode")
    (start, end), steps = ends, walk.steps
    if steps < 2:
        raise UsageError(f"--steps {steps}: give at least two")
    first, last = (_latent(model, name, seed) for name in ends)
    # A point halfway on the line between two normal draws is shorter than either, and lies where a
    # decoder has seen no latents.
    way, between = ("spherical", slerp) if model.method.can("prior") else ("straight", torch.lerp)
    latents = torch.stack([between(first, last, share) for share in torch.linspace(0, 1, steps)])
    save(grid(model.decode(latents, walk.label or None), steps), out)
    said = f"from {start} to {end} in {steps} steps, {way}: {out}"
    return outcome(model, [said], out=str(out), start=start, end=end, steps=steps, way=way)


def slerp(first: Tensor, last: Tensor, share: Tensor) -> Tensor:  # [Z], [Z], [] -> [Z]
    """Spherical interpolation (White 2016): latents on the way are as long as normal draws."""
    cosine = torch.nn.functional.cosine_similarity(first, last, 0).clamp(-1, 1)
    # sin(angle) divides below: for latents on one line it is 0.
    angle = cosine.acos()
    if float(angle.sin()) < 1e-6:  # on one line
        return torch.lerp(first, last, share)
    return (((1 - share) * angle).sin() * first + (share * angle).sin() * last) / angle.sin()


def _latent(model: Model, name: str, seed: int) -> Tensor:  # -> [Z]
    """The latent of an image, or the one drawn for `seed:N`."""
    folder = model.origin.folder
    if not name.startswith(SEED):
        if not model.can("encode"):
            raise UsageError(
                f"{folder}: a model of method {model.origin.method} cannot encode {name!r}: give "
                f"{SEED}N, a latent drawn with that number"
            )
        return model.codes(sources.read(model, [name], 1).images)[0]
    number = name.removeprefix(SEED)
    if not number.isdecimal():
        raise UsageError(f"{name!r}: write {SEED}N with a whole number N")
    # The key of image number N of `udl sample --seed`, so that it is the same image.
    key = rng.keys(seed, 1, int(number))
    if model.method.can("prior"):
        return model.method.prior(key.to(model.device)).cpu()[0].flatten()
    if model.mixture:
        return model.mixture.draw(key)[0]
    raise UsageError(
        f"{folder} has no prior to draw {name!r} from: name an image, or run udl fit-prior"
    )


def _drawn(model: Model, draw: Draw, start: int = 0) -> Tensor:  # -> [N, C, H, W]
    return model.sample(draw.count, draw.seed, draw.prior, start, draw.label or None)


def _write_singles(model: Model, draw: Draw, folder: Path) -> None:
    # Batch by batch: any number of images takes the memory of one batch.
    for start in range(0, draw.count, BATCH_IMAGES):
        part = replace(draw, count=min(BATCH_IMAGES, draw.count - start))
        drawn = _drawn(model, part, start)
        with writing(folder):
            for number, picture in enumerate(model.pictures(drawn), start):
                picture.save(folder / f"{number:06d}.png")


def _padded(row: Tensor, columns: int) -> Tensor:
    missing = row.new_full((columns - len(row), *row.shape[1:]), BACKGROUND)
    return torch.cat([row, missing])


def _file_name(key: str) -> str:
    """A key, from data or a path, as part of a file name that leads nowhere else."""
    if key.lower().endswith(READ):
        key = Path(key).stem
    # No separators and no leading dots: a key comes from data.
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in key)[:80]
