"""What a finished run shows: the curves, one page for people, and the adapter's model card.

Nothing here writes a file: data in, bytes or text out.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from sdpo_cli.engine.evaluating.records import EvaluationReport, Interval, StepResult

if TYPE_CHECKING:
    from jinja2 import Environment

CURVES = (("reward_first", "clean estimate at the first step"), ("reward_last", "at the last step"))


@dataclass(frozen=True)
class Theme:
    """Colours of the curves: text and axes, background, and one for each line."""

    ink: str
    paper: str
    lines: tuple[str, str]


LIGHT = Theme(ink="#3a4150", paper="#ffffff", lines=("#8a94a6", "#2f6fde"))
DARK = Theme(ink="#c3cad6", paper="#1a1e26", lines=("#7d8799", "#7aa7ff"))


@dataclass(frozen=True)
class Picture:
    """A PNG and the line under it."""

    png: bytes
    caption: str


@dataclass(frozen=True)
class ReportPage:
    """What `report.html` shows.

    Attributes:
        title: usually the run's name.
        report: the numbers before and after.
        metrics: the lines of `metrics.jsonl`; none leaves the curves out.
        pictures: before/after grids.
        recipe: the resolved recipe, YAML.
        versions: `name version` of the libraries that decide the numbers.
        guard: what the guard did, one line each, and last which epoch was kept.
        changes: what `--override` changed on the way, one line each.
    """

    title: str
    report: EvaluationReport
    metrics: Sequence[Mapping[str, int | float]]
    pictures: Sequence[Picture]
    recipe: str
    versions: Sequence[str]
    guard: Sequence[str] = ()
    changes: Sequence[str] = ()


@dataclass(frozen=True)
class ModelCard:
    """What the README beside an adapter, or beside what it was exported to, says.

    Attributes:
        title: usually the run's name.
        model: the base model, as the recipe names it.
        source: the hub id or folder from which diffusers loads the base model.
        dtype: number format of the base model's networks, as torch names it.
        on_hub: whether `source` is a hub id; only then does the card link it as the base model.
        recipe: the resolved recipe, YAML.
        versions: `name version` of the libraries that decide the numbers.
        report: the numbers before and after, where they were measured.
        form: what lies beside the card: a LoRA as diffusers or as kohya writes it, a whole pipeline, or a denoiser.
        component: what the denoiser is called in the pipeline: `unet` or `transformer`.
        file: name of the file, where the loader needs it.
        licence: the base model's, where it is known.
        base_changes: what the recipe changed in the base model before training.
        guard: what the guard did, one line each, and last which epoch was kept.
        changes: what `--override` changed on the way, one line each.
    """

    title: str
    model: str
    source: str
    dtype: str
    on_hub: bool
    recipe: str
    versions: Sequence[str]
    report: EvaluationReport | None = None
    form: Literal["lora", "kohya", "pipeline", "denoiser"] = "lora"
    component: str = "unet"
    file: str = ""
    licence: str = ""
    base_changes: Sequence[str] = ()
    guard: Sequence[str] = ()
    changes: Sequence[str] = ()


def draw_curves(metrics: Sequence[Mapping[str, int | float]], theme: Theme = LIGHT) -> bytes:
    """A PNG of the epochs' mean rewards against the pictures drawn so far."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 3.4), dpi=180, facecolor=theme.paper, layout="constrained")
    axes = figure.add_subplot(facecolor=theme.paper)
    for (key, label), colour in zip(CURVES, theme.lines, strict=True):
        rows = [row for row in metrics if key in row]
        if rows and not (key == "reward_first" and all(row[key] == row.get("reward_last") for row in rows)):
            images, rewards = [row["images"] for row in rows], [row[key] for row in rows]
            axes.plot(images, rewards, color=colour, linewidth=2, marker="o", markersize=3.5, label=label)
    axes.set_xlabel("training pictures drawn", color=theme.ink)
    axes.set_ylabel("mean reward of an epoch", color=theme.ink)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(colors=theme.ink, length=0)
    axes.grid(axis="y", color=theme.ink, alpha=0.15)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.ink)
    axes.legend(fontsize="small", frameon=False, labelcolor=theme.ink)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def has_curves(metrics: Sequence[Mapping[str, int | float]]) -> bool:
    """Whether there is anything to draw."""
    return any(key in row for row in metrics for key, _ in CURVES)


def render_report(page: ReportPage) -> str:
    """`report.html`: one file that loads nothing, for a browser of any width, light or dark."""
    curves = {}
    if has_curves(page.metrics):
        curves = {"light": draw_curves(page.metrics, LIGHT), "dark": draw_curves(page.metrics, DARK)}
    template = environment().get_template("report.html.j2")
    return template.render(page=page, report=page.report, curves=curves, rewards=by_reward(page.report))


def render_model_card(card: ModelCard) -> str:
    """`adapter/README.md`: what it is, how diffusers loads it, what it changed, and from which recipe it came."""
    template = environment().get_template("model_card.md.j2")
    load_from = card.source if card.on_hub else f"path/to/{Path(card.source).name}"  # a card is read elsewhere
    rewards = by_reward(card.report) if card.report else []
    recipe = yaml.safe_load(card.recipe)
    return template.render(
        card=card,
        load_from=load_from,
        report=card.report,
        rewards=rewards,
        steps=recipe["rollout"]["steps"],
        guidance=recipe["model"]["options"].get("guidance"),
    )


def by_reward(report: EvaluationReport) -> list[tuple[str, list[StepResult]]]:
    """The results of each reward in order of steps, the rewards in order of first appearance."""
    order = list(dict.fromkeys(result.reward for result in report.results))
    results = sorted(report.results, key=lambda result: (order.index(result.reward), result.steps))
    return [(reward, list(group)) for reward, group in groupby(results, key=lambda result: result.reward)]


@cache
def environment() -> Environment:
    """The templates, HTML escaped, unknown names refused."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    made = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {f.__name__: f for f in (number, signed, between, direction, percent, data_uri)}
    return made


def number(value: float) -> str:
    """Three decimals, a true minus sign."""
    return f"{value:.3f}".replace("-", "−")


def signed(value: float) -> str:
    """Three decimals with a sign."""
    return f"{value:+.3f}".replace("-", "−")


def between(interval: Interval) -> str:
    """`0.312 to 0.345`, or a dash where there is no interval."""
    if interval.low is None or interval.high is None:
        return "–"
    return f"{number(interval.low)} to {number(interval.high)}"


def direction(difference: Interval) -> str:
    """`up` or `down` where the interval leaves out zero, else nothing."""
    if difference.low is None or difference.high is None:
        return ""
    return "up" if difference.low > 0 else "down" if difference.high < 0 else ""


def percent(share: float) -> str:
    """A share of 1 as whole per cent."""
    return f"{share:.0%}"


def data_uri(png: bytes) -> str:
    """A PNG as a URI that holds it."""
    return "data:image/png;base64," + b64encode(png).decode()
