"""The losses of SDPO and of the methods it is compared with, as functions of log-probabilities and advantages.

Log-probabilities are means over latent elements, so ranges and β are in nats per element. ρ = log_prob_new -
log_prob_old; Δ is the first rollout less the second.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PairLoss:
    """Per pair [B]: the loss, the unclipped difference of log-ratios, and whether the clipped term decided."""

    loss: Float[Tensor, " B"]
    ratio_difference: Float[Tensor, " B"]
    clipped: Float[Tensor, " B"]


def importance_weight(step: Int[Tensor, "*batch"], decay: float, eta_scale: float = 1.0) -> Float[Tensor, "*batch"]:
    """Temporal importance weight w(i) = λ^i / η_scale: step 0, the noisiest, weighs most. Source: arXiv 2411.11727."""
    return decay ** step.float() / eta_scale


def reward_difference_loss(
    log_prob_new: Float[Tensor, "2 B *actions"],
    log_prob_old: Float[Tensor, "2 B *actions"],
    advantage: Float[Tensor, "2 B"],
    weight: Float[Tensor, " B"],
    clip: float | None,
) -> PairLoss:
    """L = max((w Δρ - ΔA)², (w Δρ_clipped - ΔA)²); with an axis of actions, Δρ is summed over it.

    ρ is clipped to ±clip in each rollout and action before the difference; `clip` None leaves it free.
    Source: arXiv 2411.11727 and its published code for single actions; PRDP, arXiv 2402.08714v2, eq. 18 and 20, for
    whole trajectories.
    """
    ratio = log_prob_new - log_prob_old
    difference, wanted = pair_difference(ratio), advantage[0] - advantage[1]
    free = (weight * difference - wanted) ** 2
    if clip is None:
        return PairLoss(free, difference.detach(), free.new_zeros(free.shape))
    clipped = (weight * pair_difference(ratio.clamp(-clip, clip)) - wanted) ** 2
    return PairLoss(free.maximum(clipped), difference.detach(), (clipped > free).float())


def pair_difference(ratio: Float[Tensor, "2 B *actions"]) -> Float[Tensor, " B"]:
    """Δρ of each pair, summed over the actions where there are several."""
    return (ratio[0] - ratio[1]).flatten(1).sum(1) if ratio.ndim > 2 else ratio[0] - ratio[1]


def clipped_policy_loss(
    log_prob_new: Float[Tensor, "R B"],
    log_prob_old: Float[Tensor, "R B"],
    advantage: Float[Tensor, "R B"],
    clip: float | None,
) -> tuple[Float[Tensor, "R B"], Float[Tensor, "R B"]]:
    """L = max(-A r, -A r_clipped), r = exp ρ, clipped to 1 ± clip; and whether the clipped term decided.

    Source: PPO, arXiv 1707.06347, eq. 7; on denoising steps DDPO, arXiv 2305.13301, as in its code
    (kvablack/ddpo-pytorch `train.py`).
    """
    ratio = (log_prob_new - log_prob_old).exp()
    free = -advantage * ratio
    if clip is None:
        return free, free.new_zeros(free.shape)
    clipped = -advantage * ratio.clamp(1 - clip, 1 + clip)
    return free.maximum(clipped), (clipped > free).float()


def preference_loss(
    log_prob_new: Float[Tensor, "2 B"],
    log_prob_reference: Float[Tensor, "2 B"],
    advantage: Float[Tensor, "2 B"],
    beta: float,
) -> Float[Tensor, " B"]:
    """L = -log σ(β (ratio_winner - ratio_loser)), ratio = log_prob_new - log_prob_reference; 0 for a pair of equals.

    The winner has the higher advantage.
    Source: D3PO, arXiv 2311.13231v3, eq. 14.
    """
    margin = pair_difference(log_prob_new - log_prob_reference)
    better = (advantage[0] - advantage[1]).sign()
    return -logsigmoid(beta * better * margin) * better.abs()
