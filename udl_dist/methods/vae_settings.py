"""The settings of the variational autoencoder, and those of them that contradict each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from udl_dist.core.config_schema import setting
from udl_dist.errors import UsageError
from udl_dist.methods.networks import NetworkSettings

LATENTS, PSEUDO_INPUTS = 5, 500  # of IWAE and of VampPrior, where the settings name none


@dataclass(frozen=True)
class VAESettings:
    """Settings of the networks, the likelihood, the objective and the prior."""

    latent_dim: int = setting(32, "dimensions of the latent", low=1)
    network: NetworkSettings = setting(NetworkSettings, "the encoder; the decoder mirrors it")
    likelihood: Literal["bernoulli", "gaussian", "logistic"] = setting(
        "gaussian",
        "the distribution of a pixel given the latent; logistic: a mixture of 10 logistics over 256"
        " levels, in which green depends on red, and blue on both (Salimans et al. 2017)",
    )
    binarise: Literal["none", "static", "epoch"] = setting(
        "none",
        "bernoulli: pixels are drawn black or white, once for all epochs or again in each; none"
        " leaves them grey",
    )
    variance: Literal["fixed", "learned"] = setting(
        "learned", "gaussian: whether `sigma` is learned, one for all pixels"
    )
    sigma: float = setting(
        0.5, "gaussian: std of a pixel in [-1, 1], or where a learned one starts", above=0
    )
    objective: Literal["elbo", "iwae"] = setting(
        "elbo",
        "what is maximised: the bound of one latent, or the tighter one of several, the log of"
        " their mean weight (Burda et al. 2016)",
    )
    samples: int = setting(LATENTS, "iwae: latents of each image", low=1)
    prior: Literal["normal", "vamp"] = setting(
        "normal",
        "of latents: N(0, 1), or the mean of q(z|u) over images u that are learned (Tomczak &"
        " Welling 2018)",
    )
    pseudo_inputs: int = setting(
        PSEUDO_INPUTS, "vamp: images u, each of which is encoded in every step", low=1
    )
    beta: float = setting(1.0, "weight of the KL (Higgins et al. 2017)", low=0)
    warmup_images: int = setting(
        0, "images over which the weight of the KL grows from 0 to beta", low=0
    )
    conditional: bool = setting(
        False, "images are made for a class: the decoder gets an embedding next to the latent"
    )
    free_bits: float = setting(
        0.0, "nats of KL of each latent dimension of an image that cost nothing", low=0
    )


# A setting that would be ignored is refused.
def refuse_contradictions(settings: VAESettings) -> None:
    """Raise UsageError for settings that have no meaning together with others."""
    likelihood = settings.likelihood
    # The defaults, and those of former releases, which their run folders spell out.
    usual = (("learned", 0.5), ("fixed", 1.0))
    if likelihood != "gaussian" and (settings.variance, settings.sigma) not in usual:
        raise UsageError(
            f"method.variance and method.sigma have no meaning when method.likelihood is"
            f" {likelihood}"
        )
    if likelihood != "bernoulli" and settings.binarise != "none":
        raise UsageError(f"method.binarise has no meaning when method.likelihood is {likelihood}")
    if settings.warmup_images and not settings.beta:
        raise UsageError("method.warmup_images has no meaning when method.beta is 0")
    _refuse_of_objective(settings)
    _refuse_of_prior(settings)


def _refuse_of_objective(settings: VAESettings) -> None:
    if settings.objective == "elbo":
        if settings.samples != LATENTS:
            raise UsageError(
                "method.samples has no meaning when method.objective is elbo: set it to iwae"
            )
        return
    # The bound is the log of a mean of weights: it has no term that is the KL.
    weighted = {"beta": 1.0, "warmup_images": 0, "free_bits": 0.0}
    for name, usual in weighted.items():
        if getattr(settings, name) != usual:
            raise UsageError(
                f"method.{name} has no meaning when method.objective is iwae: the bound of several"
                " latents has no KL to weigh"
            )


def _refuse_of_prior(settings: VAESettings) -> None:
    if settings.prior == "normal":
        if settings.pseudo_inputs != PSEUDO_INPUTS:
            raise UsageError(
                "method.pseudo_inputs has no meaning when method.prior is normal: set it to vamp"
            )
        return
    if settings.free_bits:
        raise UsageError(
            "method.free_bits has no meaning when method.prior is vamp: the KL from a mixture is"
            " not a sum over dimensions"
        )
    if settings.network.norm == "batch":
        raise UsageError(
            "method.network.norm = batch does not suit method.prior = vamp: running statistics"
            " would mix images with pseudo-inputs; take group or none"
        )
