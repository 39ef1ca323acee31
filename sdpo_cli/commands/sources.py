"""What `sdpo sample` and `sdpo eval` share."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from sdpo_cli.engine.sources import Source

LARGEST_SEED = 2**62
"""torch takes seeds below 2**63; the pictures after the first have the next ones."""


def say_fallback(asked: str | None, found: "Source", *, quiet: bool) -> None:
    """Tell on stderr when nothing was asked for and there is no run to take."""
    if asked is None and found.adapter is None and not quiet:
        typer.echo(f"no run under runs/: taking the base model of the recipe {found.label}", err=True)
