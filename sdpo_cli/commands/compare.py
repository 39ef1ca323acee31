"""`sdpo compare`: objectives, or any settings, side by side."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_cli.commands.completion import complete_recipe

if TYPE_CHECKING:
    from sdpo_cli.engine.comparing.table import Compared

OBJECTIVES = "sdpo,ddpo,prdp,d3po,grpo"
HoldingOption = Annotated[
    str | None,
    typer.Option(
        metavar="MEASURE=FALL",
        help="Show too the highest reward before MEASURE falls by more than FALL below the base model.",
    ),
]


SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RECIPE | RUN... | COMPARISON",
        help="A recipe, finished runs, or the folder of a comparison to see its table again.",
        autocompletion=complete_recipe,
    ),
]


def compare(
    context: typer.Context,
    sources: SourcesArgument,
    objectives: Annotated[
        str, typer.Option(help="What to compare: NAME or NAME=OBJECTIVE, between commas.")
    ] = OBJECTIVES,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs of each, from the recipe's seed on.")] = 3,
    budget: Annotated[str, typer.Option(help="What each run spends: images=N or queries=N.")] = "images=512",
    steps: Annotated[
        str | None, typer.Option(help="Step counts, as in 1,2,4; default: the recipe's.", show_default=False)
    ] = None,
    points: Annotated[int, typer.Option(min=1, help="Evaluations along each run.")] = 4,
    holding: HoldingOption = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field, of one alone with NAME:FIELD=VALUE."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder, of a new comparison or one to go on with.", show_default="comparisons/RECIPE"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the table and errors.")] = False,
) -> None:
    """Train a recipe under several objectives, at equal cost.

    Such as: sdpo compare quickstart. Each run ends when it has spent the budget.

    An objective other than the recipe's begins with its own defaults and the recipe's learning rate; give each its own:
    --set ddpo:train.learning_rate=3e-3. Writes figures, a table and the runs. Given again it goes on where it was;
    given in several terminals at once, they share the work. The folder alone shows the table again.

    It makes a run of each objective and seed: 15 by default, of the quick start about 6 minutes each on one core.
    """
    from rich.console import Console

    from sdpo_cli.commands.display import show
    from sdpo_cli.commands.eval import step_counts
    from sdpo_cli.engine.comparing.plan import (
        check_arms,
        check_sources,
        is_comparison,
        parse_arms,
        parse_budget,
        parse_holding,
    )
    from sdpo_cli.engine.comparing.table import stored_comparison
    from sdpo_cli.engine.disk.artifacts import new_folder

    if len(sources) == 1 and is_comparison(sources[0]):
        check_asks_nothing_else(context)
        print_comparison(stored_comparison(Path(sources[0])), Path(sources[0]), quiet=quiet)
        return
    held, spent = parse_holding(holding) if holding else None, parse_budget(budget)
    counts = [f"eval.steps={list(step_counts(steps))}"] if steps else []
    arms, shared = parse_arms(objectives, [*counts, *(overrides or [])])
    if check_sources(sources):
        folder = new_folder(out, Path("comparisons") / "runs")
        from sdpo_cli.engine.comparing.compare import compare_runs  # imports torch, which takes seconds

        events = compare_runs([Path(one) for one in sources], folder, held)
    else:
        folder = out or Path("comparisons") / Path(sources[0]).stem
        check_arms(sources[0], arms, shared, held)
        from sdpo_cli.engine.comparing.compare import compare_trials, plan_trials

        events = compare_trials(plan_trials(sources[0], arms, shared, seeds, spent, points, folder), folder, held)
    print_comparison(show(events, Console(stderr=True), quiet=quiet), folder, quiet=quiet)
    if not quiet:
        typer.echo(f"See it again: sdpo compare {quote(str(folder))}", err=True)


def check_asks_nothing_else(context: typer.Context) -> None:
    """UsageError where an option is given that would make another comparison."""
    from sdpo_cli.errors import UsageError

    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name not in ("sources", "quiet") and source and source.name == "COMMANDLINE":
            fault, remedy = "a comparison is shown again as it was made", "leave it out, or name the recipe instead"
            raise UsageError(fault, place=option.opts[0], remedy=remedy)


def print_comparison(found: "Compared", folder: Path, *, quiet: bool) -> None:
    """The table that matters most on stdout, and where the others and the figures are."""
    from sdpo_cli.commands.tables import print_cells

    print_cells(found.cells)
    if found.missing:
        typer.echo(
            f"\n{found.missing} more being made by other processes; give the command again to see them", err=True
        )
    if not quiet:
        typer.echo(f"\nAll tables, with figures and runs beside them: {folder / 'comparison.md'}", err=True)
