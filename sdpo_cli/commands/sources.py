"""What the commands that draw or score share."""

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


def say_fallback(asked: str | None, found: "Source", *, quiet: bool) -> None:
    """Tell on stderr when nothing was asked for and there is no run to take."""
    if asked is None and found.adapter is None and not quiet:
        typer.echo(f"no latest run under runs/: taking the base model of the recipe {found.label}", err=True)
