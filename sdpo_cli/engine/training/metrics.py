"""What is logged of an epoch."""

from collections.abc import Mapping
from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.engine.learning.credit import Credited, KeyRewards
from sdpo_cli.engine.learning.rollout import Rollouts, first_rewarded_step
from sdpo_cli.engine.setup import Setup
from sdpo_cli.engine.training.checkpoint import Progress
from sdpo_cli.maths import mean_unlikeness


def epoch_metrics(
    progress: Progress,
    rollouts: Rollouts,
    scored: KeyRewards,
    credited: Credited,
    setup: Setup,
    learnt: Mapping[str, float],
) -> dict[str, int | float]:
    """One line of `metrics.jsonl`; rewards are means over the epoch's rollouts."""
    advantages = torch.stack([credited.advantage[..., step] for step in setup.actions], dim=-1)
    numbers = {
        "reward_first": credited.dense[..., first_rewarded_step(setup.objective.plan)].mean(),
        "reward_last": scored.reward[..., scored.last].mean(),
        **{f"reward/{name}": values[..., scored.last].mean() for name, values in scored.values.items()},
        "advantage_std": advantages.std(correction=0),
        **latent_diversity(rollouts),
    }
    fetched = torch.stack(list(numbers.values())).tolist()  # one wait for the device
    return {**asdict(progress), **dict(zip(numbers, fetched, strict=True)), **learnt}


def latent_diversity(rollouts: Rollouts) -> dict[str, Float[Tensor, ""]]:
    """How unlike the last clean estimates of a prompt's rollouts are; no number for single rollouts."""
    last = rollouts.x0[:, :, -1].flatten(2).transpose(0, 1)
    return {"latent_diversity": mean_unlikeness(last).mean()} if last.shape[1] > 1 else {}
