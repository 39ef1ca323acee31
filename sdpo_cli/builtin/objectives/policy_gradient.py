"""DDPO and GRPO: PPO's clipped policy gradient on denoising steps. They differ in what a reward is compared with."""

from dataclasses import replace

from sdpo_cli.api.tensors import LearningPlan, LossBatch, ObjectiveResult
from sdpo_cli.builtin.objectives.options import DdpoOptions, GrpoOptions
from sdpo_cli.builtin.objectives.terminal import TERMINAL, prompt_statistics
from sdpo_cli.maths import clipped_policy_loss


class PolicyGradient:
    """L = mean max(-A r, -A r_clipped), r = exp(log_prob_new - log_prob_old).

    Metrics: `clip_fraction`, how often the clipped term decided, and `ratio_distance`, the mean of |r - 1|.
    """

    def __init__(self, plan: LearningPlan, clip: float | None) -> None:
        self.plan, self.clip = plan, clip

    def loss(self, batch: LossBatch) -> ObjectiveResult:
        """The mean loss of R rollouts of B prompts, each at its own step."""
        loss, clipped = clipped_policy_loss(batch.log_prob_new, batch.log_prob_old, batch.advantage, self.clip)
        moved = (batch.log_prob_new.detach() - batch.log_prob_old).expm1().abs()
        return ObjectiveResult(loss.mean(), {"clip_fraction": clipped.mean(), "ratio_distance": moved.mean()})


class Ddpo(PolicyGradient):
    """A is the reward less the mean of its prompt's latest ones, over their standard deviation.

    Source: arXiv 2305.13301 (DDPO_IS) and its published code, kvablack/ddpo-pytorch.
    """

    def __init__(self, options: DdpoOptions) -> None:
        plan = replace(
            TERMINAL,
            rollouts=options.rollouts,
            shared_noise=False,
            updates=options.updates,
            **prompt_statistics(options),
        )
        super().__init__(plan, options.clip or None)


class Grpo(PolicyGradient):
    """A is the reward less the mean of its group, over the group's standard deviation.

    Source: arXiv 2505.05470v5, eq. 4 and 5; a group that shares its first noise is that of arXiv 2505.07818.
    """

    def __init__(self, options: GrpoOptions) -> None:
        plan = replace(
            TERMINAL,
            rollouts=options.group,
            shared_noise=options.shared_noise,
            advantage="group",
            advantage_clip=options.advantage_clip,
            updates=options.updates,
        )
        super().__init__(plan, options.clip or None)
