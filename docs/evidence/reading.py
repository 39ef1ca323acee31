"""Stored comparisons, and the numbers and rows that tables of them are made of."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from arms import MEASURES

from sdpo_cli.engine.comparing.comparison import (
    Cell,
    Curve,
    Holding,
    Point,
    highest_while_holding,
    is_told_apart,
    step_word,
    value_at,
)

FOLDER = Path(os.environ.get("STUDY", Path(__file__).parent / "results"))
"""What is kept of the study that the page tells of, or the folder of one of your own."""
HOLDING = Holding("emoji-clip", 0.1)
STEPS = (1, 2, 4, 8)
DIGITS = {"style": 3, "jpeg": 2, "colour": 0}
ONE_QUERY = ("sdpo", "ddpo", "prdp", "d3po", "grpo")

Runs = Mapping[str, Sequence[Curve]]
"""The runs of each arm, one for each seed."""


def stored(name: str) -> Path:
    """A comparison's file, as it is kept or where `sdpo compare` wrote it."""
    kept = FOLDER / f"{name}.json"
    return kept if kept.is_file() else FOLDER / name / "comparison.json"


def read(name: str) -> Runs:
    """What `sdpo compare` wrote as comparison.json."""
    runs: dict[str, list[Curve]] = {}
    for run in json.loads(stored(name).read_text())["runs"]:
        points = [
            Point(
                one["images"], one["queries"], {(mean["steps"], mean["measure"]): mean["mean"] for mean in one["means"]}
            )
            for one in run["points"]
        ]
        runs.setdefault(run["arm"], []).append(Curve(run["arm"], run["seed"], tuple(points)))
    return runs


def held(runs: Sequence[Curve], reward: str, steps: int, amount: int, axis: str = "images") -> list[float]:
    """Of each run the highest reward within `amount` pictures or queries before alignment fell by 0.1."""
    key = (steps, MEASURES[reward])
    return [highest_while_holding(run, axis, amount, key, HOLDING) for run in runs]  # type: ignore[arg-type]


def alone(runs: Sequence[Curve], measure: str, steps: int, amount: int) -> list[float]:
    """Of each run a measure after so many pictures."""
    return [value_at(run, "images", amount, (steps, measure)) for run in runs]


def number(value: float, digits: int) -> str:
    """`.786` below 1, `2.46`, `119`."""
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if digits == 3 else text


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation over seeds; of one seed its value."""
    if len(values) == 1:
        return number(values[0], digits)
    return f"{number(fmean(values), digits)} ± {number(stdev(values), digits)}"


def cell(values: Sequence[float]) -> Cell:
    """Values of an arm's seeds as the tool's tables hold them."""
    return Cell("", "images", 0, 0, "", 0.0, fmean(values), stdev(values), len(values))


def emphasised(columns: Sequence[Sequence[Sequence[float]]], row: int, digits: int) -> list[str]:
    """A row's cells, bold where they are the highest mean or not told apart from it, as in the tool's tables."""
    cells = []
    for column in columns:
        best, text = max(column, key=fmean), spread(column[row], digits)
        cells.append(text if is_told_apart(cell(column[row]), cell(best)) else f"**{text}**")
    return cells


def line(*cells: str) -> str:
    """A table's row."""
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def head(*cells: str) -> list[str]:
    """A table's first two rows."""
    return [line(*cells), "|" + "---|" * len(cells)]


BY_STEPS = tuple(map(step_word, STEPS))


def base_row(runs: Runs, reward: str, *before: str) -> str:
    """The base model."""
    first = next(iter(runs.values()))
    cells = [
        number(fmean(run.points[0].means[steps, MEASURES[reward]] for run in first), DIGITS[reward]) for steps in STEPS
    ]
    return line("base model", *before, *cells)
