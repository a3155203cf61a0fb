"""Pictures that a model makes: new images, images rebuilt, walks through its latents."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from udl_dist.core import rng
from udl_dist.data.packing.finding import READ
from udl_dist.errors import UsageError
from udl_dist.evaluation import similarity
from udl_dist.evaluation.pictures import grid
from udl_dist.models.model import BATCH_IMAGES, Model, Prior
from udl_dist.using import sources
from udl_dist.using.calibration import calibration
from udl_dist.using.outcome import Outcome, is_picture, new_folder, outcome, save, writing

MOST_IN_GRID = 4096
BACKGROUND = 96 / 127.5 - 1  # that of a grid
SEED = "seed:"  # an end of an interpolation that is drawn


def sample(model: Model, count: int, seed: int, prior: Prior, out: Path) -> Outcome:
    """Draw `count` new images into one PNG grid, or each into a folder."""
    if count < 1:
        raise UsageError(f"--n {count}: draw at least one image")
    if is_picture(out):
        if count > MOST_IN_GRID:
            raise UsageError(
                f"--n {count} is too much for one picture ({MOST_IN_GRID:,}): name a folder with"
                " --out"
            )
        save(grid(model.sample(count, seed, prior), ceil(sqrt(count))), out)
        where = f"{count} images, seed {seed}: {out}"
    else:
        model.sample(1, seed, prior)  # refused before a folder is made
        _singles(model, count, seed, prior, new_folder(out))
        where = f"{count:,} images, seed {seed}: {out}/000000.png to {count - 1:06d}.png"
    return outcome(model, [where], out=str(out), n=count, seed=seed, prior=prior)


def reconstruct(model: Model, names: Sequence[str], most: int, out: Path) -> Outcome:
    """Images over what the model makes of them, in one PNG grid, or each reconstruction into a
    folder.
    """
    model.require("reconstruct")
    keys, images, there = sources.read(model, names, most)
    rebuilt = model.reconstruct(images)
    errors = similarity.mse(rebuilt, images)
    if is_picture(out):
        save(_over(images, rebuilt), out)
    else:
        folder = new_folder(out)
        with writing(folder):
            for number, (key, picture) in enumerate(
                zip(keys, model.pictures(rebuilt), strict=True)
            ):
                picture.save(folder / f"{number:06d}-{_file_name(key)}.png")
    psnr = float(similarity.psnr(errors).mean())
    some = f"the first {len(keys):,} of {there:,} images (--n {there} takes all)"
    which = f"{len(keys)} images" if len(keys) == there else some
    said = (
        f"{which}: mean squared error {float(errors.mean()):.5f} (pixels in [0, 1]), PSNR"
        f" {psnr:.2f} dB"
    )
    return outcome(
        model,
        [f"{said}: {out}"],
        out=str(out),
        n=len(keys),
        images=there,
        mse=float(errors.mean()),
        psnr=psnr,
    )


def traverse(
    model: Model, axes: int, steps: int, reach: float, base: str, seed: int, out: Path
) -> Outcome:
    """Walk along single latents, a row for each: those that vary most over images first.

    The middle is the latent of the image `base`, or the mean one, or a drawn one where there is no
    encoder; a row goes `reach` deviations to either side.
    """
    model.require("decode")
    if steps < 2 or axes < 1:
        raise UsageError(f"--axes {axes} --steps {steps}: give at least one axis and two steps")
    mean, deviation = _spread(model)
    if not base and not model.can("encode"):
        base = f"{SEED}0"  # the mean of normal latents is no draw: they all lie far from it
    middle = _end(model, base, seed)[0] if base else mean
    chosen = deviation.argsort(descending=True, stable=True)[:axes]
    ways = torch.linspace(-reach, reach, steps)
    latents = middle.repeat(len(chosen), steps, 1)
    for row, axis in enumerate(chosen.tolist()):
        latents[row, :, axis] += ways * deviation[axis]
    save(grid(model.decode(latents.flatten(0, 1)), steps), out)
    named = ", ".join(f"{axis} (deviation {deviation[axis]:.3g})" for axis in chosen.tolist())
    return outcome(
        model,
        [f"latents {named}, from -{reach:g} to {reach:g} deviations: {out}"],
        out=str(out),
        axes=chosen.tolist(),
        deviations=deviation[chosen].tolist(),
        steps=steps,
        reach=reach,
    )


def interpolate(model: Model, start: str, end: str, steps: int, seed: int, out: Path) -> Outcome:
    """Go from one image (or `seed:N`, a drawn latent) to another; on a sphere where latents are
    normal numbers.
    """
    model.require("decode")
    if steps < 2:
        raise UsageError(f"--steps {steps}: give at least two")
    first, last = _end(model, start, seed)[0], _end(model, end, seed)[0]
    way = "spherical" if model.method.can("prior") else "straight"
    between = slerp if way == "spherical" else torch.lerp
    latents = torch.stack([between(first, last, share) for share in torch.linspace(0, 1, steps)])
    save(grid(model.decode(latents), steps), out)
    said = f"from {start} to {end} in {steps} steps, {way}: {out}"
    return outcome(model, [said], out=str(out), start=start, end=end, steps=steps, way=way)


def slerp(first: Tensor, last: Tensor, share: Tensor) -> Tensor:  # [Z], [Z], [] -> [Z]
    """Spherical interpolation (White 2016): what lies between two normal draws then has their
    length, as draws have.
    """
    cosine = torch.nn.functional.cosine_similarity(first, last, 0).clamp(-1, 1)
    angle = cosine.acos()
    if float(angle.sin()) < 1e-6:  # on one line
        return torch.lerp(first, last, share)
    return (((1 - share) * angle).sin() * first + (share * angle).sin() * last) / angle.sin()


def _spread(model: Model) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each latent: over held-out images where there is an encoder, else those
    of the prior.
    """
    if model.can("encode"):
        known = calibration(model)
        return torch.tensor(known.latent_mean), torch.tensor(known.latent_deviation)
    return torch.zeros(model.latent_dim), torch.ones(model.latent_dim)


def _end(model: Model, name: str, seed: int) -> Tensor:  # -> [1, Z]
    if not name.startswith(SEED):
        if not model.can("encode"):
            raise UsageError(
                f"{model.origin.folder}: a model of method {model.origin.method} cannot encode"
                f" {name!r}: give {SEED}N, a latent drawn with that number"
            )
        return model.encode(sources.read(model, [name], 1)[1])
    number = name.removeprefix(SEED)
    if not number.isdecimal():
        raise UsageError(f"{name!r}: write {SEED}N with a whole number N")
    key = rng.keys(seed, 1, int(number))
    if model.method.can("prior"):
        return model.method.prior(key.to(model.device)).cpu()
    if model.mixture:
        return model.mixture.draw(key)
    raise UsageError(
        f"{model.origin.folder} has no prior to draw {name!r} from: name an image, or run udl"
        " fit-prior"
    )


def _singles(model: Model, count: int, seed: int, prior: Prior, folder: Path) -> None:
    for start in range(0, count, BATCH_IMAGES):
        drawn = model.sample(min(BATCH_IMAGES, count - start), seed, prior, start)
        with writing(folder):
            for number, picture in enumerate(model.pictures(drawn), start):
                picture.save(folder / f"{number:06d}.png")


def _over(images: Tensor, rebuilt: Tensor) -> Image.Image:
    columns = min(len(images), 16)
    rows = zip(torch.split(images, columns), torch.split(rebuilt, columns), strict=True)
    return grid(
        torch.cat(
            [part for row in rows for part in (_padded(row[0], columns), _padded(row[1], columns))]
        ),
        columns,
    )


def _padded(row: Tensor, columns: int) -> Tensor:
    missing = columns - len(row)
    return torch.cat([row, row.new_full((missing, *row.shape[1:]), BACKGROUND)]) if missing else row


def _file_name(key: str) -> str:
    """A key that came from data, or the name of a file, as part of a file's name: nothing in it
    leads elsewhere.
    """
    if key.lower().endswith(READ):
        key = Path(key).stem
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in key)[:80]
