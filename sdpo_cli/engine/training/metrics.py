"""What is logged of an epoch."""

from collections.abc import Mapping
from dataclasses import asdict

from sdpo_cli.api.tensors import LearningPlan
from sdpo_cli.engine.learning.credit import Credited, KeyRewards
from sdpo_cli.engine.learning.rollout import Rollouts, action_steps, first_rewarded_step
from sdpo_cli.engine.training.checkpoint import Progress
from sdpo_cli.maths import mean_unlikeness


def epoch_metrics(
    progress: Progress,
    rollouts: Rollouts,
    scored: KeyRewards,
    credited: Credited,
    plan: LearningPlan,
    learnt: Mapping[str, float],
) -> dict[str, int | float]:
    """One line of `metrics.jsonl`; rewards are means over the epoch's rollouts."""
    actions = action_steps(rollouts.kernel, plan)
    return {
        **asdict(progress),
        "reward_first": float(credited.dense[..., first_rewarded_step(plan)].mean()),
        "reward_last": float(scored.reward[..., scored.last].mean()),
        **{f"reward/{name}": float(values[..., scored.last].mean()) for name, values in scored.values.items()},
        "advantage_std": float(credited.advantage[..., actions].std(correction=0)),
        **latent_diversity(rollouts),
        **learnt,
    }


def latent_diversity(rollouts: Rollouts) -> dict[str, float]:
    """How unlike the last clean estimates of a prompt's rollouts are; no number for single rollouts."""
    last = rollouts.x0[:, :, -1].flatten(2).transpose(0, 1)
    return {"latent_diversity": float(mean_unlikeness(last).mean())} if last.shape[1] > 1 else {}
