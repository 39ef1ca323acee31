"""`sdpo bench`: how fast a recipe trains on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdpo_cli.commands.completion import complete_recipe

if TYPE_CHECKING:
    from sdpo_cli.engine.benching.record import BenchResult


def bench(
    recipe: Annotated[
        str, typer.Argument(help="A recipe file, or a shipped recipe's name.", autocompletion=complete_recipe)
    ] = "quickstart",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field: model.compile=true. May be repeated."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to measure, after a first one, in each of two ways.")] = 3,
    repeat: Annotated[
        int, typer.Option(min=1, help="Measurements, each from loading on: the median and the range are shown.")
    ] = 1,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="A known model's architecture with random weights: no download.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the result as JSON.", show_default=False)] = None,
    against: Annotated[Path | None, typer.Option(help="An earlier result to compare with.", show_default=False)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the result and errors.")] = False,
) -> None:
    """Measure how fast a recipe trains here.

    Such as: sdpo bench aesthetic --random-weights. Writes nothing but what --json names. An earlier result must be
    of the same recipe on the same device; fields that change speed alone, such as train.micro_batch and model.compile,
    may differ.
    """
    from rich.console import Console

    from sdpo_cli.commands.display import show
    from sdpo_cli.engine.disk.files import check_named, check_writable, write_text
    from sdpo_cli.registry import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    if against:
        check_named(against)
    if json:
        check_writable(json)
    from sdpo_cli.engine.benching.bench import bench as measure  # imports torch, which takes seconds
    from sdpo_cli.engine.benching.bench import conditions
    from sdpo_cli.engine.benching.record import as_json, check_comparable, check_replaceable, read_result

    if json:
        check_replaceable(json)
    earlier = read_result(against) if against else None
    if earlier and against:
        check_comparable(conditions(resolved, random_weights=random_weights), earlier, against)
    work = measure(resolved, epochs=epochs, repeat=repeat, random_weights=random_weights)
    result = show(work, Console(stderr=True), quiet=quiet)
    if json:
        write_text(json, as_json(result))
    print_result(result, earlier)


def print_result(result: "BenchResult", earlier: "BenchResult | None") -> None:
    """The stages as a table, then the rates."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage", no_wrap=True)
    for column in ("seconds", "share", "GB", "of matrix rate", *(["before"] if earlier else [])):
        table.add_column(column, justify="right", no_wrap=True)
    total = sum(stage.mean for stage in result.stages.values())
    for name, stage in result.stages.items():
        used = f"{stage.utilisation:.1%}" if stage.utilisation is not None else ""
        before = [f"{earlier.stages[name].mean:.3f}"] if earlier else []
        table.add_row(name, spread(stage.seconds), f"{stage.mean / total:.0%}", f"{stage.peak_gb:.1f}", used, *before)
    Console(markup=False, highlight=False, emoji=False).print(table)
    for line in summary(result, earlier):
        print(line)


def summary(result: "BenchResult", earlier: "BenchResult | None") -> list[str]:
    """What a whole epoch takes, and what it ran on."""
    pairs, images = result.pairs / result.epoch, result.images / result.epoch
    faster = f"; {earlier.epoch / result.epoch:.2f} times as fast as before" if earlier else ""
    without = f" without {', '.join(result.absent)}" if result.absent else ""
    syncs = "" if result.host_syncs is None else f"; the host waited {result.host_syncs} times an epoch"
    return [
        f"epoch: {spread(result.epochs)} s, stages overlapping; the first {result.first_epoch:.1f} s",
        f"{pairs:.3g} pairs/s, {images:.3g} images/s{faster}",
        *repeated(result),
        f"{result.utilisation:.1%} of the matrix rate, which is {result.matrix_rate / 1e12:.3g} TFLOP/s",
        f"peak {peaks(result)} GB{without}, micro_batch {result.micro_batch}; "
        f"graphs compiled after the first epoch: {result.new_graphs}{syncs}",
        f"{result.device}, torch {result.torch}, sdpo {result.sdpo}",
    ]


def repeated(result: "BenchResult") -> list[str]:
    """The range of several measurements."""
    rates = sorted(result.pairs / epoch for epoch in result.repeats)
    if len(rates) < 2:
        return []
    return [f"the one in the middle of {len(rates)} measurements, {rates[0]:.3g} to {rates[-1]:.3g} pairs/s"]


def peaks(result: "BenchResult") -> str:
    """The most memory of an epoch; of several epochs, that of the first and of the last."""
    first, *others = result.peaks_gb
    return f"{first:.2f} (first epoch) to {others[-1]:.2f} (last)" if others else f"{first:.1f}"


def spread(seconds: "list[float] | tuple[float, ...]") -> str:
    """`2.310 ± 0.040`: the mean, and of several half the way from the shortest to the longest."""
    mean, half = sum(seconds) / len(seconds), (max(seconds) - min(seconds)) / 2
    return f"{mean:.3f} ± {half:.3f}" if len(seconds) > 1 else f"{mean:.3f}"
