"""The noise schedule and the boundary scalings of latent consistency models."""

from diffusers import LCMScheduler
from jaxtyping import Float
from torch import Tensor, cat, ones

from sdpo_cli.maths import Schedule

SIGMA_DATA = 0.5


def lcm_schedule(scheduler: LCMScheduler, steps: int) -> Schedule:
    """The S levels of `scheduler`: timesteps of its distillation grid, each step going to the next one's level.

    The last step ends at the clean estimate; the floor is the least noisy level of all.
    Source: arXiv 2310.04378, section 4.3; diffusers `schedulers/scheduling_lcm.py`.
    """
    own = LCMScheduler.from_config(scheduler.config)
    own.set_timesteps(steps)
    cumprod = own.alphas_cumprod.double()
    level = cat([cumprod[own.timesteps], ones(1).double()])
    alpha, sigma = level.sqrt(), (1 - level).sqrt()
    return Schedule(
        timestep=own.timesteps.double(),
        alpha=alpha[:-1],
        sigma=sigma[:-1],
        alpha_next=alpha[1:],
        sigma_next=sigma[1:],
        floor=(float(cumprod[0].sqrt()), float((1 - cumprod[0]).sqrt())),
    )


def boundary(
    x0: Float[Tensor, "B C H W"], x_t: Float[Tensor, "B C H W"], timestep: Float[Tensor, " B"], scaling: float
) -> Float[Tensor, "B C H W"]:
    """The consistency function f = c_skip x_t + c_out x0, which is x_t itself at timestep 0.

    c_skip = d² / (u² + d²) and c_out = u / √(u² + d²) with u = `scaling` · timestep and d = 1/2.
    Source: arXiv 2310.04378, appendix C; diffusers `schedulers/scheduling_lcm.py`.
    """
    u = (scaling * timestep)[:, None, None, None]
    total = u**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total * x_t + u / total.sqrt() * x0
