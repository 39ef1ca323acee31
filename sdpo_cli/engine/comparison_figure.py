"""The figures of a comparison: one a step count, a row a measure, against pictures drawn and against rewards asked."""

from collections.abc import Sequence
from io import BytesIO
from statistics import fmean, stdev
from typing import Any

from sdpo_cli.engine.comparison import Axis, Curve, value_at
from sdpo_cli.engine.report import LIGHT

COLOURS = ("#2f6fde", "#d1495b", "#2a9d5c", "#e08e0b", "#7b4fb3", "#4a5568", "#0f9fb5", "#b5548a")
"""Of the arms, in order; well apart for most eyes. More arms than colours begin again, dashed."""

LABELS = {"images": "pictures drawn", "queries": "rewards asked"}


def draw_comparison(curves: Sequence[Curve], steps: int, shown: Sequence[str]) -> bytes:
    """A PNG for one step count: the measures `shown`, mean over seeds as a line and standard deviation as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.9 * len(shown)), dpi=120, facecolor=LIGHT.paper, layout="constrained")
    grid = figure.subplots(len(shown), 2, squeeze=False, sharey="row")
    for row, measure in zip(grid, shown, strict=True):
        for axes, axis in zip(row, ("images", "queries"), strict=True):
            draw_axes(axes, curves, axis, (steps, measure))
        row[0].set_ylabel(f"{measure}, {steps} step{'' if steps == 1 else 's'}", color=LIGHT.ink)
    grid[0][1].legend(fontsize="small", frameon=False, labelcolor=LIGHT.ink)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_axes(axes: Any, curves: Sequence[Curve], axis: Axis, key: tuple[int, str]) -> None:
    """All arms by one measure against one axis."""
    for place, arm in enumerate(dict.fromkeys(curve.arm for curve in curves)):
        runs = [curve for curve in curves if curve.arm == arm]
        end = min(getattr(run.points[-1], axis) for run in runs)
        amounts = sorted({getattr(point, axis) for run in runs for point in run.points if getattr(point, axis) <= end})
        values = [[value_at(run, axis, amount, key) for run in runs] for amount in amounts]
        mean = [fmean(one) for one in values]
        spread = [stdev(one) if len(one) > 1 else 0.0 for one in values]
        colour, line = COLOURS[place % len(COLOURS)], "--" if place >= len(COLOURS) else "-"
        axes.plot(amounts, mean, line, color=colour, linewidth=1.8, marker="o", markersize=3, label=arm)
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(amounts, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set_xlabel(LABELS[axis], color=LIGHT.ink)
    axes.set_xlim(left=0)
    axes.tick_params(colors=LIGHT.ink, length=0)
    axes.grid(axis="y", color=LIGHT.ink, alpha=0.15)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT.ink)
