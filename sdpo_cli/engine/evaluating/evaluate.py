"""Base model and adapter on the same prompts and seeds, by true k-step sampling."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api import Prompt
from sdpo_cli.api.tensors import BaseModel, Conditioning, ImageEmbedder, Sampler, ScoreRequest
from sdpo_cli.engine.evaluating.records import (
    Diversity,
    EvaluationReport,
    StepResult,
    mean_interval,
    paired_difference,
    per_prompt_means,
    win_rate,
)
from sdpo_cli.engine.evaluating.sampling import sample_pictures
from sdpo_cli.engine.events import Event, StageStarted
from sdpo_cli.engine.learning.rollout import encode_distinct
from sdpo_cli.engine.memory import fitting, with_room
from sdpo_cli.engine.rewards.scorer import Scorer
from sdpo_cli.engine.rewards.scoring import LoadedReward
from sdpo_cli.maths import mean_unlikeness

THUMBNAIL = 16


@dataclass(frozen=True)
class Plan:
    """What to draw: every prompt `images_per_prompt` times at each of `steps`, picture n with seed `seed` + n.

    `model` is what the report calls the model.
    """

    prompts: Sequence[Prompt]
    steps: Sequence[int]
    images_per_prompt: int
    seed: int
    sampler: Sampler
    batch: int
    model: str

    @property
    def pictured(self) -> list[Prompt]:
        """The prompt of every picture."""
        return [prompt for prompt in self.prompts for _ in range(self.images_per_prompt)]


@dataclass(frozen=True)
class Drawn:
    """One model at one step count: each reward's value of every picture, their diversity, and the first pictures."""

    values: Mapping[str, Sequence[float]]
    diversity: float | None
    pictures: Float[Tensor, "N 3 H W"]


Side = Mapping[int, Drawn]
"""One model at every step count."""


@dataclass(frozen=True)
class Evaluation:
    """The report, what was drawn by the base model and, with an adapter, by the tuned one, and after which epoch."""

    report: EvaluationReport
    base: Side
    tuned: Side | None
    epoch: int = 0


def evaluate(
    model: BaseModel,
    rewards: Sequence[LoadedReward],
    plan: Plan,
    *,
    adapter: str | None,
    base: Side | None = None,
    shown: int = 10,
) -> Generator[Event, None, Evaluation]:
    """Draw, score and compare. Keeps the first picture of the first `shown` prompts.

    Yields what it is doing; its return value is the evaluation. The rewards' names must differ. `base` is an earlier
    evaluation's, to save the work.
    """
    conditioning = encode_distinct(model, [prompt.text for prompt in plan.pictured])
    sides = [*([] if base else ["base"]), *(["tuned"] if model.trainable() else [])]
    stages = evaluation_stages(sides, plan.steps)
    with model.without_adapter():
        base = base or (yield from draw_side(model, rewards, plan, conditioning, stages, shown))
    tuned = None
    if model.trainable():
        tuned = yield from draw_side(model, rewards, plan, conditioning, stages, shown)
    return Evaluation(report_of(rewards, plan, base, tuned, adapter), base, tuned)


def evaluation_stages(sides: Sequence[str], steps: Sequence[int]) -> Iterator[StageStarted]:
    """What is said before each part of an evaluation: which model, how many steps, and how many parts there are."""
    parts = [(side, count) for side in sides for count in steps]
    for number, (side, count) in enumerate(parts, start=1):
        what = f"{side} model, {count} step{'s' if count > 1 else ''} ({number} of {len(parts)})"
        yield StageStarted("evaluate", 0, 0, what)


def draw_side(
    model: BaseModel,
    rewards: Sequence[LoadedReward],
    plan: Plan,
    conditioning: Conditioning,
    stages: Iterator[StageStarted],
    shown: int,
) -> Generator[Event, None, Side]:
    """The model as it is now at every step count, the next of `stages` said before each."""
    drawn = {}
    for steps in plan.steps:
        yield next(stages)
        drawn[steps] = draw_and_score(model, rewards, plan, conditioning, steps, shown)
    return drawn


def draw_and_score(
    model: BaseModel,
    rewards: Sequence[LoadedReward],
    plan: Plan,
    conditioning: Conditioning,
    steps: int,
    shown: int,
) -> Drawn:
    """All pictures of one step count, scored in batches."""
    prompts = plan.pictured
    seeds = [plan.seed + number for number in range(len(prompts))]
    draw = partial(sample_pictures, model, conditioning, seeds, steps, plan.sampler)
    pictures, batch = fitting(draw, plan.batch, "picture")
    values: dict[str, list[float]] = {reward.name: [] for reward in rewards}
    with Scorer(rewards) as scorer:
        for rows in torch.arange(len(pictures)).split(batch):
            some = [prompts[row] for row in rows.tolist()]
            request = ScoreRequest(
                pictures[rows].to(model.device), [prompt.text for prompt in some], [prompt.metadata for prompt in some]
            )
            for reward, result in zip(rewards, scorer.result(scorer.submit(request)), strict=True):
                values[reward.name] += result.values.tolist()
    firsts = pictures[:: plan.images_per_prompt][:shown].clone()
    diversity = within_prompt_diversity(pictures, plan.images_per_prompt, embedder(rewards), model.device)
    return Drawn(values, diversity, firsts)


def embedder(rewards: Sequence[LoadedReward]) -> tuple[str, ImageEmbedder] | None:
    """The first reward that can embed pictures, with its name."""
    return next(((one.name, one.reward) for one in rewards if isinstance(one.reward, ImageEmbedder)), None)


def diversity_measure(rewards: Sequence[LoadedReward]) -> str:
    """What `within_prompt_diversity` measures, in words."""
    found = embedder(rewards)
    return f"1 - cosine of {found[0]} embeddings" if found else f"1 - cosine of {THUMBNAIL} px thumbnails"


@torch.no_grad()
def within_prompt_diversity(
    pictures: Float[Tensor, "N 3 H W"],
    images_per_prompt: int,
    found: tuple[str, ImageEmbedder] | None,
    device: torch.device,
) -> float | None:
    """1 - mean cosine of all pairs of pictures of one prompt, averaged over prompts; None for single pictures."""
    if images_per_prompt < 2:
        return None
    embed = found[1].embed if found else thumbnail
    embedding = torch.cat([with_room(lambda part=part: embed(part.to(device)).cpu()) for part in pictures.split(64)])
    return float(mean_unlikeness(embedding.unflatten(0, (-1, images_per_prompt))).mean())


def thumbnail(pictures: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
    """Small copies around grey, as vectors."""
    small = torch.nn.functional.interpolate(pictures, size=(THUMBNAIL, THUMBNAIL), mode="area")
    return (small - 0.5).flatten(1)


def report_of(
    rewards: Sequence[LoadedReward],
    plan: Plan,
    base: Side,
    tuned: Side | None,
    adapter: str | None,
) -> EvaluationReport:
    """The comparison in numbers; prompts are the unit of every interval."""
    texts = [prompt.text for prompt in plan.pictured]
    results, diversity = [], []
    for steps in plan.steps:
        before, after = base[steps], tuned[steps] if tuned else None
        results += [step_result(steps, reward.name, before, after, texts) for reward in rewards]
        if before.diversity is not None:
            measure = diversity_measure(rewards)
            diversity.append(Diversity(steps, measure, before.diversity, after.diversity if after else None))
    return EvaluationReport(
        model=plan.model,
        adapter=adapter,
        prompts=len(dict.fromkeys(texts)),
        images=len(texts) * len(plan.steps) * (2 if tuned else 1),
        transition=plan.sampler.transition,
        eta=plan.sampler.eta,
        seed=plan.seed,
        results=tuple(results),
        diversity=tuple(diversity),
    )


def step_result(steps: int, reward: str, base: Drawn, tuned: Drawn | None, texts: Sequence[str]) -> StepResult:
    """One reward at one step count."""
    before = base.values[reward]
    before_means = per_prompt_means(before, texts)
    if tuned is None:
        return StepResult(steps, reward, mean_interval(before_means), None, None, None, len(before))
    after = tuned.values[reward]
    after_means = per_prompt_means(after, texts)
    return StepResult(
        steps,
        reward,
        mean_interval(before_means),
        mean_interval(after_means),
        paired_difference(after_means, before_means),
        win_rate(after, before),
        len(before),
    )
