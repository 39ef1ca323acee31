"""`sdpo score`: rewards of pictures that are there already."""

from collections.abc import Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpo_cli.commands.completion import complete_reward
from sdpo_cli.commands.sources import DeviceOption

if TYPE_CHECKING:
    from sdpo_cli.api import Prompt, RewardSpec
    from sdpo_cli.engine.rewards.scores import ScoreReport
    from sdpo_cli.registry import Chosen


def score(
    images: Annotated[
        list[Path],
        typer.Argument(help="Pictures, folders of pictures, or a list like samples.jsonl.", show_default=False),
    ],
    reward: Annotated[
        list[str],
        typer.Option(
            help="A reward as in a recipe: emoji-clip, or '{emoji-style: {style: flat}}'. May be repeated.",
            show_default=False,
            autocompletion=complete_reward,
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="CSV or JSONL with file and prompt, or a .txt in the order of the pictures."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The scores file; default: scores.jsonl in the folder that is scored.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the file has of these rewards.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Pictures scored at once.")] = 32,
    device: DeviceOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but the summary and errors.")] = False,
) -> None:
    """Score pictures with one or several rewards.

    A folder with a samples.jsonl stands for the pictures of that list. Prompts come from --prompts, else from the
    PNG's metadata, else from NAME.txt beside it, else from samples.jsonl.
    Scores are added to scores.jsonl; what it has already is not scored again.
    """
    from rich.console import Console

    from sdpo_cli.commands.display import show
    from sdpo_cli.engine.rewards.pictures import find_pictures, with_prompts
    from sdpo_cli.errors import PluginError
    from sdpo_cli.registry import chosen_rewards

    chosen = chosen_rewards(reward, "--reward")
    found, given = find_pictures(images), given_prompts(prompts)
    from sdpo_cli.engine.rewards.scores import score_files  # imports torch, which takes seconds
    from sdpo_cli.engine.setup import pick_device

    pictures = with_prompts(found, given, prompts)
    torch_device = pick_device(device)
    rewards = loaded_rewards(chosen, str(torch_device))
    path = out or default_out(images)
    work = score_files(pictures, rewards, path, batch=batch, overwrite=overwrite, device=torch_device)
    report = show(work, Console(stderr=True), quiet=quiet)
    print_report(report, as_json=as_json)
    if report.failed:
        count, first = len(report.failed), report.failed[0]
        raise PluginError(f"{count} of {report.pictures} pictures could not be scored, the first: {first}")


def loaded_rewards(chosen: "Sequence[Chosen[RewardSpec]]", device: str) -> list[Any]:
    """The rewards ready to score, each once."""
    from sdpo_cli.api import LoadContext
    from sdpo_cli.engine.rewards.scores import FileReward
    from sdpo_cli.engine.rewards.scoring import full_version

    context = LoadContext(device=device)
    loaded = [(one, one.load(context)) for one in chosen]
    rewards = [
        FileReward(one.name, one.plugin.full_name, full_version(one.spec.version, reward), one.all_options(), reward)
        for one, reward in loaded
    ]
    return [one for index, one in enumerate(rewards) if one.said not in [other.said for other in rewards[:index]]]


def given_prompts(path: Path | None) -> "Sequence[Prompt]":
    """The prompts of --prompts."""
    from sdpo_cli.api import LoadContext
    from sdpo_cli.registry import load_registry

    return load_registry().prompts("file", {"path": str(path)}, "--prompts").load(LoadContext()) if path else ()


def default_out(images: Sequence[Path]) -> Path:
    """`scores.jsonl` in the one folder, or beside the one list, that is scored; else in the working folder."""
    folder = images[0] if images[0].is_dir() else images[0].parent
    alone = len(images) == 1 and (images[0].is_dir() or images[0].suffix == ".jsonl")
    return (folder if alone else Path()) / "scores.jsonl"


def print_report(report: "ScoreReport", *, as_json: bool) -> None:
    """The summary on stdout: a table, or JSON."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if as_json:
        typer.echo(dumps(asdict(report) | {"path": str(report.path)}, indent=2, ensure_ascii=False))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("reward", no_wrap=True)
    table.add_column("options")
    for column in ("pictures", "mean", "sd", "min", "max"):
        table.add_column(column, justify="right")
    for row in report.summaries:
        options = ", ".join(f"{key} {value}" for key, value in row.options.items())
        numbers = ("-" if value is None else f"{value:.4f}" for value in (row.mean, row.sd, row.min, row.max))
        table.add_row(row.reward, options, str(row.count), *numbers)
    Console(markup=False, highlight=False, emoji=False).print(table)
