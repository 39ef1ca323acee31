"""What an evaluation found: frozen records, their JSON, and the statistics in them.

Pictures of one prompt resemble each other, so they are not independent draws. Every interval and difference here is
taken over per-prompt means: the prompt is the unit, and more pictures of the same prompts only sharpen the means.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from sdpo_cli.errors import ArtifactError


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval; `low` and `high` are None where one value gives none."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class StepResult:
    """One reward at one number of sampling steps.

    Attributes:
        steps: sampling steps.
        reward: its name; the numbers are in its units.
        base: the base model.
        tuned: with the adapter; None without one.
        difference: tuned - base, paired by prompt and seed.
        win_rate: share of pictures that the adapter improved, 0..1; an equal pair counts half.
        count: pictures of each of the two.
    """

    steps: int
    reward: str
    base: Interval
    tuned: Interval | None
    difference: Interval | None
    win_rate: float | None
    count: int


@dataclass(frozen=True)
class Diversity:
    """How unlike the pictures of one prompt are, averaged over prompts; `measure` says in which sense."""

    steps: int
    measure: str
    base: float
    tuned: float | None


@dataclass(frozen=True)
class EvaluationReport:
    """Everything `sdpo eval` found.

    Attributes:
        model: the base model.
        adapter: the folder of the adapter, if any.
        prompts: how many distinct prompts.
        images: how many pictures were drawn in all.
        transition, eta: how they were drawn.
        seed: of the noise; base and adapter start from the same.
        results: one for every step count and reward.
        diversity: one for every step count and measure.
        format: of the JSON.
    """

    model: str
    adapter: str | None
    prompts: int
    images: int
    transition: str
    eta: float
    seed: int
    results: tuple[StepResult, ...]
    diversity: tuple[Diversity, ...]
    format: Literal[1] = 1


def to_json(report: EvaluationReport) -> str:
    """The report as indented JSON."""
    return TypeAdapter(EvaluationReport).dump_json(report, indent=2).decode() + "\n"


def from_json(text: str, place: str) -> EvaluationReport:
    """The report that `to_json` wrote. ArtifactError, naming `place`, where it is none."""
    try:
        return TypeAdapter(EvaluationReport).validate_json(text)
    except ValidationError as error:
        raise ArtifactError("not a report as sdpo writes it", place=place, remedy="remove it") from error


def per_prompt_means(values: Sequence[float], prompts: Sequence[str]) -> list[float]:
    """The mean value of each distinct prompt, in order of first appearance. ValueError on unequal lengths."""
    groups: dict[str, list[float]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        groups.setdefault(prompt, []).append(value)
    return [fmean(group) for group in groups.values()]


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval, mean ± t std / √n, of independent values (here: per-prompt means).

    t is Student's at n - 1 degrees of freedom. One value has no interval. ValueError where there is none at all.
    """
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None)
    half = student_t(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired_difference(tuned: Sequence[float], base: Sequence[float]) -> Interval:
    """Mean and 95 % interval of tuned - base, value by value. ValueError on unequal lengths."""
    return mean_interval([after - before for after, before in zip(tuned, base, strict=True)])


def win_rate(tuned: Sequence[float], base: Sequence[float]) -> float:
    """Share of pairs in which `tuned` is above `base`, 0..1; an equal pair counts half."""
    return fmean(float(after > before) + 0.5 * (after == before) for after, before in zip(tuned, base, strict=True))


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, else within 0.2 %.

    Source: expansion in the normal quantile, Abramowitz and Stegun 26.7.5.
    """
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = 1.959963984540054
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))
