"""PRDP and REBEL: a pair's difference of summed log-ratios is regressed onto its difference of rewards."""

from dataclasses import replace

import torch

from sdpo_cli.api.tensors import LossBatch, ObjectiveResult
from sdpo_cli.builtin.objectives.options import RebelOptions
from sdpo_cli.builtin.objectives.terminal import TERMINAL, prompt_statistics
from sdpo_cli.maths import reward_difference_loss


class TrajectoryDifference:
    """L = mean max((β Σ_i Δρ_i - ΔA)², (β Σ_i Δρ_i,clipped - ΔA)²) over pairs; without `clip` the first term alone.

    Metrics: `clip_fraction` and `ratio_difference`, the mean of |Σ_i Δρ_i|.
    Source: PRDP, arXiv 2402.08714v2, eq. 14 and 18 to 21, times β²; REBEL, arXiv 2404.16767, its regression of relative
    rewards with 1/η as β, and its code for few-step models, Owen-Oertell/rlcm `rebel_training_loop.py`.
    Differs: PRDP's ρ compares with the base model (clipped around the policy that sampled), here with the policy that
    sampled, as REBEL's; PRDP's rewards are standardised by prompt, as REBEL's are, so that β does not depend on their
    unit.
    """

    def __init__(self, options: RebelOptions, clip: float | None) -> None:
        self.beta, self.clip = options.beta, clip
        self.plan = replace(TERMINAL, updates="trajectory", antithetic=options.antithetic, **prompt_statistics(options))

    def loss(self, batch: LossBatch) -> ObjectiveResult:
        """The mean loss of B pairs of trajectories."""
        reward = batch.advantage[..., 0]  # of all actions the same
        weight = torch.full_like(reward[0], self.beta)
        pairs = reward_difference_loss(batch.log_prob_new, batch.log_prob_old, reward, weight, self.clip)
        metrics = {"clip_fraction": pairs.clipped.mean(), "ratio_difference": pairs.ratio_difference.abs().mean()}
        return ObjectiveResult(pairs.loss.mean(), metrics)
