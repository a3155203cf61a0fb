"""How many of eight Gaussians on a ring a GAN of dense layers covers, by loss and penalties.

    python -m tests.bench.ring --steps 3000 --seeds 0,1,2

For each loss, without and with R1 and R2: of 2,500 points drawn, the modes with 20 or more within
three standard deviations, and the share of points near any mode (Srivastava et al. 2017).
"""

import argparse
import json
import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from udl_dist.methods.losses import gan_losses

MODES, RADIUS, SD = 8, 2.0, 0.05
LATENT, WIDTH, BATCH = 16, 128, 256
GAMMA = 0.02
POINTS, LEAST = 2500, 20


def centres() -> Tensor:  # -> [8, 2]
    angles = torch.arange(MODES) * 2 * math.pi / MODES
    return RADIUS * torch.stack([angles.cos(), angles.sin()], 1)


def ring(count: int) -> Tensor:  # -> [count, 2]
    return centres()[torch.randint(MODES, (count,))] + SD * torch.randn(count, 2)


def dense(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH),
        nn.LeakyReLU(0.2),
        nn.Linear(WIDTH, WIDTH),
        nn.LeakyReLU(0.2),
        nn.Linear(WIDTH, outputs),
    )


def trained(loss: Any, weights: dict[str, float], steps: int, seed: int) -> nn.Sequential:
    """A generator after so many steps of both sides."""
    torch.manual_seed(seed)
    game = gan_losses.LOSSES[loss]
    generator, discriminator = dense(LATENT, 2), dense(2, 1)
    movers = [
        torch.optim.Adam(network.parameters(), 1e-3, (0.0, 0.9), fused=True)
        for network in (discriminator, generator)
    ]
    for _ in range(steps):
        points = {"real": ring(BATCH), "fake": generator(torch.randn(BATCH, LATENT)).detach()}
        for place in points.values():
            place.requires_grad_()
        logits = {name: discriminator(place)[:, 0] for name, place in points.items()}
        value = game.discriminator(logits["real"], logits["fake"])
        value = value + sum(gan_losses.penalties(weights, points, logits).values())
        moved(movers[0], value)
        judged = discriminator(generator(torch.randn(BATCH, LATENT)))[:, 0]
        if game.pairs:
            judged = judged - discriminator(points["real"].detach())[:, 0]
        moved(movers[1], game.generator(judged))
    return generator


def moved(mover: torch.optim.Optimizer, value: Tensor) -> None:
    mover.zero_grad()
    torch.autograd.backward(value, inputs=[p for g in mover.param_groups for p in g["params"]])
    mover.step()


@torch.no_grad()
def covered(generator: nn.Sequential) -> tuple[int, float]:
    distances = torch.cdist(generator(torch.randn(POINTS, LATENT)), centres())  # [N, 8]
    near = distances < 3 * SD
    return int((near.sum(0) >= LEAST).sum()), float(near.any(1).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--losses", default=",".join(gan_losses.LOSSES))
    asked = parser.parse_args()
    for loss in asked.losses.split(","):
        for penalised in (True, False):
            # γ/2 of each.
            weights = dict.fromkeys(("r1", "r2"), GAMMA / 2) if penalised else {}
            for seed in map(int, asked.seeds.split(",")):
                began = time.process_time()
                modes, near = covered(trained(loss, weights, asked.steps, seed))
                seconds = time.process_time() - began
                found = {"loss": loss, "r1 and r2": penalised, "seed": seed, "modes": modes}
                print(json.dumps(found | {"near": near, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
