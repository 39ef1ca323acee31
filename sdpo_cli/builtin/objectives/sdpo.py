"""Stepwise Diffusion Policy Optimization: reward difference learning on pairs of rollouts."""

from sdpo_cli.api.tensors import LearningPlan, LossBatch, ObjectiveResult
from sdpo_cli.builtin.objectives.options import SdpoOptions
from sdpo_cli.maths import importance_weight, reward_difference_loss


class Sdpo:
    """L = mean max((w Δρ - ΔA)², (w Δρ_clipped - ΔA)²) over pairs of rollouts that share their first noise.

    ρ = log_prob_new - log_prob_old, Δ = first rollout - second, w(i) = λ^i / η_scale at step i; see
    `sdpo_cli.maths.reward_difference_loss`. Metrics: `clip_fraction`, how often the clipped term decided, and
    `ratio_difference`, the mean of |Δρ| in nats per latent element.
    Source: arXiv 2411.11727 and its published code.
    Differs: antithetic noise, credit `next`, anchor `middle` and predictor `arc` by default; in the published code the
    noise is independent, the credit `current`, the anchor `any` and the predictor `cosine`.
    """

    def __init__(self, options: SdpoOptions) -> None:
        self.options = options
        self.plan = LearningPlan(
            rollouts=2,
            shared_noise=True,
            antithetic=options.antithetic,
            branched=options.branched,
            dense=options.dense.mode,
            anchor=options.dense.anchor,
            predictor=options.dense.predictor,
            credit=options.credit,
            gamma=options.gamma,
            statistics_size=options.statistics.size,
            statistics_min_count=options.statistics.min_count,
            advantage_clip=options.advantage_clip,
            updates=options.updates,
        )

    def loss(self, batch: LossBatch) -> ObjectiveResult:
        """The mean loss of B pairs, each at its own step."""
        weight = importance_weight(batch.step, self.options.decay, self.options.eta_scale)
        pairs = reward_difference_loss(
            batch.log_prob_new, batch.log_prob_old, batch.advantage, weight, self.options.clip or None
        )
        metrics = {"clip_fraction": pairs.clipped.mean(), "ratio_difference": pairs.ratio_difference.abs().mean()}
        return ObjectiveResult(pairs.loss.mean(), metrics)
