"""Reward difference learning. Source: arXiv 2411.11727 and its published code."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SdpoLoss:
    """Per pair [B]: the loss, the unclipped difference of log-ratios, and whether the clipped term decided."""

    loss: Float[Tensor, " B"]
    ratio_difference: Float[Tensor, " B"]
    clipped: Float[Tensor, " B"]


def importance_weight(step: Int[Tensor, "*batch"], decay: float, eta_scale: float = 1.0) -> Float[Tensor, "*batch"]:
    """Temporal importance weight w(i) = λ^i / η_scale: step 0, the noisiest, weighs most."""
    return decay ** step.float() / eta_scale


def reward_difference_loss(
    log_prob_new: Float[Tensor, "2 B"],
    log_prob_old: Float[Tensor, "2 B"],
    advantage: Float[Tensor, "2 B"],
    weight: Float[Tensor, " B"],
    clip: float | None,
) -> SdpoLoss:
    """L = max((w Δρ - ΔA)², (w Δρ_clipped - ΔA)²), ρ = log_prob_new - log_prob_old, Δ = first rollout - second.

    ρ is clipped to ±clip in each rollout before the difference; `clip` None leaves it free. Log-probabilities are
    means over latent elements, so `clip` is in nats per element.
    """
    ratio = log_prob_new - log_prob_old
    advantage_difference = advantage[0] - advantage[1]
    free = (weight * (ratio[0] - ratio[1]) - advantage_difference) ** 2
    if clip is None:
        return SdpoLoss(free, (ratio[0] - ratio[1]).detach(), free.new_zeros(free.shape))
    held = ratio.clamp(-clip, clip)
    clipped = (weight * (held[0] - held[1]) - advantage_difference) ** 2
    loss = free.maximum(clipped)
    return SdpoLoss(loss, (ratio[0] - ratio[1]).detach(), (clipped > free).float())
