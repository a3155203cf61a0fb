"""Small methods for tests: one built with some settings, and a batch for it."""

from typing import Any

import torch

from udl_dist.core import rng
from udl_dist.core.config_schema import from_dict, nest
from udl_dist.methods import find, names
from udl_dist.methods.losses.gan_losses import LOSSES
from udl_dist.methods.method import Batch
from udl_dist.methods.networks.sizes import MethodMaker

SHAPE = (1, 8, 8)
CLASSES = ("ash", "elm", "oak")
DENSE = {"latent_dim": 3, "network.kind": "dense", "network.widths": [7]}
ADVERSARY = {
    "adversary.width": 4,
    "adversary.halvings": 1,
    "adversary.acts_after_images": 0,
    "adversary.ramp_images": 0,
}
GAN = {"latent_dim": 4, "generator": "conv", "discriminator": "conv", "network.widths": [4, 8]}
PENALTIES = {
    "r1 and r2": {"r1": 2.0, "r2": 1.0, "r1_every": 1},
    "gradient penalty": {"r1": 0.0, "gradient_penalty": 3.0, "r1_every": 1},
}
TOKENIZER = {"widths": [4, 8], "blocks": 1, **ADVERSARY}
# Of methods whose default networks are for a GPU.
SMALL: dict[str, dict[str, Any]] = {
    "ladder": {"width": 8, "latent_channels": 2},
    "kl": TOKENIZER | {"latent_channels": 2},
    "vq": TOKENIZER
    | {"attention": "none", "latent_channels": 6, "quantizer.codes": 8, "quantizer.dimensions": 3},
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # A method is tested by being in its folder.
    **{name: (name, SMALL.get(name, {})) for name in names()},
    "kl with a constant weight": (
        "kl",
        SMALL["kl"]
        | {
            "adversary.adaptive": False,
            "adversary.loss": "softplus",
            "error": "l2",
            "learned_scale": True,
            "kl_weight": 0.1,
        },
    ),
    "vq by gradient": (
        "vq",
        SMALL["vq"] | {"quantizer.kind": "gradient"},
    ),
    "fsq": ("vq", TOKENIZER | {"quantizer.kind": "fsq", "quantizer.levels": [4, 3]}),
    "kl without adversary": (
        "kl",
        {"widths": [8], "attention": "none", "latent_channels": 1, "adversary.weight": 0.0},
    ),
    "dense ae": ("ae", DENSE),
    "dense aae": ("aae", DENSE | {"discriminator_widths": [9], "adversary_weight": 1.0}),
    "tied ae": ("ae", {"latent_dim": 3, "network.kind": "dense", "tied": True}),
    "denoising ae": ("ae", DENSE | {"noise": "gaussian", "noise_level": 0.3}),
    "masked ae": (
        "ae",
        {"latent_dim": 3, "network.widths": [8], "noise": "patches", "noise_level": 0.5},
    ),
    "binarised vae": (
        "vae",
        DENSE | {"likelihood": "bernoulli", "binarise": "epoch", "beta": 2.0, "warmup_images": 200},
    ),
    "gaussian vae": (
        "vae",
        DENSE | {"likelihood": "gaussian", "variance": "fixed", "sigma": 0.5, "free_bits": 0.1},
    ),
    "conv gan with r1": ("gan", GAN | {"r1": 2.0}),
    "iwae": (
        "vae",
        DENSE | {"likelihood": "bernoulli", "binarise": "static", "objective": "iwae"},
    ),
    "vamp": ("vae", DENSE | {"prior": "vamp", "pseudo_inputs": 4, "beta": 2.0}),
    "logistic vae": ("vae", DENSE | {"likelihood": "logistic", "network.widths": [12]}),
    "binarised ladder": (
        "ladder",
        {
            "width": 8,
            "latent_channels": 2,
            "blocks": [0, 1, 1],
            "likelihood": "bernoulli",
            "binarise": "static",
        },
    ),
    "conditional vae": ("vae", {"conditional": True, "network.widths": [8]}),
    "conditional iwae with vamp": (
        "vae",
        {
            "conditional": True,
            "network.widths": [8],
            "objective": "iwae",
            "samples": 2,
            "prior": "vamp",
            "pseudo_inputs": 3,
        },
    ),
    "conditional gan": ("gan", {"conditional": True, "width": 4}),
    "article gan": ("gan", {"generator": "article", "discriminator": "article"}),
    "minimax gan": (
        "gan",
        {
            "latent_dim": 4,
            "generator": "conv",
            "discriminator": "article",
            "loss": "minimax",
            "dropout": 0.0,
        },
    ),
    **{
        f"{loss} gan with {name}": ("gan", GAN | {"loss": loss} | penalty)
        for loss in LOSSES
        for name, penalty in PENALTIES.items()
    },
    "gan with spectral norm": (
        "gan",
        {"width": 4, "r1": 0.0, "loss": "hinge", "spectral_norm": True, "discriminator_steps": 2},
    ),
    "conditional r3 gan": (
        "gan",
        {
            "conditional": True,
            "generator": "r3",
            "discriminator": "r3",
            "r3_widths": [16, 8],
            "loss": "relativistic",
            "r2": 0.5,
            "augment": "diffaug",
            "augment_chance": 0.4,
        },
    ),
    "gan with ada": ("gan", GAN | {"augment": "ada"}),
}


def made(
    name: str,
    values: dict[str, Any] | None = None,
    shape: tuple[int, int, int] = SHAPE,
    classes: tuple[str, ...] = CLASSES,
) -> Any:
    """The method `name`, built from seed 0."""
    torch.manual_seed(0)
    return maker(name, values, shape, classes)()


def maker(
    name: str,
    values: dict[str, Any] | None = None,
    shape: tuple[int, int, int] = SHAPE,
    classes: tuple[str, ...] = CLASSES,
) -> MethodMaker:
    """What builds the method `name`."""
    kind = find(name)
    settings: Any = from_dict(kind.Settings, nest(values or {}), "method.")
    return MethodMaker(kind, settings, shape, classes)


def batch(
    count: int = 6,
    shape: tuple[int, int, int] = SHAPE,
    dtype: torch.dtype = torch.float32,
    seen: int = 100,
) -> Batch:
    """Images of four random patches each, so that there is something to learn; the same ones each
    time.
    """
    patches = torch.rand(
        count, shape[0], 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    images = patches.repeat_interleave(shape[1] // 2, 2).repeat_interleave(shape[2] // 2, 3) * 2 - 1
    labels = torch.arange(count) % len(CLASSES)
    return Batch(images.to(dtype), rng.keys(2, count), rng.keys(3, count), seen, labels)


def part(whole: Batch, places: slice) -> Batch:
    """Some of the images of a batch, as another rank would see them."""
    assert whole.labels is not None
    keys, record_keys = whole.keys[places], whole.record_keys[places]
    return Batch(whole.images[places], keys, record_keys, whole.seen, whole.labels[places])
