"""The figures of a comparison: one a step count, a row a measure, against pictures drawn and against rewards asked; and
how much of what should hold each reward has cost.
"""

from collections.abc import Iterator, Sequence
from io import BytesIO
from statistics import fmean, stdev
from typing import Any

from sdpo_cli.engine.comparing.comparison import Axis, Curve, Holding, step_word, value_at
from sdpo_cli.engine.evaluating.report import LIGHT

COLOURS = ("#2f6fde", "#d1495b", "#2a9d5c", "#e08e0b", "#7b4fb3", "#4a5568", "#0f9fb5", "#b5548a", "#8a7a1e", "#16324f")
"""Of the arms, in order; well apart for most eyes. More arms than colours begin again, dashed."""

LABELS = {"images": "pictures drawn", "queries": "rewards asked"}


def draw_comparison(curves: Sequence[Curve], steps: int, shown: Sequence[str]) -> bytes:
    """A PNG for one step count: the measures `shown`, mean over seeds as a line and standard deviation as a band."""
    figure = new_figure(10.5, 2.9 * len(shown))
    grid = figure.subplots(len(shown), 2, squeeze=False, sharey="row")
    for row, measure in zip(grid, shown, strict=True):
        for axes, axis in zip(row, ("images", "queries"), strict=True):
            draw_axes(axes, curves, axis, (steps, measure))
        row[0].set_ylabel(f"{measure}, {step_word(steps)}", color=LIGHT.ink)
    return png(figure, grid[0][0])


def draw_trade_off(curves: Sequence[Curve], counts: Sequence[int], reward: str, holding: Holding) -> bytes:
    """A PNG with a panel a step count: the reward against the measure that should hold, from evaluation to evaluation.

    Means over seeds at equal pictures. The line stands where the measure has fallen by as much as it may.
    """
    figure = new_figure(3.2 * len(counts) + 1.7, 3.6)
    grid = figure.subplots(1, len(counts), squeeze=False)
    for axes, steps in zip(grid[0], counts, strict=True):
        for arm, style, runs in styled(curves):
            amounts = amounts_of(runs, "images")
            held, reached = (
                [fmean(value_at(run, "images", amount, (steps, name)) for run in runs) for amount in amounts]
                for name in (holding.measure, reward)
            )
            axes.plot(held, reached, linewidth=1.8, marker="o", markersize=3, label=arm, **style)
        base = fmean(run.points[0].means[steps, holding.measure] for run in curves)
        limit = f"{holding.measure} fell by {holding.drop:g}"
        axes.axvline(base - holding.drop, color=LIGHT.ink, alpha=0.4, linewidth=1, label=limit)
        axes.set_xlabel(f"{holding.measure}, falling \N{RIGHTWARDS ARROW}", color=LIGHT.ink)
        axes.set_title(step_word(steps), color=LIGHT.ink, fontsize="medium")
        axes.invert_xaxis()
        plain(axes)
    grid[0][0].set_ylabel(reward, color=LIGHT.ink)
    return png(figure, grid[0][0])


def new_figure(width: float, height: float) -> Any:
    """An empty figure, inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, facecolor=LIGHT.paper, layout="constrained")


def png(figure: Any, named: Any) -> bytes:
    """The figure with a legend of the arms in `named` beside its panels."""
    figure.legend(*named.get_legend_handles_labels(), loc="outside right upper", frameon=False, labelcolor=LIGHT.ink)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def styled(curves: Sequence[Curve]) -> Iterator[tuple[str, dict[str, str], list[Curve]]]:
    """Each arm, how its line looks, and its runs."""
    for place, arm in enumerate(dict.fromkeys(curve.arm for curve in curves)):
        line = "--" if place >= len(COLOURS) else "-"
        yield (
            arm,
            {"color": COLOURS[place % len(COLOURS)], "linestyle": line},
            [curve for curve in curves if curve.arm == arm],
        )


def amounts_of(runs: Sequence[Curve], axis: Axis) -> list[int]:
    """Where any of the runs was evaluated, as far as all of them came."""
    end = min(getattr(run.points[-1], axis) for run in runs)
    return sorted({getattr(point, axis) for run in runs for point in run.points if getattr(point, axis) <= end})


def draw_axes(axes: Any, curves: Sequence[Curve], axis: Axis, key: tuple[int, str]) -> None:
    """All arms by one measure against one axis."""
    for arm, style, runs in styled(curves):
        amounts = amounts_of(runs, axis)
        values = [[value_at(run, axis, amount, key) for run in runs] for amount in amounts]
        mean = [fmean(one) for one in values]
        spread = [stdev(one) if len(one) > 1 else 0.0 for one in values]
        axes.plot(amounts, mean, linewidth=1.8, marker="o", markersize=3, label=arm, **style)
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(amounts, low, high, color=style["color"], alpha=0.13, linewidth=0)
    axes.set_xlabel(LABELS[axis], color=LIGHT.ink)
    axes.set_xlim(left=0)
    plain(axes)


def plain(axes: Any) -> None:
    """No frame, faint lines across."""
    axes.tick_params(colors=LIGHT.ink, length=0)
    axes.grid(axis="y", color=LIGHT.ink, alpha=0.15)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT.ink)
