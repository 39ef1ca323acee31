"""`sdpo export`: a trained adapter in the forms that other programs read."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from sdpo_cli.commands.sources import DeviceOption, latest_line


def export(
    run: Annotated[
        str | None,
        typer.Argument(help="A run, or an adapter's folder; default: the latest run.", show_default=False),
    ] = None,
    format: Annotated[
        Literal["diffusers", "kohya", "merged"],
        typer.Option(help="Files for diffusers; for ComfyUI and kohya's tools; or merged into the base model."),
    ] = "diffusers",
    out: Annotated[
        Path | None, typer.Option(help="A new folder; default: exports/RUN-FORMAT.", show_default=False)
    ] = None,
    denoiser_only: Annotated[
        bool, typer.Option("--denoiser-only", help="Of the merged pipeline, the denoiser alone.")
    ] = False,
    device: DeviceOption = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the path and errors.")] = False,
) -> None:
    """Write a trained adapter for other programs.

    Such as: sdpo export runs/quickstart --format kohya. The folder holds the weights and, where the run is known, a
    model card.
    """
    from rich.console import Console

    from sdpo_cli.commands.display import show
    from sdpo_cli.engine.disk.artifacts import new_folder
    from sdpo_cli.engine.sources import adapter_folder

    place, of_run = adapter_folder(run)
    from sdpo_cli.engine.export import Order, check_order, find_adapter  # imports torch, which takes seconds
    from sdpo_cli.engine.export import export as carry_out

    found, order = find_adapter(place, of_run), Order(format, denoiser_only, device)
    check_order(found, order)
    folder = new_folder(out, Path("exports") / f"{found.label}-{format}")
    if run is None and of_run and not quiet:
        typer.echo(latest_line(of_run.path), err=True)
    typer.echo(show(carry_out(found, order, folder), Console(stderr=True), quiet=quiet))
