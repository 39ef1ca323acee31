"""Step-shuffled policy updates: S optimiser steps where a trajectory-level method makes one.

Source: arXiv 2411.11727, parts 4 to 6 of SDPO.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdpo_cli.api.tensors import BaseModel, LossBatch, Objective, ObjectiveResult
from sdpo_cli.engine.memory import fitting
from sdpo_cli.engine.randomness import generator, shuffled
from sdpo_cli.engine.rollout import Rollouts, denoise_rollouts, take
from sdpo_cli.errors import TrainingError
from sdpo_cli.maths import gaussian_log_prob, step_mean


@dataclass(frozen=True)
class Update:
    """One optimiser step: which pairs, and which step of each."""

    pairs: Int[Tensor, " N"]
    step: Int[Tensor, " N"]


def plan_updates(rollouts: Rollouts, actions: Sequence[int], *, batch: int, seed: int, epoch: int) -> list[Update]:
    """Every pair goes through its actions in an order of its own; one update a place in that order and a batch."""
    numbers = range(rollouts.draw.first, rollouts.draw.first + len(rollouts.draw))
    choices = torch.tensor(actions)
    order = torch.stack([choices[shuffled(len(actions), generator(seed, "steps", number))] for number in numbers])
    pairs = torch.tensor(shuffled(len(rollouts.draw), generator(seed, "batches", epoch)))
    device = rollouts.x_t.device
    return [
        Update(rows.to(device), order[rows, place].to(device))
        for place in range(len(actions))
        for rows in pairs.split(batch)
    ]


def replay_log_prob(
    model: BaseModel, rollouts: Rollouts, pairs: Int[Tensor, " N"], step: Int[Tensor, " N"]
) -> Float[Tensor, "R N"]:
    """Log-probability of the sampled next states under the policy as it is now; carries the gradient."""
    x_t, x_next = rollouts.x_t[:, pairs, step], rollouts.x_t[:, pairs, step + 1]
    at = rollouts.kernel.at(step)
    shared = (step == 0) & rollouts.shared_noise
    x0 = denoise_rollouts(model, x_t, at, take(rollouts.draw.conditioning, pairs), shared)
    wide = rollouts.kernel.at(step.expand(len(x_t), -1))
    return gaussian_log_prob(x_next, step_mean(x_t, x0, wide), wide.std)


@torch.no_grad()
def check_ratio_is_one(
    model: BaseModel, rollouts: Rollouts, actions: Sequence[int], *, pairs: int, tolerance: float
) -> float:
    """Replay the first `pairs` pairs before any update: new and old log-probabilities must agree.

    Returns the largest difference, in nats per element. TrainingError where it is above `tolerance`.
    """
    rows = torch.arange(min(pairs, len(rollouts.draw)), device=rollouts.x_t.device)
    differences = []
    for step in actions:
        replayed = replay_log_prob(model, rollouts, rows, torch.full_like(rows, step))
        differences.append(float((replayed - rollouts.log_prob[:, rows, step]).abs().nan_to_num(torch.inf).max()))
    worst = max(differences)
    if worst > tolerance:
        raise TrainingError(
            f"replayed log-probabilities differ from the sampled ones by {worst:.2g}, more than {tolerance:.2g}",
            place=f"rollout step {actions[differences.index(worst)]}",
            remedy="use model.dtype float32; if it is, the model's network is not deterministic",
        )
    return worst


def update_policy(
    model: BaseModel,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    advantage: Float[Tensor, "R B S"],
    updates: Sequence[Update],
    max_grad_norm: float,
    micro_batch: int,
) -> tuple[Mapping[str, float], int]:
    """Make all updates of an epoch, with a smaller micro-batch where memory runs out.

    Returns the means of loss, gradient norm and the objective's metrics, and the micro-batch that fits.
    """
    totals: dict[str, list[float]] = {}
    for update in updates:
        attempt = partial(attempt_update, model, objective, optimizer, rollouts, advantage, update, max_grad_norm)
        metrics, micro_batch = fitting(attempt, micro_batch, "pair")
        for name, value in metrics.items():
            totals.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in totals.items()}, micro_batch


def attempt_update(
    model: BaseModel,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    advantage: Float[Tensor, "R B S"],
    update: Update,
    max_grad_norm: float,
    micro_batch: int,
) -> dict[str, float]:
    """One optimiser step, its gradient accumulated over micro-batches; nothing is changed when it is not finite."""
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    scale = gradient_scale(model)
    for rows in torch.arange(len(update.pairs), device=update.pairs.device).split(micro_batch):
        result = step_loss(model, objective, rollouts, advantage, update.pairs[rows], update.step[rows])
        share = len(rows) / len(update.pairs)
        (result.loss * share * scale).backward()
        for name, value in {"loss": result.loss, **result.metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) * share
    weights = list(model.trainable().values())
    for weight in weights:
        if weight.grad is not None:
            weight.grad /= scale
    norm = float(torch.nn.utils.clip_grad_norm_(weights, max_grad_norm))
    wrong = [f"{name} is {value}" for name, value in {**sums, "grad_norm": norm}.items() if not math.isfinite(value)]
    if wrong:
        raise TrainingError(
            f"{', '.join(wrong)}; no weight was changed",
            place=f"update of steps {sorted(set(update.step.tolist()))}",
            remedy="lower train.learning_rate, or use model.dtype float32",
        )
    optimizer.step()
    return {**sums, "grad_norm": norm}


def gradient_scale(model: BaseModel) -> float:
    """The largest power of 2 up to the latent's elements: factor of the loss while its gradient flows back.

    A log-probability is a mean over elements; the gradient of each is so small that float16 rounds it to 0. That of
    their sum is not, and a power of 2 leaves every other number as it was.
    """
    return 2.0 ** int(math.log2(math.prod(model.latent_shape)))


def step_loss(
    model: BaseModel,
    objective: Objective,
    rollouts: Rollouts,
    advantage: Float[Tensor, "R B S"],
    pairs: Int[Tensor, " N"],
    step: Int[Tensor, " N"],
) -> ObjectiveResult:
    """The objective's loss of one step of each of N pairs."""
    return objective.loss(
        LossBatch(
            log_prob_new=replay_log_prob(model, rollouts, pairs, step),
            log_prob_old=rollouts.log_prob[:, pairs, step],
            advantage=advantage[:, pairs, step],
            step=step,
        )
    )
