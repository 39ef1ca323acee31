"""A whole `sdpo train`: load, train, keep records along the way, and show what has changed."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from sdpo_cli.api.lora_file import read_lora
from sdpo_cli.engine.adapter_files import AdapterFiles, adapter_files, base_changes
from sdpo_cli.engine.artifacts import (
    LATEST,
    RUNS,
    RunFolder,
    check_out,
    claim_run_folder,
    library_versions,
    read_epochs,
    write_recipe,
)
from sdpo_cli.engine.board import Board
from sdpo_cli.engine.changes import Resumption, by_path, check_said, check_same_run, newer_options, recorded
from sdpo_cli.engine.evaluate import Evaluation, evaluate
from sdpo_cli.engine.events import EpochDone, Event, FileWritten, Note, Resumed, StageStarted
from sdpo_cli.engine.files import read_text, write_bytes, write_text
from sdpo_cli.engine.grids import SHOWN, before_after, step_label
from sdpo_cli.engine.guarding import account, check_kept, evaluation_path, is_due, kept_epoch
from sdpo_cli.engine.images import picture_grid, png_bytes
from sdpo_cli.engine.locking import locked
from sdpo_cli.engine.records import to_json
from sdpo_cli.engine.report import ModelCard, Picture, ReportPage, draw_curves, render_model_card, render_report
from sdpo_cli.engine.rollout import encode_distinct
from sdpo_cli.engine.sampling import sample_pictures
from sdpo_cli.engine.setup import Setup, adapter_options, evaluation_plan, load_setup
from sdpo_cli.engine.signals import StopSignal, interruptible, stop_signals
from sdpo_cli.engine.trainer import train
from sdpo_cli.errors import StoppedError, UsageError
from sdpo_cli.recipe import dump_recipe, read_recipe
from sdpo_cli.registry import ResolvedRecipe, load_recipe


@dataclass(frozen=True)
class Trained:
    """A finished run: its folder, what the evaluation found, and the before/after grid."""

    folder: RunFolder
    evaluation: Evaluation
    grid: Path


def start(resolved: ResolvedRecipe, out: Path | None) -> Generator[Event, None, Trained]:
    """A new run. Nothing is written before everything is loaded."""
    name = resolved.recipe.name or "run"
    check_out(out, name)
    begun = adapter_options(resolved.recipe.model, resolved.recipe.seed).start
    if begun:
        read_lora(begun)
    yield StageStarted("load", 0, 0)
    setup = load_setup(resolved)
    folder = claim_run_folder(out, name)
    with locked(folder.path):
        check_out(out, name)  # somebody may have been faster
        write_recipe(folder, dump_recipe(resolved.recipe))
        return (yield from carry_out(setup, folder, None))


def resume(
    folder: RunFolder, settings: Sequence[str], overrides: Sequence[str] = ()
) -> Generator[Event, None, Trained]:
    """Go on with the run in `folder`, its recipe changed by `settings`.

    RecipeError where one changes what was trained by, and is not in a field that `overrides` names, or where a plug-in
    has an option now that it had not.
    """
    place = str(folder.recipe)
    with locked(folder.path):
        written, resolved = load_recipe(folder.recipe), load_recipe(folder.recipe, settings)
        newer = newer_options(read_recipe(folder.recipe).raw, written.recipe)
        said = by_path(read_recipe(folder.recipe, settings).raw)
        check_said({path: value for path, value in newer.items() if path not in said}, place)
        resumption = check_same_run(written.recipe, resolved.recipe, place, overrides, newer)
        yield StageStarted("load", 0, 0)
        return (yield from carry_out(load_setup(resolved), folder, resumption))


def carry_out(setup: Setup, folder: RunFolder, resume: Resumption | None) -> Generator[Event, None, Trained]:
    """Train, evaluate and write everything down. StoppedError after SIGINT or SIGTERM, with a checkpoint kept."""
    with stop_signals():
        try:
            return (yield from interruptible(whole_run(setup, folder, resume)))
        except StopSignal as stop:
            raise StoppedError(
                f"stopped by {stop}",
                place=str(folder.path),
                remedy=f"continue with `sdpo train --out {quote(str(folder.path))} --resume`",
                signal_number=stop.number,
            ) from None


def whole_run(setup: Setup, folder: RunFolder, resume: Resumption | None) -> Generator[Event, None, Trained]:
    """Train with records along the way, then show what has changed."""
    evaluation: Evaluation | None = None
    board: Board | None = None
    with closing(train(setup, folder, resume)) as events:
        for event in events:
            if isinstance(event, Resumed):
                write_recipe(folder, dump_recipe(setup.recipe))
            yield event
            board = board or Board(folder.tensorboard, written_metrics(folder, event))
            if isinstance(event, EpochDone):
                board.add(event.metrics)
                board.add({"images": event.metrics["images"], **event.seconds}, "seconds")
            if isinstance(event, EpochDone | Resumed) and event.epoch:
                evaluation = (yield from keep_records(setup, folder, event.epoch, evaluation)) or evaluation
    return (yield from conclude(setup, folder, evaluation))


def written_metrics(folder: RunFolder, event: Event) -> list[dict[str, Any]]:
    """The epochs written before `event`."""
    rows = read_epochs(folder.metrics, "images")
    return [row for row in rows if not isinstance(event, EpochDone) or row["epoch"] < event.epoch]


def keep_records(
    setup: Setup, folder: RunFolder, epoch: int, earlier: Evaluation | None
) -> Generator[Event, None, Evaluation | None]:
    """Sample grid and evaluation of an epoch, where they are due and not there yet; gives the evaluation."""
    train = setup.recipe.train
    grid = folder.samples / f"epoch-{epoch:05d}.png"
    if train.samples_every and (epoch % train.samples_every == 0 or epoch == train.epochs) and not grid.exists():
        write_samples(setup, grid)
    path = evaluation_path(folder, epoch)
    if not is_due(setup.recipe, epoch) or path.exists():
        return None
    found = yield from evaluate_run(setup, folder, epoch, earlier)
    write_text(path, to_json(found.report))
    return found


def write_samples(setup: Setup, path: Path) -> None:
    """The same prompts and seeds after every so many epochs, a row for each step count."""
    prompts = setup.eval_prompts[:SHOWN]
    conditioning = encode_distinct(setup.model, [prompt.text for prompt in prompts])
    seeds = [setup.recipe.seed + number for number in range(len(prompts))]
    steps = setup.recipe.eval.steps
    rows = [
        sample_pictures(setup.model, conditioning, seeds, count, setup.model.sampler, setup.recipe.eval.batch)
        for count in steps
    ]
    labels = [step_label(count) for count in steps]
    grid = picture_grid(torch.cat(rows), len(prompts), [prompt.text for prompt in prompts], labels)
    write_bytes(path, png_bytes(grid))


def evaluate_run(
    setup: Setup, folder: RunFolder, epoch: int, earlier: Evaluation | None
) -> Generator[Event, None, Evaluation]:
    """The adapter after `epoch` against the base model, whose pictures need not be drawn again."""
    rewards, plan = setup.rewards + setup.eval_rewards, evaluation_plan(setup)
    base = earlier.base if earlier else None
    found = yield from evaluate(setup.model, rewards, plan, adapter=str(folder.adapter), base=base, shown=SHOWN)
    return replace(found, epoch=epoch)


def conclude(setup: Setup, folder: RunFolder, evaluation: Evaluation | None) -> Generator[Event, None, Trained]:
    """Evaluate, where that has not just been done; write the report, the before/after grid and the model card."""
    kept = kept_epoch(folder, setup.recipe, setup.recipe.train.epochs)
    if evaluation is None or evaluation.epoch != kept:
        evaluation = yield from evaluate_run(setup, folder, kept, evaluation)
    grid = folder.path / "before-after.png"
    write_bytes(grid, png_bytes(before_after(evaluation, [prompt.text for prompt in setup.eval_prompts[:SHOWN]])))
    write_text(folder.evaluation, to_json(evaluation.report))
    metrics = read_epochs(folder.metrics, "images")
    write_bytes(folder.path / "curves.png", draw_curves(metrics))
    name, recipe = setup.recipe.name or folder.path.name, read_text(folder.recipe)
    page = ReportPage(
        title=name,
        report=evaluation.report,
        metrics=metrics,
        pictures=[Picture(grid.read_bytes(), "The same prompts and seeds, before and after training.")],
        recipe=recipe,
        versions=library_versions(),
        guard=account(folder, setup.recipe),
        changes=list(map(str, recorded(folder))),
    )
    write_text(folder.path / "report.html", render_report(page))
    adapter = write_card(setup, folder, page)
    yield FileWritten(grid, "the same prompts and seeds before and after")
    yield FileWritten(folder.path / "report.html", "the report, for a browser")
    yield FileWritten(folder.adapter, adapter.what)
    if page.guard:
        yield Note(page.guard[-1])
    check_kept(folder, setup.recipe)
    return Trained(folder, evaluation, grid)


def write_card(setup: Setup, folder: RunFolder, page: ReportPage) -> AdapterFiles:
    """Write the model card beside the adapter, with what the report says; gives what lies there."""
    adapter = adapter_files(folder.adapter)
    card = ModelCard(
        title=page.title,
        model=setup.recipe.model.name,
        source=setup.model.source,
        dtype=setup.recipe.model.dtype,
        on_hub=not Path(setup.model.source).exists(),
        recipe=page.recipe,
        versions=page.versions,
        report=page.report,
        form="lora" if adapter.kind == "lora" else "denoiser",
        component=adapter.component,
        base_changes=base_changes(setup.recipe.model.options),
        guard=page.guard,
        changes=page.changes,
    )
    write_text(folder.adapter / "README.md", render_model_card(card))
    return adapter


def find_run(named: Path | None, latest: Path | None) -> RunFolder:
    """The run to resume: the one named, else the latest. UsageError where there is none.

    `runs/latest` is called by its own name: the link may point elsewhere before the run ends.
    """
    path = latest if named in (None, RUNS / LATEST) else named
    if path is None:
        raise UsageError("no run to resume under runs/", place="--resume", remedy="name its folder")
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        raise UsageError("holds no run", place=str(path), remedy="name a folder that `sdpo train` wrote")
    return folder
