"""`sdpo train`: align a model with a reward, or go on with a run."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_cli.commands.completion import complete_recipe

if TYPE_CHECKING:
    from sdpo_cli.engine.run import Trained


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            help="A recipe file, or a shipped recipe's name; with --resume a run's folder.",
            show_default=False,
            autocompletion=complete_recipe,
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field: train.epochs=4. May be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/NAME.", show_default=False)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the named run, or the latest.")] = False,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--override",
            metavar="FIELD",
            help="With --resume: let --set, or what the field names, differ from what was trained by; it is recorded. "
            "May be repeated.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result and errors.")] = False,
) -> None:
    """Align a few-step model with a reward: sdpo train recipes/quickstart.yaml"""
    from rich.console import Console

    from sdpo_cli.commands.display import show
    from sdpo_cli.commands.tables import print_report
    from sdpo_cli.engine.artifacts import latest_run
    from sdpo_cli.errors import UsageError
    from sdpo_cli.registry import load_recipe

    if resume and recipe and out:
        raise UsageError("the run is named already", place=f"--out {out}", remedy="leave it out")
    if not resume and not recipe:
        raise UsageError("no recipe", place="sdpo train", remedy="try `sdpo train recipes/quickstart.yaml`")
    if override and not resume:
        raise UsageError("nothing is gone on with", place="--override", remedy="add --resume, or leave it out")
    resolved = load_recipe(recipe, settings or []) if recipe and not resume else None
    from sdpo_cli.engine import run  # imports torch, which takes seconds

    if resolved is None:
        events = run.resume(run.find_run(Path(recipe) if recipe else out, latest_run()), settings or [], override or [])
    else:
        events = run.start(resolved, out)
    trained = show(events, Console(stderr=True), quiet=quiet)
    print_report(trained.evaluation.report)
    if not quiet:
        print_next(trained)


def print_next(trained: "Trained") -> None:
    """Where the pictures are, and what to try next."""
    folder = trained.folder.path
    typer.echo(f"\nBefore and after: {trained.grid}")
    typer.echo("Try next:")
    typer.echo(f"  sdpo sample {quote(str(folder))} --prompt owl --prompt 'two cats' --count 4")
    typer.echo(f"  sdpo eval {quote(str(folder))} --steps 1,2,4 --images-per-prompt 4")
