"""From dense rewards to stepwise advantages. Source: arXiv 2411.11727; the per-prompt statistics are DDPO's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Credit = Literal["current", "next", "gain", "trajectory"]


def align_credit(reward: Float[Tensor, "*batch S"], credit: Credit) -> Float[Tensor, "*batch S"]:
    """Which clean estimate's reward action i is credited with.

    `current`: r(i) = R(i), of the x0 computed from x_i, before action i's noise is drawn.
    `next`: r(i) = R(i + 1), of the x0 that action i leads to; the last action leads to none and gets 0.
    `gain`: r(i) = R(i + 1) - R(i), by how much action i changes it; with γ 1 the return is R(S - 1) - R(i). What
    earlier actions did is not in it. r(0) = R(1): R(0) is never asked for, since rollouts that share their first state
    have it in common; it stays in the deviation by which step 0's advantages are divided.
    `trajectory`: as `next`; the returns differ, see `credited_returns`.
    Source: the published code is `current`, though action i cannot change R(i); reward gains as dense rewards are
    DenseGRPO's, arXiv 2601.20218, there of estimates found by solving the ODE on, in groups and without γ.
    """
    if credit == "current":
        return reward
    before = torch.zeros_like(reward)
    if credit == "gain":
        before[..., 1:] = reward[..., 1:]
    return torch.cat([reward[..., 1:] - before[..., :-1], torch.zeros_like(reward[..., :1])], dim=-1)


def discounted_returns(reward: Float[Tensor, "*batch S"], gamma: float) -> Float[Tensor, "*batch S"]:
    """G(i) = r(i) + γ G(i + 1), γ in 0..1; the last step's return is its own reward."""
    returns = reward.clone()
    for i in reversed(range(reward.shape[-1] - 1)):
        returns[..., i] += gamma * returns[..., i + 1]
    return returns


def credited_returns(reward: Float[Tensor, "*batch S"], credit: Credit, gamma: float) -> Float[Tensor, "*batch S"]:
    """The discounted returns of the actions; with `trajectory` all have the first one's, as without stepwise credit."""
    returns = discounted_returns(align_credit(reward, credit), gamma)
    return returns[..., :1].expand_as(returns) if credit == "trajectory" else returns


@dataclass(frozen=True)
class StepStatistics:
    """The latest returns of each prompt, from which mean and standard deviation of each of its steps are taken.

    Attributes:
        size: how many returns are kept per prompt, first in, first out.
        min_count: until a prompt has so many, the batch's mean and standard deviation stand in.
        returns: prompt -> [n, S], n <= size, the newest last.
    """

    size: int = 32
    min_count: int = 16
    returns: Mapping[str, Float[Tensor, "n S"]] = field(default_factory=dict)


def stepwise_advantages(
    statistics: StepStatistics, prompts: Sequence[str], returns: Float[Tensor, "N S"]
) -> tuple[Float[Tensor, "N S"], StepStatistics]:
    """A(i) = (G(i) - mean) / (std + 1e-6), mean and std per (prompt, step), and the statistics after these returns.

    The new returns are counted before the mean is taken. std is the population's.
    Source: the published code's `PerPromptStatTracker` (from DDPO), one statistic for each step.
    """
    kept = dict(statistics.returns)
    advantages = torch.empty_like(returns)
    for prompt in dict.fromkeys(prompts):
        rows = torch.tensor([i for i, other in enumerate(prompts) if other == prompt], device=returns.device)
        history = kept.get(prompt, returns[:0])
        kept[prompt] = torch.cat([history, returns[rows]])[-statistics.size :]
        known = kept[prompt] if len(kept[prompt]) >= statistics.min_count else returns
        std = known.std(dim=0, correction=0) + 1e-6
        advantages[rows] = (returns[rows] - known.mean(dim=0)) / std
    return advantages, StepStatistics(statistics.size, statistics.min_count, kept)


def group_advantages(returns: Float[Tensor, "R B S"]) -> Float[Tensor, "R B S"]:
    """A = (G - mean) / (std + 1e-6), mean and std (the population's) over the R rollouts of a prompt.

    Source: GRPO, arXiv 2402.03300; for pictures Flow-GRPO, arXiv 2505.05470v5, eq. 4.
    """
    std = returns.std(dim=0, correction=0) + 1e-6
    return (returns - returns.mean(dim=0)) / std


def clip_advantages(advantage: Float[Tensor, "*batch S"], limit: float) -> Float[Tensor, "*batch S"]:
    """Advantages held to -limit..limit (standard deviations; the published limit is 5)."""
    return advantage.clamp(-limit, limit)
