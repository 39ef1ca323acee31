"""The noise schedule of DDIM, read from a diffusers scheduler's own tables."""

import torch
from diffusers import DDIMScheduler

from sdpo_cli.maths import Schedule


def ddim_schedule(scheduler: DDIMScheduler, steps: int) -> Schedule:
    """The S levels that `scheduler` visits, as diffusers' DDIMScheduler does: from t to t - train_steps // S.

    A step below timestep 0 goes to the scheduler's final level: clean where `set_alpha_to_one`, else
    alphas_cumprod[0], which is also the floor. The scheduler itself is left as it was.
    Source: arXiv 2010.02502; diffusers `schedulers/scheduling_ddim.py`.
    """
    own = DDIMScheduler.from_config(scheduler.config)
    own.set_timesteps(steps)
    cumprod = own.alphas_cumprod.double()
    timestep = own.timesteps.long()
    previous = timestep - own.config.num_train_timesteps // steps
    next_cumprod = torch.where(previous >= 0, cumprod[previous.clamp(min=0)], own.final_alpha_cumprod.double())
    return Schedule(
        timestep=timestep.double(),
        alpha=cumprod[timestep].sqrt(),
        sigma=(1 - cumprod[timestep]).sqrt(),
        alpha_next=next_cumprod.sqrt(),
        sigma_next=(1 - next_cumprod).sqrt(),
        floor=(float(cumprod[0].sqrt()), float((1 - cumprod[0]).sqrt())),
    )
