"""The tables of a comparison, for people as Markdown and for programs as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from sdpo_cli.engine.comparing.comparison import TOTAL, Cell, Curve, is_told_apart, step_word
from sdpo_cli.engine.disk.files import read_text
from sdpo_cli.engine.disk.locking import is_locked
from sdpo_cli.errors import ArtifactError

STORED = "comparison.json"
"""The file of a comparison that is for programs, and that it is shown from again."""

READ_OFF = (
    "Means ± standard deviation over seeds. Bold: the highest mean, and every mean that Welch's t-test at 5 % does not "
    "tell from it; none where a part has one seed alone. Between two evaluations a value is read off the line between "
    "them."
)
"""What the tables do not say of themselves."""


@dataclass(frozen=True)
class Compared:
    """The table of a comparison that matters most, and how many runs other processes are still making."""

    cells: Sequence[Cell]
    missing: int = 0


@dataclass(frozen=True)
class Stored:
    """What is read of a comparison's file: its cells without and with a measure that was to hold, and the rewards."""

    format: Literal[1]
    table: tuple[Cell, ...]
    held: tuple[Cell, ...]
    trained: tuple[str, ...] = ()


def stored_comparison(folder: Path) -> Compared:
    """The table that was shown when the comparison was last written, and how many runs are being made now.

    ArtifactError where its file is damaged.
    """
    path = folder / STORED
    try:
        stored = TypeAdapter(Stored).validate_json(read_text(path))
    except ValidationError:
        stored = None
    cells = main_table([*stored.table, *stored.held], stored.trained) if stored and stored.table else []
    if not cells:
        remedy = "give the command that made it again"
        raise ArtifactError("not a comparison as sdpo writes it", place=str(path), remedy=remedy)
    return Compared(cells, sum(map(is_locked, (folder / "locks").glob("*"))))


def comparison_json(cells: Sequence[Cell], curves: Sequence[Curve], trained: Sequence[str]) -> str:
    """Table and curves, for other programs, and the names of the rewards that were trained on."""
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
    table = [asdict(cell) for cell in cells if cell.holding is None]
    held = [asdict(cell) for cell in cells if cell.holding]
    found = {"format": 1, "trained": list(trained), "table": table, "held": held, "runs": runs}
    return json.dumps(found, indent=1) + "\n"


def preamble(origin: str, curves: Sequence[Curve], figures: Mapping[str, str]) -> str:
    """What stands above the tables: the arms as title, what they were made of, and links to the figures beside it.

    `figures` are files by what they show; `origin` is the recipe or the runs.
    """
    seeds: dict[str, list[int]] = {}
    for curve in curves:
        seeds.setdefault(curve.arm, []).append(curve.seed)
    lists = {arm: ", ".join(map(str, sorted(some))) for arm, some in seeds.items()}
    alike = len(set(lists.values())) == 1
    said = next(iter(lists.values())) if alike else "; ".join(f"{some} of {arm}" for arm, some in lists.items())
    links = ", ".join(f"[{title}]({file})" for title, file in figures.items())
    lines = [origin, f"seeds: {said}", f"figures: {links}"]
    return f"# Comparison of {', '.join(seeds)}\n\n" + "".join(f"- {line}\n" for line in lines) + "\n"


def comparison_markdown(cells: Sequence[Cell]) -> str:
    """A table for each measure and axis, a row an arm, a column a step count: mean ± spread over seeds."""
    parts = []
    for title in dict.fromkeys(map(heading, cells)):
        some = [cell for cell in cells if heading(cell) == title]
        steps = list(dict.fromkeys(cell.steps for cell in some))
        leaders = {count: leading([cell for cell in some if cell.steps == count]) for count in steps}
        rows = [f"| {title} | " + " | ".join(map(step_word, steps)) + " |"]
        rows.append("|---" * (len(steps) + 1) + "|")
        rows.append("| base model | " + " | ".join(figure(first(some, count).base) for count in steps) + " |")
        for arm in dict.fromkeys(cell.arm for cell in some):
            mine = {cell.steps: cell for cell in some if cell.arm == arm}
            rows.append(
                f"| {arm} | " + " | ".join(written(mine[count], arm in leaders[count]) for count in steps) + " |"
            )
        parts.append("\n".join(rows))
    return "\n\n".join([*parts, READ_OFF]) + "\n"


def main_table(cells: Sequence[Cell], trained: Sequence[str]) -> list[Cell]:
    """The cells of the trained reward, of several their sum, at equal pictures.

    Where a measure was to hold, while it did; those of another reward where that is the trained one itself.
    """
    held = [cell for cell in cells if cell.holding] or cells
    measure = next((name for name in (TOTAL, *trained) if any(cell.measure == name for cell in held)), held[0].measure)
    return [cell for cell in held if cell.measure == measure and cell.axis == "images"]


def heading(cell: Cell) -> str:
    """`style, after 128 pictures`, or `style, highest within 128 pictures while emoji-clip fell by at most 0.1`."""
    spent = f"{cell.amount} {'pictures' if cell.axis == 'images' else 'reward queries'}"
    if cell.holding is None:
        return f"{cell.measure}, after {spent}"
    limit = f"{cell.holding.measure} fell by at most {cell.holding.drop:g}"
    return f"{cell.measure}, highest within {spent} while {limit}"


def first(cells: Sequence[Cell], steps: int) -> Cell:
    """The first cell of a step count."""
    return next(cell for cell in cells if cell.steps == steps)


def leading(cells: Sequence[Cell]) -> set[str]:
    """The arm with the highest mean and those that are not told apart from it; none where a spread is not known."""
    best = max(cells, key=lambda cell: cell.mean)
    if any(cell.spread is None for cell in cells):
        return set()
    return {cell.arm for cell in cells if not is_told_apart(cell, best)}


def written(cell: Cell, bold: bool) -> str:
    """`0.812 ± 0.013`, bold or not."""
    text = figure(cell.mean) + ("" if cell.spread is None else f" ± {cell.spread:.{digits(cell.mean)}f}")
    return f"**{text}**" if bold else text


def figure(value: float) -> str:
    """A mean as the tables write it."""
    return f"{value:.{digits(value)}f}"


def digits(mean: float) -> int:
    """Digits after the point of a mean and its spread: three below 10, one above."""
    return 3 if abs(mean) < 10 else 1
