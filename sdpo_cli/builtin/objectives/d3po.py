"""D3PO: direct preference optimisation, step by step."""

from dataclasses import replace

from sdpo_cli.api.tensors import LossBatch, ObjectiveResult
from sdpo_cli.builtin.objectives.options import D3poOptions
from sdpo_cli.builtin.objectives.terminal import TERMINAL, prompt_statistics
from sdpo_cli.maths import preference_loss


class D3po:
    """L = mean -log σ(β (ratio_winner - ratio_loser)) over pairs at a step, ratio = log_prob_new - log_prob_reference.

    The rollout whose last picture has the higher reward wins. Metric: `preferred`, the share of pairs whose winner has
    the higher ratio already.
    Source: arXiv 2311.13231v3, eq. 14; both segments start from one noise, as there.
    Differs: the published code also clamps π/π_reference to 1 ± 0.1, beyond which a pair teaches nothing.
    """

    def __init__(self, options: D3poOptions) -> None:
        self.beta = options.beta
        self.plan = replace(TERMINAL, reference=True, antithetic=options.antithetic, **prompt_statistics(options))

    def loss(self, batch: LossBatch) -> ObjectiveResult:
        """The mean loss of B pairs, each at its own step."""
        assert batch.log_prob_reference is not None
        loss = preference_loss(batch.log_prob_new, batch.log_prob_reference, batch.advantage, self.beta)
        ratio = (batch.log_prob_new - batch.log_prob_reference).detach()
        right = (ratio[0] - ratio[1]) * (batch.advantage[0] - batch.advantage[1]) > 0
        return ObjectiveResult(loss.mean(), {"preferred": right.float().mean()})
