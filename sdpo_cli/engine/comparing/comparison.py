"""What runs reached, side by side: curves of held-out measures against pictures drawn and rewards asked."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any, Literal

from sdpo_cli.engine.disk.artifacts import RunFolder, is_run
from sdpo_cli.engine.disk.files import read_json_lines, read_text
from sdpo_cli.engine.evaluating.records import EvaluationReport, from_json
from sdpo_cli.errors import ArtifactError, UsageError
from sdpo_cli.recipe import Recipe
from sdpo_cli.registry import DIVERSITY, load_recipe

Axis = Literal["images", "queries"]
AXES: tuple[Axis, ...] = ("images", "queries")

TOTAL = "total reward"
"""The weighted sum that was trained on, where there are several rewards."""


@dataclass(frozen=True)
class Holding:
    """How far a measure may fall below the base model's, in its own units, before a reward no longer counts."""

    measure: str
    drop: float


@dataclass(frozen=True)
class Point:
    """An evaluation: pictures drawn and rewards asked so far, and the means by (sampling steps, measure)."""

    images: int
    queries: int
    means: Mapping[tuple[int, str], float]


@dataclass(frozen=True)
class Curve:
    """One run: the arm it belongs to, its seed, and its evaluations, the base model's first."""

    arm: str
    seed: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Cell:
    """An arm at a step count by one measure: mean and standard deviation over seeds; None for a single one.

    It is the measure after `amount` pictures or queries; with `holding`, the highest until then while that held.
    """

    arm: str
    axis: Axis
    amount: int
    steps: int
    measure: str
    base: float
    mean: float
    spread: float | None
    seeds: int
    holding: Holding | None = None


def read_curve(folder: RunFolder, arm: str) -> Curve:
    """A finished run's evaluations; its report is the last one where none was made after the last epoch.

    Evaluations of epochs that the metrics do not know are left out. ArtifactError where it has no report, or no metrics
    that belong to it.
    """
    if not folder.evaluation.is_file():
        raise ArtifactError("has no report yet", place=str(folder.path), remedy="finish it with `sdpo train --resume`")
    recipe = load_recipe(folder.recipe).recipe
    spent = spent_by_epoch(folder.metrics)
    paths = {int(path.stem.removeprefix("epoch-")): path for path in (folder.path / "evaluations").glob("epoch-*.json")}
    paths = {max(spent): folder.evaluation} | {epoch: path for epoch, path in paths.items() if epoch in spent}
    found = {epoch: from_json(read_text(path), str(path)) for epoch, path in paths.items()}
    points = [Point(0, 0, means_of(found[max(spent)], recipe, "base"))]
    points += [Point(*spent[epoch], means_of(found[epoch], recipe, "tuned")) for epoch in sorted(found)]
    return Curve(arm, recipe.seed, tuple(points))


def spent_by_epoch(metrics: Path) -> dict[int, tuple[int, int]]:
    """Pictures drawn and rewards asked until the end of each epoch. ArtifactError where the file does not say it."""
    try:
        spent = {row["epoch"]: (row["images"], row["queries"]) for row in read_json_lines(metrics)}
    except KeyError:
        spent = {}
    if not spent:
        raise ArtifactError("does not say what every epoch took", place=str(metrics), remedy="leave this run out")
    return spent


def means_of(report: EvaluationReport, recipe: Recipe, side: Literal["base", "tuned"]) -> dict[tuple[int, str], float]:
    """Every measure of one side of an evaluation, the trained sum among them where it is one of raw rewards."""
    means = {(one.steps, one.reward): getattr(one, side).mean for one in report.results}
    for steps in dict.fromkeys(one.steps for one in report.results):
        if len(recipe.reward) > 1 and all(one.normalise == "raw" for one in recipe.reward):
            means[steps, TOTAL] = sum(one.weight * means[steps, one.name] for one in recipe.reward)
    return means | {(one.steps, DIVERSITY): getattr(one, side) for one in report.diversity}


def value_at(curve: Curve, axis: Axis, amount: int, key: tuple[int, str]) -> float:
    """A measure after `amount` pictures or queries, on the line between the evaluations before and after.

    ValueError beyond the last evaluation.
    """
    for left, right in pairwise(curve.points):
        start, end = getattr(left, axis), getattr(right, axis)
        if start <= amount <= end and end > start:
            share = (amount - start) / (end - start)
            return left.means[key] + share * (right.means[key] - left.means[key])
    raise ValueError(f"{amount} {axis} are beyond the run")


def highest_while_holding(curve: Curve, axis: Axis, amount: int, key: tuple[int, str], holding: Holding) -> float:
    """The highest value within `amount` pictures or queries, before the held measure has fallen too far.

    Both are on the lines between the evaluations, at the same number of sampling steps.
    """
    held = (key[0], holding.measure)
    lowest = curve.points[0].means[held] - holding.drop
    highest = curve.points[0].means[key]
    for left, right in pairwise(curve.points):
        start, end = getattr(left, axis), getattr(right, axis)
        share = (amount - start) / (end - start) if amount < end else 1.0
        margin, margin_after = left.means[held] - lowest, right.means[held] - lowest
        if margin_after < 0:
            share = min(share, margin / (margin - margin_after))
        highest = max(highest, left.means[key] + share * (right.means[key] - left.means[key]))
        if share < 1:
            break
    return highest


def is_told_apart(one: Cell, other: Cell) -> bool:
    """Whether Welch's t-test tells the means of two arms apart, at the two-sided level of 5 %.

    Source: Welch, Biometrika 34 (1947). Without correction for how many pairs of arms are looked at.
    """
    errors = [(cell.spread or 0.0) ** 2 / cell.seeds for cell in (one, other)]
    total, difference = sum(errors), abs(one.mean - other.mean)
    if not total:
        return difference > 0
    freedom = total**2 / sum(error**2 / (cell.seeds - 1) for error, cell in zip(errors, (one, other), strict=True))
    return difference > t_limit(freedom) * math.sqrt(total)


def t_limit(freedom: float) -> float:
    """What |t| exceeds in 5 % of cases: for 2 degrees of freedom 3 % too low, for 3 and more less than 1 %.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def step_word(steps: int) -> str:
    """`1 step`, `2 steps`."""
    return f"{steps} step{'' if steps == 1 else 's'}"


def common_amount(curves: Sequence[Curve], axis: Axis) -> int:
    """The most pictures or queries that every run reached."""
    return min(getattr(curve.points[-1], axis) for curve in curves)


def measures(curves: Iterable[Curve]) -> list[tuple[int, str]]:
    """What all evaluations of all runs measured: (sampling steps, measure), in the order of the first."""
    first, *others = [point.means for curve in curves for point in curve.points]
    return [key for key in first if all(key in one for one in others)]


def tabulate(curves: Sequence[Curve], holding: Holding | None = None) -> list[Cell]:
    """Every arm by every measure, at equal pictures and at equal queries.

    With `holding`, every reward but the held one, as high as it came while that held.
    """
    cells = []
    for axis in AXES:
        amount = common_amount(curves, axis)
        for steps, measure in measures(curves):
            if holding and measure in (holding.measure, DIVERSITY):
                continue
            for arm in dict.fromkeys(curve.arm for curve in curves):
                runs = [curve for curve in curves if curve.arm == arm]
                values = [reached(run, axis, amount, (steps, measure), holding) for run in runs]
                base = fmean(run.points[0].means[steps, measure] for run in runs)
                spread = stdev(values) if len(values) > 1 else None
                cells.append(Cell(arm, axis, amount, steps, measure, base, fmean(values), spread, len(values), holding))
    return cells


def reached(curve: Curve, axis: Axis, amount: int, key: tuple[int, str], holding: Holding | None) -> float:
    """What a run reached: the value after `amount`, or the highest until then while `holding` held."""
    if holding is None:
        return value_at(curve, axis, amount, key)
    return highest_while_holding(curve, axis, amount, key, holding)


def grouped_runs(paths: Sequence[Path]) -> list[Curve]:
    """The curves of finished runs; those whose recipes differ in nothing but seed and name are one arm.

    An arm is called like its first folder, with as much of the path as tells it from the others.
    UsageError where a path holds no run, a run is named twice, or they were not evaluated alike.
    """
    arms: dict[str, Path] = {}
    runs = []
    for path in paths:
        if not is_run(path):
            raise UsageError("holds no run", place=str(path), remedy="name folders that `sdpo train` wrote")
        if paths.count(path) > 1:
            raise UsageError("is named twice", place=str(path), remedy="name each run once")
        recipe = load_recipe(RunFolder(path).recipe).recipe.model_dump(mode="json")
        settings = json.dumps({**recipe, "seed": None, "name": None}, sort_keys=True)
        runs.append((path, arms.setdefault(settings, path), evaluation_of(recipe)))
    for path, _, evaluation in runs:
        for field, value in evaluation.items():
            if value != runs[0][2][field]:
                fault = f"{field} is {json.dumps(value)}, but {json.dumps(runs[0][2][field])} in {runs[0][0]}"
                raise UsageError(fault, place=str(path), remedy="compare runs that were evaluated alike")
    names = short_names(list(arms.values()))
    return [read_curve(RunFolder(path), names[first]) for path, first, _ in runs]


def evaluation_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say what the numbers of an evaluation mean."""
    section = {f"eval.{key}": value for key, value in recipe["eval"].items() if key not in ("every", "batch", "steps")}
    section["eval.prompts"] = section["eval.prompts"] or recipe["prompts"]
    rewards = [{key: one[key] for key in ("name", "options", "weight")} for one in recipe["reward"]]
    return {"model.name": recipe["model"]["name"], "reward": rewards, **section}


def short_names(paths: Sequence[Path]) -> dict[Path, str]:
    """The last parts of each path, as many as tell it from the others."""

    def tail(path: Path, parts: int) -> str:
        return "/".join(path.parts[-parts:])

    names = {}
    for path in paths:
        others = [other for other in paths if other != path]
        enough = (n for n in range(1, len(path.parts) + 1) if all(tail(path, n) != tail(one, n) for one in others))
        names[path] = tail(path, next(enough, len(path.parts)))
    return names
