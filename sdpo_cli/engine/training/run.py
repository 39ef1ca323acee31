"""A whole `sdpo train`: load, train, keep records along the way, and show what has changed."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from sdpo_cli.api.lora_file import read_lora
from sdpo_cli.engine.disk.artifacts import (
    RunFolder,
    check_out,
    claim_run_folder,
    library_versions,
    read_epochs,
    write_recipe,
)
from sdpo_cli.engine.disk.board import Board
from sdpo_cli.engine.disk.changes import Resumption, recorded
from sdpo_cli.engine.disk.files import read_text, write_bytes, write_text, writing
from sdpo_cli.engine.disk.images import picture_grid, png_bytes
from sdpo_cli.engine.disk.locking import locked
from sdpo_cli.engine.evaluating.evaluate import Evaluation, evaluate
from sdpo_cli.engine.evaluating.grids import SHOWN, before_after, step_label
from sdpo_cli.engine.evaluating.guarding import account, check_kept, evaluation_path, is_due, kept_epoch
from sdpo_cli.engine.evaluating.records import to_json
from sdpo_cli.engine.evaluating.report import (
    ModelCard,
    Picture,
    ReportPage,
    draw_curves,
    render_model_card,
    render_report,
)
from sdpo_cli.engine.evaluating.sampling import sample_pictures
from sdpo_cli.engine.events import EpochDone, Event, FileWritten, Note, Resumed, StageStarted
from sdpo_cli.engine.learning.rollout import encode_distinct
from sdpo_cli.engine.memory import with_room
from sdpo_cli.engine.setup import Setup, adapter_options, evaluation_plan, load_setup
from sdpo_cli.engine.signals import StopSignal, interruptible, stop_signals
from sdpo_cli.engine.training.adapter_files import AdapterFiles, adapter_files, base_changes
from sdpo_cli.engine.training.base_evaluation import base_path, read_base, write_base
from sdpo_cli.engine.training.run_request import Trained, check_start, read_resumption
from sdpo_cli.engine.training.shares import check_alike
from sdpo_cli.engine.training.team import ALONE, GoneError, Team, assembled
from sdpo_cli.engine.training.trainer import train
from sdpo_cli.errors import PluginError, StoppedError, TrainingError
from sdpo_cli.recipe import dump_recipe, long_form
from sdpo_cli.registry import ResolvedRecipe
from sdpo_cli.registry.functions import is_function_name


def start(resolved: ResolvedRecipe, out: Path | None, bases: Path | None = None) -> Generator[Event, None, Trained]:
    """A new run. Nothing is written before everything is loaded.

    With `bases`, what the base model draws for an evaluation is kept in that folder and taken from there.
    """
    name = check_start(resolved, out)
    begun = adapter_options(resolved.recipe.model, resolved.recipe.seed).start
    if begun:
        read_lora(begun)
    yield StageStarted("load", 0, 0)
    with assembled() as team:
        setup = yield from load_everywhere(resolved, team)
        folder = claim_run_folder(out, name)
        with locked(folder.path):
            check_out(out, name)  # somebody may have been faster
            write_recipe(folder, dump_recipe(resolved.recipe))
            yield FileWritten(folder.path, "the run's folder")
            return (yield from carry_out(replace(setup, bases=bases), folder, None, team))


def resume(
    folder: RunFolder, settings: Sequence[str], overrides: Sequence[str] = (), bases: Path | None = None
) -> Generator[Event, None, Trained]:
    """Go on with the run in `folder`, its recipe changed by `settings`, `bases` as of `start`.

    Errors as of `read_resumption`.
    """
    with locked(folder.path):
        reread = read_resumption(folder, settings, overrides)
        yield FileWritten(folder.path, "the run's folder")
        yield StageStarted("load", 0, 0)
        with assembled() as team:
            setup = yield from load_everywhere(reread.wanted, team)
            return (yield from carry_out(replace(setup, bases=bases), folder, reread.resumption, team))


def load_everywhere(resolved: ResolvedRecipe, team: Team) -> Generator[Event, None, Setup]:
    """Load what the recipe names while all other processes load it too."""
    with team.told((long_form(resolved.recipe), resolved.place)) as others:
        setup = yield from load_setup(resolved, team.device(resolved.recipe.train.device))
    check_alike(setup, others)
    if team.size > 1:
        yield Note(f"processes that share the work: {team.size}")
    return setup


def carry_out(
    setup: Setup, folder: RunFolder, resume: Resumption | None, team: Team
) -> Generator[Event, None, Trained]:
    """Train, evaluate and write everything down.

    StoppedError after SIGINT or SIGTERM, TrainingError where a process has died and PluginError where a reward or the
    model failed, with a checkpoint kept.
    """
    remedy = f"continue with `sdpo train --out {quote(str(folder.path))} --resume`"
    with stop_signals():
        try:
            return (yield from interruptible(whole_run(setup, folder, resume, team)))
        except StopSignal as stop:
            fault = f"stopped by {stop}"
            raise StoppedError(fault, place=str(folder.path), remedy=remedy, signal_number=stop.number) from None
        except GoneError as gone:
            raise TrainingError(gone.fault, place=str(folder.path), remedy=remedy) from gone
        except PluginError as fault:
            if setup.bases:  # a run of a comparison, which is given its own command again
                raise
            raise to_be_mended(setup, fault, remedy) from fault


def to_be_mended(setup: Setup, fault: PluginError, remedy: str) -> PluginError:
    """The fault of a reward or model with the command that goes on; a function that is mended is another version."""
    mended = any(is_function_name(one.name) and one.name in fault.place for one in setup.rewards + setup.eval_rewards)
    then = f"{remedy.removesuffix('`')} --override reward`" if mended else remedy
    whole = f"{fault.remedy}; then {then}" if fault.remedy else then
    return PluginError(fault.fault, place=fault.place, remedy=whole)


def whole_run(
    setup: Setup, folder: RunFolder, resume: Resumption | None, team: Team = ALONE
) -> Generator[Event, None, Trained]:
    """Train with records along the way, then show what has changed."""
    evaluation: Evaluation | None = None
    board: Board | None = None
    with closing(train(setup, folder, resume, team)) as events:
        for event in events:
            if isinstance(event, Resumed):
                forget_report(folder)
                write_recipe(folder, dump_recipe(setup.recipe))
            yield event
            board = board or Board(folder.tensorboard, written_metrics(folder, event))
            if isinstance(event, EpochDone):
                board.add(event.metrics)
                board.add({"images": event.metrics["images"], **event.seconds}, "seconds")
            if isinstance(event, EpochDone | Resumed) and event.epoch:
                evaluation = (yield from keep_records(setup, folder, event.epoch, evaluation)) or evaluation
    return (yield from conclude(setup, folder, evaluation))


def forget_report(folder: RunFolder) -> None:
    """Remove the report: it stands for a run that has ended, and is of another state than the one to come."""
    with writing(folder.evaluation):
        folder.evaluation.unlink(missing_ok=True)


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
    steps, sampler = setup.recipe.eval.steps, setup.model.sampler
    rows = [
        with_room(partial(sample_pictures, setup.model, conditioning, seeds, count, sampler, setup.recipe.eval.batch))
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
    kept = base_path(setup.bases, setup) if setup.bases and not earlier else None
    base = earlier.base if earlier else kept and read_base(kept)
    found = yield from evaluate(setup.model, rewards, plan, adapter=str(folder.adapter), base=base, shown=SHOWN)
    if kept and not base:
        write_base(kept, found.base)
    return replace(found, epoch=epoch)


def conclude(setup: Setup, folder: RunFolder, evaluation: Evaluation | None) -> Generator[Event, None, Trained]:
    """Evaluate, where that has not just been done; write grid, curves, page, model card and, last, the report."""
    kept = kept_epoch(folder, setup.recipe, setup.recipe.train.epochs)
    if evaluation is None or evaluation.epoch != kept:
        evaluation = yield from evaluate_run(setup, folder, kept, evaluation)
    shown = [prompt.text for prompt in setup.eval_prompts[:SHOWN]]
    write_bytes(folder.grid, png_bytes(before_after(evaluation, shown)))
    metrics = read_epochs(folder.metrics, "images")
    write_bytes(folder.path / "curves.png", draw_curves(metrics))
    name, recipe = setup.recipe.name or folder.path.name, read_text(folder.recipe)
    page = ReportPage(
        title=name,
        report=evaluation.report,
        metrics=metrics,
        pictures=[Picture(folder.grid.read_bytes(), "The same prompts and seeds, before and after training.")],
        recipe=recipe,
        versions=library_versions(),
        guard=account(folder, setup.recipe),
        changes=list(map(str, recorded(folder))),
    )
    write_text(folder.page, render_report(page))
    adapter = write_card(setup, folder, page)
    write_text(folder.evaluation, to_json(evaluation.report))
    yield FileWritten(folder.page, "the report, for a browser")
    yield FileWritten(folder.adapter, adapter.what)
    if page.guard:
        yield Note(page.guard[-1])
    check_kept(folder, setup.recipe)
    return Trained(folder, evaluation.report)


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
