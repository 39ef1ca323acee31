"""Policy updates. SDPO's are step-shuffled: S optimiser steps where a trajectory-level method makes one.

Source: arXiv 2411.11727, parts 4 to 6 of SDPO.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdpo_cli.api.tensors import BaseModel, LearningPlan, LossBatch, Objective, ObjectiveResult
from sdpo_cli.engine.learning.randomness import generator, shuffled
from sdpo_cli.engine.learning.rollout import Draw, Rollouts, denoise_rollouts, is_compiled, take
from sdpo_cli.engine.memory import fitting
from sdpo_cli.errors import TrainingError
from sdpo_cli.maths import gaussian_kl, gaussian_log_prob, step_mean


@dataclass(frozen=True)
class Update:
    """One optimiser step: which pairs, and which step of each, or with an axis of actions all steps of each.

    Both are on the CPU, where it is decided how large the network's batches are.
    """

    pairs: Int[Tensor, " N"]
    step: Int[Tensor, " N *actions"]


@dataclass(frozen=True)
class Replay:
    """Actions of N pairs under the policy as it is now, and under the base model where that was asked for.

    Attributes:
        log_prob: of the sampled next states; carries the gradient.
        log_prob_reference: the same under the base model.
        kl: exact divergence from the base model, nats per element; carries the gradient.
    """

    log_prob: Float[Tensor, "R N"]
    log_prob_reference: Float[Tensor, "R N"] | None
    kl: Float[Tensor, "R N"] | None


class NonFiniteError(TrainingError):
    """An update's loss, gradient or metric is not finite, and so are the weights by now: they are to be put back."""

    def __init__(self, fault: str, update: Update, lesson: "Lesson") -> None:
        self.update, self.lesson = update, lesson
        place = f"update of steps {update.step.unique().tolist()}"
        super().__init__(fault, place=place, remedy="lower train.learning_rate, or use model.dtype float32")


def plan_updates(
    rollouts: Rollouts, actions: Sequence[int], plan: LearningPlan, *, batch: int, seed: int, epoch: int
) -> list[Update]:
    """The optimiser steps of an epoch, `batch` pairs in each, as the plan's `updates` says.

    Of branched rollouts each pair has one action: the branch.
    """
    pairs = torch.tensor(shuffled(len(rollouts.draw), generator(seed, "batches", epoch)))
    batches = pairs.split(batch)
    every = torch.tensor(actions).expand(len(pairs), -1)
    learnt = rollouts.common[:, None] - 1 if plan.branched else every
    if plan.updates == "shuffled":
        order = in_own_order(learnt, rollouts.draw, seed)
        return [Update(rows, order[rows, place]) for place in range(order.shape[1]) for rows in batches]
    if plan.updates == "trajectory":
        return [Update(rows, learnt[rows]) for rows in batches]
    return [Update(rows.repeat_interleave(learnt.shape[1]), learnt[rows].flatten()) for rows in batches]


def in_own_order(actions: Int[Tensor, "B A"], draw: Draw, seed: int) -> Int[Tensor, "B A"]:
    """Every pair's actions in an order of its own."""
    numbers = range(draw.first, draw.first + len(draw))
    orders = [shuffled(actions.shape[1], generator(seed, "steps", number)) for number in numbers]
    return actions.gather(1, torch.tensor(orders))


def replay(model: BaseModel, rollouts: Rollouts, pairs: Int[Tensor, " N"], step: Int[Tensor, " N"]) -> Replay:
    """The sampled actions once more, one of each of N pairs (a pair may come several times); both from the CPU."""
    shared, device = step < rollouts.common[pairs], model.device
    x_t, x_next = rollouts.pick(rollouts.x_t, pairs, step), rollouts.pick(rollouts.x_t, pairs, step + 1)
    row, here = (one.to(device, non_blocking=True) for one in (pairs, step))
    known, one_size = take(rollouts.draw.conditioning, row), is_compiled(model)
    x0 = denoise_rollouts(model, x_t, rollouts.kernel.at(here), known, shared, one_size=one_size)
    wide = rollouts.kernel.at(here.expand(len(x_t), -1))
    mean = step_mean(x_t, x0, wide)
    log_prob = gaussian_log_prob(x_next, mean, wide.std)
    if rollouts.reference_x0 is None:
        return Replay(log_prob, None, None)
    reference = step_mean(x_t, rollouts.pick(rollouts.reference_x0, pairs, step), wide)
    return Replay(log_prob, gaussian_log_prob(x_next, reference, wide.std), gaussian_kl(mean, reference, wide.std))


@torch.no_grad()
def check_ratio_is_one(
    model: BaseModel, rollouts: Rollouts, actions: Sequence[int], *, pairs: int, tolerance: float
) -> float:
    """Replay the first `pairs` pairs before any update: new and old log-probabilities must agree.

    Returns the largest difference, in nats per element. TrainingError where it is above `tolerance`.
    """
    rows = torch.arange(min(pairs, len(rollouts.draw)))
    differences = []
    for step in actions:
        here = torch.full_like(rows, step)
        drift = replay(model, rollouts, rows, here).log_prob - rollouts.pick(rollouts.log_prob, rows, here)
        differences.append(float(drift.abs().nan_to_num(torch.inf).max()))
    worst = max(differences)
    if worst > tolerance:
        raise TrainingError(
            f"replayed log-probabilities differ from the sampled ones by {worst:.2g}, more than {tolerance:.2g}",
            place=f"rollout step {actions[differences.index(worst)]}",
            remedy="use model.dtype float32; if it is, the model's network is not deterministic",
        )
    return worst


@dataclass(frozen=True)
class Lesson:
    """What an epoch has to learn from, and how.

    Attributes:
        objective: whose loss is descended.
        rollouts: what was sampled, with the base model's estimates where objective or `kl` need them.
        advantage: of each action.
        kl: weight of the divergence from the base model in the loss.
        max_grad_norm: longer gradients are scaled down to it.
    """

    objective: Objective
    rollouts: Rollouts
    advantage: Float[Tensor, "R B S"]
    kl: float
    max_grad_norm: float


Numbers = Mapping[str, Float[Tensor, ""]]
"""Loss and metrics of an update, and `ratio_max`, the largest |ρ|; on the device."""

Gradients = Callable[[BaseModel, Lesson, Update, int], Numbers]
"""Adds the gradient of (model, lesson, update), times `gradient_scale`, to the weights', by so many pairs at a time."""


def own_gradients(
    model: BaseModel, lesson: Lesson, update: Update, micro_batch: int, mine: slice = slice(None)
) -> Numbers:
    """The gradient of an update, times `gradient_scale`, accumulated over micro-batches, or that of the rows `mine`.

    `micro_batch` counts actions: whole trajectories share it, one at least in each part. Gives loss and metrics, what
    the rows add to the update's means, and `ratio_max`; nothing where there are no rows.
    """
    numbers = dict[str, Tensor]()
    scale = gradient_scale(model)
    fits = max(1, micro_batch // update.step[0].numel())
    for rows in torch.arange(len(update.pairs))[mine].split(fits):
        if len(rows):
            result, drift = lesson_loss(model, lesson, update.pairs[rows], update.step[rows])
            share = len(rows) / len(update.pairs)
            (result.loss * share * scale).backward()
            part = {name: value.detach() * share for name, value in {"loss": result.loss, **result.metrics}.items()}
            numbers = added(numbers, {**part, "ratio_max": drift})
    return numbers


def added(one: Numbers, other: Numbers) -> Numbers:
    """The numbers of two parts of an update as one: sums, and of `ratio_max` the larger."""
    if not one or not other:
        return one or other
    sums = {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other} if name != "ratio_max"}
    return {**sums, "ratio_max": torch.maximum(one["ratio_max"], other["ratio_max"])}


def update_policy(
    model: BaseModel,
    optimizer: torch.optim.Optimizer,
    lesson: Lesson,
    updates: Sequence[Update],
    micro_batch: int,
    gradients: Gradients = own_gradients,
) -> tuple[Mapping[str, float], int]:
    """Make all updates of an epoch, with a smaller micro-batch where memory runs out.

    The host waits for the device once, after the last one, so that the device never waits for the host.

    Returns the means of loss, gradient norm and the objective's metrics, the largest `ratio_max`, and the micro-batch
    that fits. NonFiniteError, of the first update whose numbers are not finite: the weights are spoilt then.
    """
    made = []
    for update in updates:
        attempt = partial(attempt_update, model, optimizer, lesson, update, gradients=gradients)
        numbers, micro_batch = fitting(attempt, micro_batch, "pair")
        made.append(numbers)
    totals: dict[str, list[float]] = {}
    for update, numbers in zip(updates, fetched(made), strict=True):
        check_finite(numbers, update, lesson)
        for name, value in numbers.items():
            totals.setdefault(name, []).append(value)
    largest = max(totals.pop("ratio_max"))
    means = {name: sum(values) / len(values) for name, values in totals.items()}
    return {**means, "ratio_max": largest}, micro_batch


def attempt_update(
    model: BaseModel,
    optimizer: torch.optim.Optimizer,
    lesson: Lesson,
    update: Update,
    micro_batch: int,
    gradients: Gradients = own_gradients,
) -> Numbers:
    """One optimiser step on the gradient that `gradients` makes; nothing is changed when memory runs out.

    Gives its numbers on the device, where nobody has looked at them yet.
    """
    optimizer.zero_grad(set_to_none=True)
    numbers = gradients(model, lesson, update, micro_batch)
    weights = list(model.trainable().values())
    torch._foreach_div_([weight.grad for weight in weights if weight.grad is not None], gradient_scale(model))
    norm = torch.nn.utils.clip_grad_norm_(weights, lesson.max_grad_norm)
    optimizer.step()  # what comes after it may not run out of memory
    return {**numbers, "grad_norm": norm}


def fetched(rows: Sequence[Mapping[str, Float[Tensor, ""]]]) -> list[dict[str, float]]:
    """The numbers of each row, all of them by one transfer."""
    values = iter(torch.stack([value for row in rows for value in row.values()]).tolist())
    return [{name: next(values) for name in row} for row in rows]


def check_finite(numbers: Mapping[str, float], update: Update, lesson: Lesson) -> None:
    """NonFiniteError unless loss, gradient norm and metrics of an update are finite."""
    wrong = [f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value)]
    if wrong:
        raise NonFiniteError(f"{', '.join(wrong)}; the epoch is undone", update, lesson)


def gradient_scale(model: BaseModel) -> float:
    """The largest power of 2 up to the latent's elements: factor of the loss while its gradient flows back.

    A log-probability is a mean over elements; the gradient of each is so small that float16 rounds it to 0. That of
    their sum is not, and a power of 2 leaves every other number as it was.
    """
    return 2.0 ** int(math.log2(math.prod(model.latent_shape)))


def lesson_loss(
    model: BaseModel, lesson: Lesson, pairs: Int[Tensor, " N"], step: Int[Tensor, " N *actions"]
) -> tuple[ObjectiveResult, Float[Tensor, ""]]:
    """The objective's loss of one action, or all actions, of each of N pairs, with the divergence where it counts;
    and the largest |ρ|.
    """
    rollouts, shape = lesson.rollouts, (len(lesson.advantage), *step.shape)
    place = pairs.repeat_interleave(step[0].numel()), step.flatten()
    replayed = replay(model, rollouts, *place)
    old, reference = rollouts.pick(rollouts.log_prob, *place), replayed.log_prob_reference
    drift = (replayed.log_prob - old).detach().abs().max()
    result = lesson.objective.loss(
        LossBatch(
            log_prob_new=replayed.log_prob.view(shape),
            log_prob_old=old.view(shape),
            advantage=rollouts.pick(lesson.advantage, *place).view(shape),
            step=step.to(model.device, non_blocking=True),
            log_prob_reference=None if reference is None else reference.view(shape),
        )
    )
    if not lesson.kl:
        return result, drift
    return ObjectiveResult(result.loss + lesson.kl * replayed.kl.mean(), result.metrics), drift
