"""What runs reached, side by side: curves of held-out measures against pictures drawn and rewards asked."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from sdpo_cli.engine.artifacts import RunFolder, is_run
from sdpo_cli.engine.files import read_json_lines, read_text
from sdpo_cli.engine.records import EvaluationReport, from_json
from sdpo_cli.errors import ArtifactError, UsageError
from sdpo_cli.recipe import Recipe
from sdpo_cli.registry import load_recipe

Axis = Literal["images", "queries"]

TOTAL = "total reward"
"""The weighted sum that was trained on, where there are several rewards."""

DIVERSITY = "diversity"

READ_OFF = "Means ± standard deviation over seeds. Between two evaluations a value is read off the line between them."
"""What the tables do not say of themselves."""


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
    """An arm at a step count by one measure: mean and standard deviation over seeds; None for a single one."""

    arm: str
    axis: Axis
    amount: int
    steps: int
    measure: str
    base: float
    mean: float
    spread: float | None
    seeds: int


def read_curve(folder: RunFolder, arm: str) -> Curve:
    """A finished run's evaluations; its report is the last one where none was made after the last epoch.

    ArtifactError where it has no report.
    """
    if not folder.evaluation.is_file():
        raise ArtifactError("has no report yet", place=str(folder.path), remedy="finish it with `sdpo train --resume`")
    recipe = load_recipe(folder.recipe).recipe
    spent = {row["epoch"]: (row["images"], row["queries"]) for row in read_json_lines(folder.metrics)}
    paths = {int(path.stem.removeprefix("epoch-")): path for path in (folder.path / "evaluations").glob("epoch-*.json")}
    paths = {max(spent): folder.evaluation} | {epoch: path for epoch, path in paths.items() if epoch in spent}
    found = {epoch: from_json(read_text(path), str(path)) for epoch, path in paths.items()}
    points = [Point(0, 0, means_of(found[max(spent)], recipe, "base"))]
    points += [Point(*spent[epoch], means_of(found[epoch], recipe, "tuned")) for epoch in sorted(found)]
    return Curve(arm, recipe.seed, tuple(points))


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


def common_amount(curves: Sequence[Curve], axis: Axis) -> int:
    """The most pictures or queries that every run reached."""
    return min(getattr(curve.points[-1], axis) for curve in curves)


def measures(curves: Iterable[Curve]) -> list[tuple[int, str]]:
    """What all evaluations of all runs measured: (sampling steps, measure), in the order of the first."""
    first, *others = [point.means for curve in curves for point in curve.points]
    return [key for key in first if all(key in one for one in others)]


def tabulate(curves: Sequence[Curve]) -> list[Cell]:
    """Every arm by every measure, at equal pictures and at equal queries."""
    cells = []
    for axis in ("images", "queries"):
        amount = common_amount(curves, axis)
        for steps, measure in measures(curves):
            for arm in dict.fromkeys(curve.arm for curve in curves):
                runs = [curve for curve in curves if curve.arm == arm]
                values = [value_at(run, axis, amount, (steps, measure)) for run in runs]
                base = fmean(run.points[0].means[steps, measure] for run in runs)
                spread = stdev(values) if len(values) > 1 else None
                cells.append(Cell(arm, axis, amount, steps, measure, base, fmean(values), spread, len(values)))
    return cells


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


def comparison_json(cells: Sequence[Cell], curves: Sequence[Curve]) -> str:
    """Table and curves, for other programs."""
    runs = [
        {
            "arm": curve.arm,
            "seed": curve.seed,
            "points": [
                {
                    "images": point.images,
                    "queries": point.queries,
                    "means": [
                        {"steps": steps, "measure": name, "mean": mean} for (steps, name), mean in point.means.items()
                    ],
                }
                for point in curve.points
            ],
        }
        for curve in curves
    ]
    return json.dumps({"format": 1, "table": [asdict(cell) for cell in cells], "runs": runs}, indent=1) + "\n"


def comparison_markdown(cells: Sequence[Cell]) -> str:
    """A table for each measure and axis, a row an arm, a column a step count: mean ± spread over seeds, best bold."""
    parts = []
    for measure, axis in dict.fromkeys((cell.measure, cell.axis) for cell in cells):
        some = [cell for cell in cells if (cell.measure, cell.axis) == (measure, axis)]
        steps = list(dict.fromkeys(cell.steps for cell in some))
        best = {count: max(cell.mean for cell in some if cell.steps == count) for count in steps}
        word = "pictures" if axis == "images" else "reward queries"
        rows = [f"| {measure}, after {some[0].amount} {word} | " + " | ".join(map(step_word, steps)) + " |"]
        rows.append("|---" * (len(steps) + 1) + "|")
        rows.append("| base model | " + " | ".join(figure(first(some, count).base) for count in steps) + " |")
        for arm in dict.fromkeys(cell.arm for cell in some):
            mine = {cell.steps: cell for cell in some if cell.arm == arm}
            rows.append(f"| {arm} | " + " | ".join(written(mine[count], best[count]) for count in steps) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join([*parts, READ_OFF]) + "\n"


def first(cells: Sequence[Cell], steps: int) -> Cell:
    """The first cell of a step count."""
    return next(cell for cell in cells if cell.steps == steps)


def step_word(steps: int) -> str:
    """`1 step`, `2 steps`."""
    return f"{steps} step{'' if steps == 1 else 's'}"


def written(cell: Cell, best: float) -> str:
    """`0.812 ± 0.013`, bold where it is the best."""
    text = figure(cell.mean) + ("" if cell.spread is None else f" ± {figure(cell.spread)}")
    return f"**{text}**" if cell.mean == best else text


def figure(value: float) -> str:
    """Three digits after the point below 10, one above."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
