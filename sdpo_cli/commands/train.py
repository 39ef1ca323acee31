"""`sdpo train`: align a model with a reward, or go on with a run."""

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_cli.commands.completion import complete_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import ModuleType

    from sdpo_cli.engine.events import Event
    from sdpo_cli.engine.training.run_request import Trained


OVERRIDE_REMEDY = "name a field that may differ, such as --override train.learning_rate"
"""What to do about an `--override` that names none."""


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
            help="With --resume: let --set, or what the field names, differ from what was trained by, such as "
            "train.learning_rate; it is recorded. May be repeated.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result and errors.")] = False,
) -> None:
    """Align a few-step model with a reward.

    Start with: sdpo train recipes/quickstart.yaml
    """
    from rich.console import Console

    from sdpo_cli.commands.display import show
    from sdpo_cli.engine.disk.artifacts import latest_run
    from sdpo_cli.engine.training.run_request import check_start, find_run, finished_run
    from sdpo_cli.engine.training.team import assembled, launched
    from sdpo_cli.registry import load_recipe

    if launched()[0]:
        from sdpo_cli.engine.training.worker import work

        work()
        return
    settings, override = settings or [], override or []
    check_asked(recipe, out, override, resume=resume)
    if recipe and not resume:
        resolved = load_recipe(recipe, settings)
        check_start(resolved, out)
        events = with_torch(lambda run: run.start(resolved, out))
    else:
        folder = find_run(Path(recipe) if recipe else out, latest_run())
        if finished := finished_run(folder, settings, override):
            with assembled():  # processes beside this one are to leave too
                print_finished(finished, quiet=quiet)
            return
        events = with_torch(lambda run: run.resume(folder, settings, override))
    print_trained(show(events, Console(stderr=True), quiet=quiet), quiet=quiet)


def check_asked(recipe: str | None, out: Path | None, override: list[str], *, resume: bool) -> None:
    """UsageError where arguments do not go together."""
    from sdpo_cli.errors import UsageError

    if resume and recipe and out:
        raise UsageError("the run is named already", place=f"--out {out}", remedy="leave it out")
    if not resume and not recipe:
        raise UsageError("no recipe", place="sdpo train", remedy="try `sdpo train recipes/quickstart.yaml`")
    if override and not resume:
        raise UsageError("nothing is gone on with", place="--override", remedy="add --resume, or leave it out")
    for one in override:
        name, equals, _ = one.partition("=")
        if not name or name.startswith("-"):  # an option that stands where the field was left out
            raise UsageError(f"{one!r} is no field", place="--override", remedy=OVERRIDE_REMEDY)
        if equals:
            remedy = f"write --set {one} --override {name}"
            raise UsageError("takes a field without a value", place=f"--override {one}", remedy=remedy)


def with_torch(begin: "Callable[[ModuleType], Generator[Event, None, Trained]]") -> "Generator[Event, None, Trained]":
    """What `begin` makes of `sdpo_cli.engine.training.run`, which imports torch: that takes seconds, and is shown."""
    from sdpo_cli.engine.events import StageStarted

    yield StageStarted("load", 0, 0)
    from sdpo_cli.engine.training import run

    return (yield from begin(run))


def print_finished(trained: "Trained", *, quiet: bool) -> None:
    """What a run found that has nothing left to do, and how it would have."""
    from sdpo_cli.commands.tables import print_report

    if not quiet:
        path = trained.folder.path
        typer.echo(f"{path}: trained and evaluated already; train on with --set train.epochs=N", err=True)
    print_report(trained.report)


def print_trained(trained: "Trained", *, quiet: bool) -> None:
    """What has changed, where the pictures are, and what to try next."""
    from sdpo_cli.commands.tables import print_report

    print_report(trained.report)
    if quiet:
        return
    folder = trained.folder.path
    typer.echo(f"\nBefore and after: {trained.folder.grid}")
    typer.echo("Try next:")
    typer.echo(f"  sdpo sample {quote(str(folder))} --prompt owl --prompt 'two cats' --count 4")
    typer.echo(f"  sdpo eval {quote(str(folder))} --steps 1,2,4 --images-per-prompt 4")
