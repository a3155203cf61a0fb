"""Terms of losses that several methods share: likelihoods, priors, adversaries, quantisers."""
