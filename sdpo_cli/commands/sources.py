"""What the commands that draw or score share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_cli.commands.completion import complete_source

if TYPE_CHECKING:
    from sdpo_cli.engine.sources import Source

SourceArgument = Annotated[
    str | None,
    typer.Argument(
        help="A run, a recipe, a model's name, or a folder in diffusers layout; default: the latest run.",
        show_default=False,
        autocompletion=complete_source,
    ),
]
EtaOption = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of fresh noise; default: the model's own.", show_default=False),
]
DeviceOption = Annotated[str, typer.Option(help="torch device; auto takes an accelerator where there is one.")]

LARGEST_SEED = 2**62
"""torch takes seeds below 2**63; the pictures after the first have the next ones."""


def said_of_source(asked: str | None, found: "Source", command: str) -> str:
    """What is taken where that was not said: the latest run, or a base model without a LoRA; empty where it was.

    `command` is the one that takes a run.
    """
    from shlex import quote

    from sdpo_cli.engine.disk.named_runs import newest_run

    if found.adapter is not None:
        return latest_line(found.adapter.parent) if asked is None else ""
    if asked is None:
        return f"no latest run under runs/: taking the base model of the recipe {found.label}"
    if found.recipe is None:
        return f"taking the base model {found.name}, without a LoRA"
    line, run = f"taking the base model of the recipe {found.label}, without a LoRA", newest_run(found.label)
    return f"{line}; for the run of this name: `{command} {quote(str(run))}`" if run else line


def latest_line(run: Path) -> str:
    """`the latest run: runs/quickstart-2, stopped after epoch 3 of 14`."""
    from sdpo_cli.engine.training.run_request import how_far

    return ", ".join(part for part in (f"taking the latest run: {run}", how_far(run)) if part)
