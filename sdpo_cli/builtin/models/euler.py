"""The noise schedule of Euler and Euler-ancestral sampling, read from a diffusers scheduler's own tables."""

import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from sdpo_cli.maths import Schedule


def euler_schedule(scheduler: EulerDiscreteScheduler | EulerAncestralDiscreteScheduler, steps: int) -> Schedule:
    """The S levels of `scheduler`, whose states are x0 + s ε, as α x0 + σ ε with α = 1 / √(1 + s²), σ = s α.

    Between these levels an Euler step is the ddim transition with η 0, an ancestral one with η 1. The last state
    is given as the scheduler gives it, α 1; the floor is the least noisy level that the network was trained on.
    Source: arXiv 2206.00364, algorithm 1; k-diffusion's `sample_euler_ancestral`; diffusers
    `schedulers/scheduling_euler_discrete.py`.
    """
    own = type(scheduler).from_config(scheduler.config)
    own.set_timesteps(steps)
    noise = own.sigmas.double()
    alpha = (1 + noise**2).rsqrt()
    alpha[-1] = 1
    lowest = own.alphas_cumprod[0].double()
    floor = (float(lowest.sqrt()), float((1 - lowest).sqrt()))
    sigma = noise * alpha
    return Schedule(
        timestep=own.timesteps.double(),
        alpha=alpha[:-1],
        sigma=sigma[:-1],
        alpha_next=alpha[1:],
        sigma_next=sigma[1:],
        floor=floor if float(sigma[-2]) > 1.001 * floor[1] else None,  # else the last step is there already
        initial_scale=float(torch.as_tensor(own.init_noise_sigma) * alpha[0]),
    )
