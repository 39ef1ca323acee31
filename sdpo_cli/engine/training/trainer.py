"""A training run. One epoch is a straight line:

draw prompts -> rollout (x_t, x0, log_prob) -> score key steps -> assign credit -> update -> record
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from sdpo_cli.engine.disk.artifacts import RunFolder, append_line, check_there, forget_after, sweep
from sdpo_cli.engine.disk.changes import (
    Change,
    Resumption,
    by_path,
    changes_of,
    record,
    recorded,
)
from sdpo_cli.engine.disk.files import writing
from sdpo_cli.engine.evaluating.guarding import forget_evaluations, kept_epoch, watch
from sdpo_cli.engine.events import EpochDone, Event, Note, Resumed, StageStarted
from sdpo_cli.engine.learning.credit import KeyRewards, assign_credit
from sdpo_cli.engine.learning.ema import averaged, exchange, follow
from sdpo_cli.engine.learning.optimizer import make_optimizer
from sdpo_cli.engine.learning.preview import preview_gap
from sdpo_cli.engine.learning.reference import compared_with_base
from sdpo_cli.engine.learning.rollout import Rollouts
from sdpo_cli.engine.learning.update import Lesson, Update, check_ratio_is_one, plan_updates, update_policy
from sdpo_cli.engine.memory import with_room
from sdpo_cli.engine.rewards.scorer import Scorer
from sdpo_cli.engine.setup import Setup, adapter_options, fresh_statistics
from sdpo_cli.engine.signals import StopSignal, held
from sdpo_cli.engine.training.checkpoint import checkpoint_path, newest_snapshot, write_checkpoint
from sdpo_cli.engine.training.clock import Clock
from sdpo_cli.engine.training.continuing import carried_over, check_continues
from sdpo_cli.engine.training.faults import keeping_batches
from sdpo_cli.engine.training.kept_weights import check_kept_there, heeded, put_kept_on
from sdpo_cli.engine.training.metrics import epoch_metrics
from sdpo_cli.engine.training.remarks import beforehand, remarks, unheard
from sdpo_cli.engine.training.shares import Seat, add_adapter, gradients_of, reference_of, sampled, scored
from sdpo_cli.engine.training.snapshot import Progress, Snapshot, restore_snapshot, take_snapshot
from sdpo_cli.engine.training.team import ALONE, Team
from sdpo_cli.errors import ArtifactError, RecipeError, one_line
from sdpo_cli.maths import StepStatistics
from sdpo_cli.recipe import long_form

RATIO_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}
"""Nats per element by which replayed log-probabilities may differ from the sampled ones."""


@dataclass(frozen=True)
class Run:
    """What an epoch needs that outlives it."""

    seat: Seat
    folder: RunFolder
    optimizer: torch.optim.Optimizer

    @property
    def setup(self) -> Setup:
        """Everything loaded."""
        return self.seat.setup


@dataclass(frozen=True)
class EpochEnd:
    """What an epoch leaves to the next one."""

    done: EpochDone
    statistics: StepStatistics
    progress: Progress


def train(
    setup: Setup, folder: RunFolder, resume: Resumption | None, team: Team = ALONE
) -> Generator[Event, None, None]:
    """Train to the recipe's last epoch, or until the guard stops, yielding what happens.

    The kept epoch's adapter is on the model afterwards. The guard looks at the evaluations in the run's folder; whoever
    consumes the events makes them, before it asks for the event after EpochDone or Resumed: until then the adapter on
    the model is as it is saved, with `train.ema_decay` the average of the weights.

    Whatever stops it, a signal, a fault or a consumer that leaves, the last whole epoch is saved.

    Raises:
        TrainingError: numbers that cannot be trained on.
        PluginError: a reward failed.
        ArtifactError: nothing can be resumed, or a file cannot be written; the last checkpoint is intact.
    """
    run = start_run(Seat(setup, team), folder, resume)
    yield from beforehand(setup)
    snapshot = take_snapshot(setup.model, run.optimizer, fresh_statistics(setup), Progress(), setup.about)
    if resume:
        found, notes = newest_snapshot(folder.checkpoints)
        yield from (Note(note) for note in notes)
        if found is None:
            check_never_saved(folder)
        snapshot = found or snapshot
        snapshot, changes = go_back(run, snapshot, resume)
        yield from (Note(str(change)) for change in changes)
        with averaged(run.optimizer):
            yield Resumed(snapshot.progress.epoch, setup.recipe.train.epochs)
    yield from run_epochs(run, snapshot)


def check_never_saved(folder: RunFolder) -> None:
    """ArtifactError where a run without checkpoints has had one: to start over would drop its records and adapter."""
    if folder.adapter.exists():
        remedy = "put them back, or start a new run with another --out"
        raise ArtifactError("the run's checkpoints are gone", place=str(folder.checkpoints), remedy=remedy)


def go_back(run: Run, snapshot: Snapshot, resume: Resumption) -> tuple[Snapshot, list[Change]]:
    """Make model, optimiser and the run's files those of the snapshot.

    ArtifactError where it does not fit, RecipeError where the run has trained more epochs than it is to, or as many and
    something of it changes.

    Gives what of the snapshot the next epoch starts from, and what the run goes on with that it was not made with.
    """
    setup, epoch = run.setup, snapshot.progress.epoch
    if epoch > setup.recipe.train.epochs:
        fault = f"{setup.recipe.train.epochs} is fewer than the run has trained"
        raise RecipeError([one_line(fault, f"{run.folder.recipe}: train.epochs", f"use {epoch} or more")])
    changed = {**resume.recipe, **check_continues(snapshot, setup.about, resume.overrides)}
    now = {**by_path(long_form(setup.recipe)), **setup.about}
    changes = changes_of(recorded(run.folder), epoch, changed, now)
    new = [one for one in changes if one.epoch == epoch]
    if new and epoch == setup.recipe.train.epochs:
        fault = f"all {epoch} epochs are trained, so that nothing would be trained by another {new[0].what}"
        raise RecipeError([one_line(fault, f"{run.folder.recipe}: train.epochs", "raise it too, or change nothing")])
    check_kept_there(run.folder, setup.recipe, epoch)
    snapshot = carried_over(snapshot, changes, setup)
    restore_snapshot(snapshot, setup.model, run.optimizer)
    record(run.folder, changes)
    sweep(run.folder)
    for path in (run.folder.metrics, run.folder.timings):
        forget_after(path, epoch)
    forget_evaluations(run.folder, epoch)
    if epoch:
        save_adapter(run)
    return snapshot, new


def start_run(seat: Seat, folder: RunFolder, resume: Resumption | None) -> Run:
    """The adapter to be trained and its optimiser."""
    recipe = seat.setup.recipe
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    options = adapter_options(recipe.model, recipe.seed)
    if resume and options.start and folder.adapter.is_dir():
        options = replace(options, start=folder.adapter)  # of the same shape, and not gone like the other may be
    seat.team.perform(add_adapter, seat, options)
    optimizer = make_optimizer(recipe.train, seat.setup.model.trainable().values())
    if recipe.train.ema_decay:
        follow(optimizer, recipe.train.ema_decay)
    return Run(seat, folder, optimizer)


def run_epochs(run: Run, snapshot: Snapshot) -> Generator[Event, None, None]:
    """All epochs after the snapshot's; whatever stops them, the last whole epoch is saved."""
    train, first = run.setup.recipe.train, snapshot.progress.epoch + 1
    heard: set[Note] = set()
    try:
        judged = yield from watch(run.folder, run.setup.recipe, snapshot.progress.epoch)
        for epoch in range(first, train.epochs + 1):
            if judged and judged.action == "stop":
                break
            snapshot = heeded(run.folder, run.setup, run.optimizer, snapshot, judged)
            with keeping_batches(run.folder.faults, epoch, run.setup.recipe):
                end = yield from run_epoch(run, snapshot, epoch, check_ratio=epoch == first)
            check_there(run.folder)
            with held():
                append_line(run.folder.metrics, end.done.metrics)
                append_line(run.folder.timings, {"epoch": epoch, **end.done.seconds})
                about = run.setup.about
                snapshot = take_snapshot(run.setup.model, run.optimizer, end.statistics, end.progress, about)
            with averaged(run.optimizer):
                yield end.done
            yield from unheard(remarks(run.seat), heard)
            judged = yield from watch(run.folder, run.setup.recipe, epoch)
            if epoch % train.checkpoint_every == 0 or epoch == train.epochs or (judged and judged.wants(epoch)):
                yield StageStarted("save", epoch, train.epochs)
                save(run, snapshot)
        if put_kept_on(run.folder, run.setup, run.optimizer, snapshot.progress.epoch):
            save_adapter(run)
        exchange(run.optimizer)
    except BaseException as fault:
        try:
            keep(run, snapshot)
        except StopSignal:
            pass  # the run was at its end already, and its fault is told
        except ArtifactError:
            if not isinstance(fault, ArtifactError):
                raise
        raise


def keep(run: Run, snapshot: Snapshot) -> None:
    """Go back to the last whole epoch and save it, where there is one that is not saved yet."""
    with held():
        restore_snapshot(snapshot, run.setup.model, run.optimizer)
        epoch = snapshot.progress.epoch
        if epoch and not checkpoint_path(run.folder.checkpoints, epoch).exists():
            save(run, snapshot)


def save(run: Run, snapshot: Snapshot) -> None:
    """Write the checkpoint and refresh the adapter; a signal waits."""
    check_there(run.folder)
    recipe = run.setup.recipe
    kept = kept_epoch(run.folder, recipe, snapshot.progress.epoch)
    with held():
        write_checkpoint(run.folder.checkpoints, snapshot, keep_last=recipe.train.keep_last, keep_epoch=kept)
        save_adapter(run)


def save_adapter(run: Run) -> None:
    """Write the adapter as it is now, where weights are averaged their average."""
    with held(), averaged(run.optimizer), writing(run.folder.adapter):
        run.setup.model.save_adapter(run.folder.adapter)


def run_epoch(run: Run, snapshot: Snapshot, epoch: int, *, check_ratio: bool) -> Generator[Event, None, EpochEnd]:
    """One epoch; nothing of it is kept anywhere unless it ends."""
    seat, setup, recipe, clock = run.seat, run.setup, run.setup.recipe, Clock()
    plan, actions = setup.objective.plan, setup.actions

    first = "compiling on the way, which takes a minute or two" if check_ratio and recipe.model.compile else ""
    yield StageStarted("rollout", epoch, recipe.train.epochs, first)
    with Scorer(setup.rewards) as seat.scorer:
        with clock.stage("rollout"):
            rollouts = sampled(seat, epoch)
            if check_ratio:
                tolerance = RATIO_TOLERANCE[recipe.model.dtype]
                check_ratio_is_one(setup.model, rollouts, actions, pairs=seat.micro_batch, tolerance=tolerance)

        yield StageStarted("score", epoch, recipe.train.epochs)
        with clock.stage("score"):
            known = scored(seat)
            gap = preview_gap(setup.model, seat.scorer, rollouts)

    yield StageStarted("credit", epoch, recipe.train.epochs)
    with clock.stage("credit"):
        credited = with_room(partial(assign_credit, rollouts, known, plan, snapshot.statistics))

    yield StageStarted("update", epoch, recipe.train.epochs)
    with clock.stage("update"):
        comparing = partial(compared_with_base, setup.model, plan, recipe, rollouts, actions, seat.micro_batch)
        rollouts, divergence = with_room(partial(comparing, reference_of(seat)))
        updates = plan_updates(rollouts, actions, plan, batch=setup.batch, seed=recipe.seed, epoch=epoch)
        lesson = Lesson(setup.objective, rollouts, credited.advantage, recipe.train.kl, recipe.train.max_grad_norm)
        gradients = gradients_of(seat, lesson)
        learnt, fits = update_policy(setup.model, run.optimizer, lesson, updates, seat.micro_batch, gradients)
    seat.micro_batch = min(seat.micro_batch, fits)
    seat.forget()
    progress = advanced(snapshot.progress, rollouts, known, updates)
    metrics = epoch_metrics(progress, rollouts, known, credited, setup, {**gap, **learnt, **divergence})
    done = EpochDone(epoch, recipe.train.epochs, metrics, clock.seconds)
    return EpochEnd(done, credited.statistics, progress)


def advanced(progress: Progress, rollouts: Rollouts, known: KeyRewards, updates: Sequence[Update]) -> Progress:
    """The counters after one more epoch."""
    return Progress(
        epoch=progress.epoch + 1,
        images=progress.images + rollouts.x0.shape[0] * rollouts.x0.shape[1],
        queries=progress.queries + known.queries,
        updates=progress.updates + len(updates),
    )
