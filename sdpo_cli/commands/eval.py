"""`sdpo eval`: base model and adapter on the same prompts and seeds."""

from pathlib import Path
from typing import Annotated

import typer

from sdpo_cli.commands.completion import complete_prompts, complete_reward
from sdpo_cli.commands.sources import LARGEST_SEED, DeviceOption, EtaOption, SourceArgument, said_of_source


def evaluate(
    source: SourceArgument = None,
    steps: Annotated[
        str | None, typer.Option(help="Step counts, as in 1,2,4; default: the recipe's.", show_default=False)
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="A reward as in a recipe, instead of the recipe's. May be repeated.",
            show_default=False,
            autocompletion=complete_reward,
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="A prompt source or file; default: the recipe's.", show_default=False, autocompletion=complete_prompts
        ),
    ] = None,
    images_per_prompt: Annotated[
        int | None, typer.Option(min=1, help="Pictures of each prompt; default: the recipe's.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the first picture.", show_default=False)
    ] = None,
    eta: EtaOption = None,
    out: Annotated[Path | None, typer.Option(help="A new folder; default: evals/SOURCE.", show_default=False)] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures drawn at once.")] = 32,
    device: DeviceOption = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the table and errors.")] = False,
) -> None:
    """Compare an adapter with its base model by step count.

    Such as: sdpo eval --steps 1,2,4. Writes report.json, values.jsonl, report.html and a picture grid. Without an
    adapter it measures the model alone.
    """
    from rich.console import Console

    from sdpo_cli.commands.display import show
    from sdpo_cli.commands.tables import print_report
    from sdpo_cli.engine.disk.artifacts import new_folder
    from sdpo_cli.engine.sources import find_source

    counts, found = step_counts(steps) if steps else None, find_source(source)
    folder = new_folder(out, Path("evals") / found.label)
    from sdpo_cli.engine.evaluation_run import Request, evaluate_source  # imports torch, which takes seconds

    request = Request(
        steps=counts,
        rewards=reward or [],
        prompts=prompts,
        images_per_prompt=images_per_prompt,
        seed=seed,
        eta=eta,
        batch=batch,
        device=device,
    )
    events = evaluate_source(found, request, folder, said_of_source(source, found, "sdpo eval"))
    evaluation = show(events, Console(stderr=True), quiet=quiet)
    print_report(evaluation.report)


def step_counts(text: str) -> tuple[int, ...]:
    """`1,2,4` as numbers. UsageError where it is something else."""
    from sdpo_cli.errors import UsageError

    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        number = int(part) if part.isascii() and part.isdigit() and len(part) < 6 else 0
        if not number:
            wanted = "below 100000" if part.isdigit() and part.strip("0") else "1 or more"
            fault = f"{part!r} should be a whole number, {wanted}"
            raise UsageError(fault, place="--steps", remedy="write them as in 1,2,4")
    return tuple(dict.fromkeys(int(part) for part in parts))
