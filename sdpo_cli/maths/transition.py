"""One transition for every family: from the clean estimate to the next, less noisy state, with its density.

Every model here has x_t = α_t x0 + σ_t ε (diffusion: α² + σ² = 1; flow matching: α = 1 - t, σ = t). A step to level s:

    x_s = α_s x0 + m ε̂ + std z,    ε̂ = (x_t - α_t x0) / σ_t,    z ~ N(0, 1)

Transitions differ in `std` alone, and m = √(σ_s² - std²) keeps the level's noise; only `sde` takes m to first order.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdpo_cli.errors import UsageError

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class Schedule:
    """The noise levels of S steps, the noisiest first. All tensors float64 [S].

    Attributes:
        timestep: what the network is told; a whole number in some families, any real number in others.
        alpha, sigma: level a step starts from.
        alpha_next, sigma_next: level it goes to. Not always the next step's start: DDIM goes to t - 1000 // S.
        floor: (α, σ) of the least noisy level that still has noise, where the family has one; a training rollout
            ends there, see `with_floor`.
        initial_scale: factor of the unit noise that sampling starts from; some schedulers start at σ, not at 1.
    """

    timestep: Float[Tensor, " S"]
    alpha: Float[Tensor, " S"]
    sigma: Float[Tensor, " S"]
    alpha_next: Float[Tensor, " S"]
    sigma_next: Float[Tensor, " S"]
    floor: tuple[float, float] | None = None
    initial_scale: float = 1.0

    def __len__(self) -> int:
        return len(self.timestep)


@dataclass(frozen=True)
class Kernel:
    """The Gaussian of every step: mean = `mean_x0` x0 + `mean_eps` ε̂, and `std`.

    All tensors are float32, of shape [S], or of any other once `at` has picked rows.

    Where `std` is 0 the step is deterministic: it has no density and can carry no policy gradient.
    """

    timestep: Float[Tensor, "*rows"]
    alpha: Float[Tensor, "*rows"]
    sigma: Float[Tensor, "*rows"]
    mean_x0: Float[Tensor, "*rows"]
    mean_eps: Float[Tensor, "*rows"]
    std: Float[Tensor, "*rows"]
    initial_scale: float = 1.0

    def __len__(self) -> int:
        return len(self.timestep)

    def at(self, step: Int[Tensor, "*batch"]) -> "Kernel":
        """The rows of the given steps: every table becomes [*batch]."""
        return replace(self, **{name: getattr(self, name)[step] for name in TABLES})

    def to(self, device: torch.device) -> "Kernel":
        """The same tables on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TABLES})


TABLES = ("timestep", "alpha", "sigma", "mean_x0", "mean_eps", "std")


def with_floor(schedule: Schedule) -> Schedule:
    """The schedule whose last step ends at the floor instead of at a clean picture, so that it has a density.

    Unchanged when the family has no floor or the last level is noisy already.
    Source: the published DDIM step clamps the last previous timestep to 0, so it ends at alphas_cumprod[0].
    """
    if schedule.floor is None or schedule.sigma_next[-1] > 0:
        return schedule
    alpha_next, sigma_next = schedule.alpha_next.clone(), schedule.sigma_next.clone()
    alpha_next[-1], sigma_next[-1] = schedule.floor
    return replace(schedule, alpha_next=alpha_next, sigma_next=sigma_next)


def ddim_std(schedule: Schedule, eta: float) -> Float[Tensor, " S"]:
    """DDIM: std = η σ_s √(1 - (α_t σ_s / (α_s σ_t))²). η 0 is deterministic, η 1 the posterior of DDPM.

    Where α² + σ² = 1 this is the usual η (σ_s / σ_t) √(1 - α_t² / α_s²); it holds for flow matching too.
    Source: arXiv 2010.02502, eq. 16.
    """
    ratio = (schedule.alpha * schedule.sigma_next / (schedule.alpha_next * schedule.sigma)) ** 2
    return eta * schedule.sigma_next * (1 - ratio).clamp(min=0).sqrt()


def renoise_std(schedule: Schedule, eta: float) -> Float[Tensor, " S"]:
    """Consistency models: predict the clean picture, noise it again. std = σ_s, whatever η.

    Source: arXiv 2303.01469, algorithm 1; LCM, arXiv 2310.04378.
    """
    return schedule.sigma_next.clone()


def cps_std(schedule: Schedule, eta: float) -> Float[Tensor, " S"]:
    """Coefficient-preserving sampling: std = σ_s sin(η π / 2). η 0 is deterministic, η 1 equals `renoise`.

    Source: arXiv 2509.05952.
    """
    return schedule.sigma_next * math.sin(eta * math.pi / 2)


def sde_std(schedule: Schedule, eta: float) -> Float[Tensor, " S"]:
    """The SDE of Flow-GRPO, taken by Euler and Maruyama: std = g √Δ, g = η √(t / (1 - t)), Δ = t - s, t = σ_t.

    For flow matching alone (α = 1 - σ). At t = 1, where g has no end, 1 - t is that of the next level, as published.
    Source: arXiv 2505.05470v5, eq. 9; its code, yifan123/flow_grpo `sd3_sde_with_logprob.py`.
    """
    if not torch.allclose(schedule.alpha + schedule.sigma, torch.ones_like(schedule.sigma)):
        raise UsageError(
            "sde needs a flow-matching model",
            place="rollout.transition",
            remedy="use ddim, renoise or cps with this one",
        )
    alpha = torch.where(schedule.alpha > 0, schedule.alpha, schedule.alpha_next)
    return eta * (schedule.sigma / alpha * (schedule.sigma - schedule.sigma_next)).sqrt()


def kept_noise(schedule: Schedule, std: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
    """The share of ε̂ that leaves the next state with noise of variance σ_s² in all: √(σ_s² - std²)."""
    return (schedule.sigma_next**2 - std**2).clamp(min=0).sqrt()


def sde_noise(schedule: Schedule, std: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
    """The same to first order in the step, as Euler and Maruyama have it: s - g² Δ / (2 t) = σ_s - std² / (2 σ_t).

    Below 0 where steps are few and η is large.
    Source: arXiv 2505.05470v5, eq. 9, with the velocity written as ε̂ - x0.
    """
    return schedule.sigma_next - std**2 / (2 * schedule.sigma)


TRANSITIONS: dict[str, tuple[Callable[[Schedule, float], Tensor], Callable[[Schedule, Tensor], Tensor]]] = {
    "ddim": (ddim_std, kept_noise),
    "renoise": (renoise_std, kept_noise),
    "cps": (cps_std, kept_noise),
    "sde": (sde_std, sde_noise),
}
"""By name: the std of every step, and its share of ε̂ in the mean."""


def kernel_for(schedule: Schedule, transition: str, eta: float) -> Kernel:
    """The Gaussians of all steps of `schedule` under a transition of `TRANSITIONS` with η in 0..1.

    Computed in the schedule's float64, given in float32. UsageError where the schedule is not the transition's.
    """
    std_of, mean_eps_of = TRANSITIONS[transition]
    std = std_of(schedule, eta)
    return Kernel(
        timestep=schedule.timestep.float(),
        alpha=schedule.alpha.float(),
        sigma=schedule.sigma.float(),
        mean_x0=schedule.alpha_next.float(),
        mean_eps=mean_eps_of(schedule, std).float(),
        std=std.float(),
        initial_scale=schedule.initial_scale,
    )


def model_output_to_x0(
    output: Float[Tensor, "*batch C H W"],
    x_t: Float[Tensor, "*batch C H W"],
    alpha: Float[Tensor, "*batch"],
    sigma: Float[Tensor, "*batch"],
    prediction: Prediction,
) -> Float[Tensor, "*batch C H W"]:
    """The clean estimate from the network's output.

    epsilon: x0 = (x_t - σ ε) / α;  v_prediction: x0 = α x_t - σ v;  sample: x0 is the output.
    Source: arXiv 2202.00512, appendix D.
    """
    alpha, sigma = alpha[..., None, None, None], sigma[..., None, None, None]
    if prediction == "epsilon":
        return (x_t - sigma * output) / alpha
    if prediction == "v_prediction":
        return alpha * x_t - sigma * output
    return output


def step_mean(
    x_t: Float[Tensor, "*batch C H W"], x0: Float[Tensor, "*batch C H W"], kernel: Kernel
) -> Float[Tensor, "*batch C H W"]:
    """Mean of the next state: mean_x0 x0 + mean_eps (x_t - α x0) / σ. The kernel's fields are [*batch]."""
    alpha, sigma, mean_x0, mean_eps = (
        table[..., None, None, None] for table in (kernel.alpha, kernel.sigma, kernel.mean_x0, kernel.mean_eps)
    )
    return mean_x0 * x0 + mean_eps * (x_t - alpha * x0) / sigma


def gaussian_log_prob(
    x: Float[Tensor, "*batch C H W"], mean: Float[Tensor, "*batch C H W"], std: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Mean over latent elements of log N(x; mean, std²), in nats per element. `std` must be above 0.

    Source: the published code takes the mean, not the sum: a clip range means the same at every picture size.
    """
    spread = std[..., None, None, None]
    log_density = -((x - mean) ** 2) / (2 * spread**2) - spread.log() - 0.5 * math.log(2 * math.pi)
    return log_density.mean(dim=(-3, -2, -1))


def gaussian_kl(
    mean: Float[Tensor, "*batch C H W"], other: Float[Tensor, "*batch C H W"], std: Float[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Mean over latent elements of KL(N(mean, std²) ‖ N(other, std²)) = (mean - other)² / (2 std²), nats per element.

    Source: Flow-GRPO, arXiv 2505.05470v5, the closed form after eq. 9.
    """
    return ((mean - other) ** 2).mean(dim=(-3, -2, -1)) / (2 * std**2)
