"""From rollouts to advantages: query the key steps' rewards, predict the others, credit the actions.

Source: arXiv 2411.11727, parts 2 and 3 of SDPO.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sdpo_cli.api.tensors import BaseModel, LearningPlan, ScoreRequest, ScoreResult
from sdpo_cli.engine.learning.preview import decode, rewarded_decoder
from sdpo_cli.engine.learning.rollout import Rollouts, first_rewarded_step
from sdpo_cli.engine.memory import fitting
from sdpo_cli.engine.rewards.scorer import Scorer
from sdpo_cli.engine.rewards.scoring import LoadedReward, columns, weighted_sum
from sdpo_cli.errors import PluginError, TrainingError
from sdpo_cli.maths import (
    StepStatistics,
    clip_advantages,
    cosine_similarities,
    credited_returns,
    group_advantages,
    interpolate_along_arc,
    key_steps,
    predict_dense_rewards,
    predict_sharpened_rewards,
    stepwise_advantages,
    write_true_rewards,
)


class NonFiniteRolloutError(TrainingError):
    """The base model's estimates or log-probabilities are not finite; `finite` [R B S] says which are."""

    def __init__(self, rollouts: Rollouts, finite: Bool[Tensor, "R B S"]) -> None:
        self.rollouts, self.finite = rollouts, finite
        fault = f"{int((~finite).sum())} of {finite.numel()} clean estimates or their log-probabilities are not finite"
        super().__init__(fault, remedy="lower train.learning_rate, or use model.dtype float32")


@dataclass(frozen=True)
class PlacedRequest(ScoreRequest):
    """Pictures of a training epoch.

    Attributes:
        places: of each picture the rollout, the pair among those drawn, and the step whose clean estimate it shows.
        first: the running number of the first pair drawn.
    """

    places: Sequence[Sequence[int]] = ()
    first: int = 0


@dataclass(frozen=True)
class Asked:
    """A part of the rollouts whose pictures are on their way to the rewards.

    Attributes:
        prompts: its prompts.
        key_step: the queried steps of each rollout, in the order that `write_true_rewards` expects.
        places: of each picture the rollout, the prompt and the step whose clean estimate it shows; on the CPU.
        steps: of a rollout.
        common: of how many steps the rollouts of each prompt have the same picture.
        answers: what the rewards say of them, one for each batch of pictures, in order.
        batch: how many pictures could be decoded at once.
    """

    prompts: Sequence[str]
    key_step: Int[Tensor, "R B K"]
    places: Int[Tensor, "Q 3"]
    steps: int
    common: Int[Tensor, " B"]
    answers: "Sequence[Future[list[ScoreResult]]]"
    batch: int


@dataclass(frozen=True)
class Answered:
    """A part of the rollouts with what the rewards said of its pictures.

    Attributes:
        prompts, key_step, common: as of `Asked`.
        queries: how many pictures were decoded and scored.
        values: each reward's values and its details by `NAME/DETAIL`, NaN where there is no picture.
    """

    prompts: Sequence[str]
    key_step: Int[Tensor, "R B K"]
    queries: int
    common: Int[Tensor, " B"]
    values: Mapping[str, Float[Tensor, "R B S"]]


@dataclass(frozen=True)
class KeyRewards:
    """The queried rewards of the rollouts.

    Attributes:
        key_step: the queried steps of each rollout, in the order that `write_true_rewards` expects.
        reward: their weighted total reward.
        values: each reward by itself, unweighted, and its details by `NAME/DETAIL`.
        queries: how many pictures were decoded and scored.
        last: the place of the last step among the queried ones.
    """

    key_step: Int[Tensor, "R B K"]
    reward: Float[Tensor, "R B K"]
    values: Mapping[str, Float[Tensor, "R B K"]]
    queries: int
    last: int


@dataclass(frozen=True)
class Credited:
    """Rewards of all steps, the advantage of each action, and the statistics after this epoch."""

    dense: Float[Tensor, "R B S"]
    advantage: Float[Tensor, "R B S"]
    statistics: StepStatistics


def queried_steps(rollouts: Rollouts, plan: LearningPlan) -> Int[Tensor, "R B K"]:
    """Which steps' rewards are asked for; the last step is in place 1, or 0 where it is the only one."""
    last, first = len(rollouts.kernel) - 1, first_rewarded_step(plan)
    if plan.dense == "anchors":
        return key_steps(rollouts.x0, plan.anchor, first)
    every = list(dict.fromkeys([first, last, *range(first, last)]))
    wanted = torch.tensor(every if plan.dense == "exact" else [last], device=rollouts.x0.device)
    return wanted.expand(*rollouts.x0.shape[:2], -1)


def queries_per_prompt(plan: LearningPlan, steps: int) -> Fraction:
    """Pictures that are decoded and scored for one prompt of an epoch, before any is drawn.

    Of branched rollouts, which have the queried steps up to the branch in common, the mean over all branches, if every
    step draws noise. Where the anchor is searched it is taken for the middle one: with the rule `any`, whose anchor may
    fall on an end, the most there can be.
    """
    first, last = first_rewarded_step(plan), steps - 1
    queried = {"final": {last}, "exact": {*range(first, steps)}, "anchors": {first, (first + last) // 2, last}}
    common = range(1, steps - first + 1) if plan.branched else [int(plan.shared_noise)]
    shared = sum(step < count for step in queried[plan.dense] for count in common)
    return plan.rollouts * len(queried[plan.dense]) - Fraction((plan.rollouts - 1) * shared, len(common))


def shared_steps(common: Int[Tensor, " B"], like: Shaped[Tensor, "R B S"]) -> Bool[Tensor, "B S"]:
    """Which steps of a prompt's rollouts are one and the same picture, where `like` is."""
    return (torch.arange(like.shape[-1]) < common[:, None]).to(like.device, non_blocking=True)


def distinct_queries(key_step: Int[Tensor, "R B K"], steps: int, common: Int[Tensor, " B"]) -> Bool[Tensor, "R B S"]:
    """Each picture once: a step named twice is one query, and so is a step that rollouts have in common."""
    wanted = torch.zeros(*key_step.shape[:2], steps, dtype=torch.bool, device=key_step.device)
    wanted.scatter_(-1, key_step, True)
    shared = shared_steps(common, wanted)
    return torch.cat([wanted[:1] | (wanted.any(0) & shared), wanted[1:] & ~shared])


def finite_steps(rollouts: Rollouts) -> Bool[Tensor, "R B S"]:
    """Which steps' clean estimates and log-probabilities are finite."""
    return rollouts.x0.isfinite().all(-1).all(-1).all(-1) & rollouts.log_prob.isfinite()


def ask_rewards(model: BaseModel, scorer: Scorer, rollouts: Rollouts, plan: LearningPlan, batch: int) -> Asked:
    """Decode the queried clean estimates and hand them to the scorer, `batch` pictures at a time.

    NonFiniteRolloutError where there is nothing to be pictured.
    """
    key_step = queried_steps(rollouts, plan)
    wanted = distinct_queries(key_step, len(rollouts.kernel), rollouts.common)
    known, finite = torch.stack([wanted, finite_steps(rollouts)]).cpu()  # the host waits here once
    if not finite.all():
        raise NonFiniteRolloutError(rollouts, finite)
    places, fits = known.nonzero(), batch
    pictured = rollouts.x0[tuple(places.to(wanted.device, non_blocking=True).unbind(-1))]
    answers = []
    for start in range(0, len(places), batch):
        rows = slice(start, start + batch)
        prompts = [rollouts.draw.prompts[index] for index in places[rows, 1].tolist()]
        shown = pictured[rows].to(model.device, non_blocking=True)
        images, fits = fitting(partial(decode, rewarded_decoder(model), shown), fits, "picture")
        texts, metadata = [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts]
        request = PlacedRequest(images, texts, metadata, places[rows].tolist(), rollouts.draw.first)
        answers.append(scorer.submit(request))
    texts, steps = [prompt.text for prompt in rollouts.draw.prompts], len(rollouts.kernel)
    return Asked(texts, key_step, places, steps, rollouts.common, answers, fits)


def key_rewards(scorer: Scorer, asked: Sequence[Asked]) -> KeyRewards:
    """The rewards of all parts of the rollouts, waited for."""
    return joined_rewards(scorer.rewards, [answered(scorer, part) for part in asked])


def joined_rewards(rewards: Sequence[LoadedReward], parts: Sequence[Answered]) -> KeyRewards:
    """The rewards of all parts as one, weighed over all of them."""
    given, *others = [set(part.values) for part in parts]
    for other in others:
        if other != given:
            fault = f"gave {sorted(other ^ given)} in one process and not in another"
            raise PluginError(fault, place="rewards", remedy="a reward must give the same details every time")
    values = {name: torch.cat([part.values[name] for part in parts], dim=1) for name in parts[0].values}
    key_step = torch.cat([part.key_step for part in parts], dim=1)
    common = torch.cat([part.common for part in parts])
    prompts = [prompt for part in parts for prompt in part.prompts]

    def gathered(table: Float[Tensor, "R B S"]) -> Float[Tensor, "R B K"]:
        return torch.where(shared_steps(common, table), table[0], table).gather(-1, key_step)

    return KeyRewards(
        key_step=key_step,
        reward=gathered(weighted_sum(rewards, values, prompts)),
        values={name: gathered(table) for name, table in values.items()},
        queries=sum(part.queries for part in parts),
        last=min(1, key_step.shape[-1] - 1),
    )


def answered(scorer: Scorer, asked: Asked) -> Answered:
    """One part's answers, waited for."""
    answers = [columns(scorer.rewards, scorer.result(answer)) for answer in asked.answers]
    shape, device, tables = (*asked.key_step.shape[:2], asked.steps), asked.key_step.device, {}
    places = tuple(asked.places.to(device, non_blocking=True).unbind(-1))
    for name in answers[0]:
        tables[name] = torch.full(shape, torch.nan, device=device)
        tables[name][places] = torch.cat([answer[name].to(device, non_blocking=True) for answer in answers])
    return Answered(asked.prompts, asked.key_step, len(asked.places), asked.common, tables)


def dense_rewards(rollouts: Rollouts, scored: KeyRewards, plan: LearningPlan) -> Float[Tensor, "R B S"]:
    """A reward for every step from the queried ones. A step before the first rewarded one has no meaning."""
    shape = rollouts.x0.shape[:3]
    if plan.dense == "final":
        return scored.reward[..., -1:].expand(shape)
    if plan.dense == "exact":
        return write_true_rewards(scored.reward.new_zeros(shape), scored.key_step, scored.reward)
    if plan.predictor == "arc":
        return interpolate_along_arc(rollouts.x0, scored.key_step, scored.reward)
    similarity = torch.stack([cosine_similarities(rollouts.x0, step) for step in scored.key_step.unbind(-1)], dim=-2)
    predict = predict_sharpened_rewards if plan.predictor == "sharpened" else predict_dense_rewards
    return write_true_rewards(predict(similarity, scored.reward), scored.key_step, scored.reward)


def assign_credit(rollouts: Rollouts, scored: KeyRewards, plan: LearningPlan, statistics: StepStatistics) -> Credited:
    """Dense rewards, discounted returns and clipped stepwise advantages."""
    dense = dense_rewards(rollouts, scored, plan)
    returns = credited_returns(dense, plan.credit, plan.gamma)
    if plan.advantage == "group":
        return Credited(dense, clip_advantages(group_advantages(returns), plan.advantage_clip), statistics)
    prompts = [prompt.text for prompt in rollouts.draw.prompts] * plan.rollouts
    advantages, statistics = stepwise_advantages(statistics, prompts, returns.flatten(0, 1).cpu())
    advantage = clip_advantages(advantages, plan.advantage_clip).view_as(returns)
    return Credited(dense, advantage.to(returns.device, non_blocking=True), statistics)
