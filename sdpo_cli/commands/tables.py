"""Tables and paragraphs on stdout, as wide as the terminal, 80 columns in a pipe."""

from collections.abc import Sequence
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdpo_cli.engine.comparing.comparison import Cell
    from sdpo_cli.engine.evaluating.records import EvaluationReport, Interval, StepResult


def print_report(report: "EvaluationReport") -> None:
    """Each reward per step count, before -> after, with 95 % intervals over prompts; then the diversity."""
    from rich.console import Console
    from rich.table import Table

    tuned = report.adapter is not None
    table = Table()
    table.add_column("", no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    for column in ("before", "after", "change", "improved") if tuned else ("mean",):
        table.add_column(column, justify="right", no_wrap=True)
    for name in dict.fromkeys(result.reward for result in report.results):
        for result in report.results:
            if result.reward == name:
                table.add_row(name, str(result.steps), *cells(result))
        table.add_section()
    for one in report.diversity:
        after = [f"{one.tuned:.3f}", f"{one.tuned - one.base:+.3f}", ""] if one.tuned is not None else []
        table.add_row("diversity", str(one.steps), f"{one.base:.3f}", *after)
    Console(markup=False, highlight=False, emoji=False).print(table)
    unit = "95 % intervals over prompts; improved: share of pictures that score higher"
    print(paragraph(unit if tuned else "95 % intervals over prompts"))
    if report.diversity:
        print(paragraph(f"diversity: {report.diversity[0].measure}, among pictures of one prompt"))


def print_cells(found: "Sequence[Cell]") -> None:
    """One measure of a comparison: a row an arm, a column a step count, mean ± spread over seeds; leaders in bold."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sdpo_cli.engine.comparing.comparison import step_word
    from sdpo_cli.engine.comparing.table import figure, heading, leading, written

    by_steps = {
        steps: [cell for cell in found if cell.steps == steps] for steps in dict.fromkeys(c.steps for c in found)
    }
    leaders = {steps: leading(some) for steps, some in by_steps.items()}
    table = Table()
    table.add_column("")
    for steps in by_steps:
        table.add_column(step_word(steps), justify="right")
    table.add_row("base model", *(figure(some[0].base) for some in by_steps.values()))
    for arm in dict.fromkeys(cell.arm for cell in found):
        mine = [cell for cell in found if cell.arm == arm]
        styles = ["bold" if arm in leaders[cell.steps] else "" for cell in mine]
        table.add_row(arm, *(Text(written(cell, bold=False), style) for cell, style in zip(mine, styles, strict=True)))
    print(paragraph(heading(found[0])))
    Console(markup=False, highlight=False, emoji=False).print(table)
    print(
        paragraph("mean ± standard deviation over seeds; bold: the highest, and all not told from it (Welch's t, 5 %)")
    )


def cells(result: "StepResult") -> list[str]:
    """A row's numbers."""
    if result.tuned is None or result.difference is None or result.win_rate is None:
        return [interval(result.base)]
    change = interval(result.difference, sign="+")
    return [f"{result.base.mean:.3f}", f"{result.tuned.mean:.3f}", change, f"{result.win_rate:.0%}"]


def interval(value: "Interval", sign: str = "") -> str:
    """`0.413 ± 0.021`, or the mean alone where there is no interval."""
    mean = f"{value.mean:{sign}.3f}"
    return mean if value.low is None else f"{mean} ± {value.mean - value.low:.3f}"


def columns(rows: Sequence[tuple[str, str]]) -> str:
    """Names in one column, whole, and folded beside them what is said of each; no name may be cut."""
    indent = max(len(name) for name, _ in rows) + 4
    return "\n".join(paragraph(text, indent=f"  {name}".ljust(indent), hanging=" " * indent) for name, text in rows)


def paragraph(text: str, *, indent: str = "", hanging: str | None = None) -> str:
    """A text folded at spaces alone: what is longer than a line, such as an address, stays whole to be copied."""
    return fill(
        text,
        get_terminal_size((80, 24)).columns,
        initial_indent=indent,
        subsequent_indent=indent if hanging is None else hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
