"""A training run. One epoch is a straight line:

draw prompts -> rollout (x_t, x0, log_prob) -> score key steps -> assign credit -> update -> record
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from sdpo_cli.api.tensors import Conditioning
from sdpo_cli.engine.artifacts import RunFolder, append_line, check_there, forget_after, sweep
from sdpo_cli.engine.changes import (
    Change,
    Resumption,
    by_path,
    changes_of,
    record,
    recorded,
)
from sdpo_cli.engine.checkpoint import checkpoint_path, newest_snapshot, write_checkpoint
from sdpo_cli.engine.clock import Clock
from sdpo_cli.engine.continuing import carried_over, check_continues
from sdpo_cli.engine.credit import (
    Asked,
    KeyRewards,
    ask_rewards,
    assign_credit,
    key_rewards,
)
from sdpo_cli.engine.ema import averaged, exchange, follow
from sdpo_cli.engine.events import EpochDone, Event, Note, Resumed, StageStarted
from sdpo_cli.engine.faults import keeping_batches
from sdpo_cli.engine.files import writing
from sdpo_cli.engine.guarding import forget_evaluations, kept_epoch, watch
from sdpo_cli.engine.kept_weights import check_kept_there, heeded, put_kept_on
from sdpo_cli.engine.memory import fitting
from sdpo_cli.engine.metrics import epoch_metrics
from sdpo_cli.engine.optimizer import make_optimizer
from sdpo_cli.engine.preview import preview_gap
from sdpo_cli.engine.reference import compared_with_base
from sdpo_cli.engine.rollout import (
    Draw,
    Rollouts,
    action_steps,
    draw_prompts,
    encode_distinct,
    joined_rollouts,
    roll_out_parts,
)
from sdpo_cli.engine.scorer import Scorer
from sdpo_cli.engine.setup import Setup, adapter_options, fresh_statistics
from sdpo_cli.engine.signals import held
from sdpo_cli.engine.snapshot import Progress, Snapshot, restore_snapshot, take_snapshot
from sdpo_cli.engine.update import Lesson, Update, check_ratio_is_one, plan_updates, update_policy
from sdpo_cli.errors import ArtifactError, RecipeError, one_line
from sdpo_cli.maths import StepStatistics
from sdpo_cli.recipe import long_form

RATIO_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 5e-3}
"""Nats per element by which replayed log-probabilities may differ from the sampled ones."""


@dataclass(frozen=True)
class Run:
    """What an epoch needs that outlives it; `known` holds the prompts encoded so far."""

    setup: Setup
    folder: RunFolder
    optimizer: torch.optim.Optimizer
    known: dict[str, Conditioning] = field(default_factory=dict)


@dataclass(frozen=True)
class EpochEnd:
    """What an epoch leaves to the next one."""

    done: EpochDone
    statistics: StepStatistics
    progress: Progress
    micro_batch: int


def train(setup: Setup, folder: RunFolder, resume: Resumption | None) -> Generator[Event, None, None]:
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
    run = start_run(setup, folder, resume)
    quiet, steps = int((setup.kernel.std == 0).sum()), len(setup.kernel)
    if quiet:
        yield Note(f"steps of a rollout that draw no noise, and so carry no gradient: {quiet} of {steps}")
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


def start_run(setup: Setup, folder: RunFolder, resume: Resumption | None) -> Run:
    """The adapter to be trained and its optimiser."""
    recipe = setup.recipe
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    options = adapter_options(recipe.model, recipe.seed)
    if resume and options.start and folder.adapter.is_dir():
        options = replace(options, start=folder.adapter)  # of the same shape, and not gone like the other may be
    setup.model.add_adapter(options)
    optimizer = make_optimizer(recipe.train, setup.model.trainable().values())
    if recipe.train.ema_decay:
        follow(optimizer, recipe.train.ema_decay)
    return Run(setup, folder, optimizer)


def run_epochs(run: Run, snapshot: Snapshot) -> Generator[Event, None, None]:
    """All epochs after the snapshot's; whatever stops them, the last whole epoch is saved."""
    train, first, micro_batch = run.setup.recipe.train, snapshot.progress.epoch + 1, run.setup.micro_batch
    try:
        judged = yield from watch(run.folder, run.setup.recipe, snapshot.progress.epoch)
        for epoch in range(first, train.epochs + 1):
            if judged and judged.action == "stop":
                break
            snapshot = heeded(run.folder, run.setup, run.optimizer, snapshot, judged)
            with keeping_batches(run.folder.faults, epoch, run.setup.recipe):
                end = yield from run_epoch(run, snapshot, epoch, micro_batch, check_ratio=epoch == first)
            check_there(run.folder)
            with held():
                append_line(run.folder.metrics, end.done.metrics)
                append_line(run.folder.timings, {"epoch": epoch, **end.done.seconds})
                about = run.setup.about
                snapshot = take_snapshot(run.setup.model, run.optimizer, end.statistics, end.progress, about)
            micro_batch = end.micro_batch
            with averaged(run.optimizer):
                yield end.done
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


def run_epoch(
    run: Run, snapshot: Snapshot, epoch: int, micro_batch: int, *, check_ratio: bool
) -> Generator[Event, None, EpochEnd]:
    """One epoch; nothing of it is kept anywhere unless it ends."""
    setup, recipe, plan, clock = run.setup, run.setup.recipe, run.setup.objective.plan, Clock()

    first = "compiling on the way, which takes minutes" if check_ratio and recipe.model.compile else ""
    yield StageStarted("rollout", epoch, recipe.train.epochs, first)
    with Scorer(setup.rewards) as scorer:
        with clock.stage("rollout"):
            roll = partial(roll_out_and_ask, setup, scorer, draw_epoch(run, epoch))
            (rollouts, asked), micro_batch = fitting(roll, micro_batch, "pair")
            actions = action_steps(setup.kernel, plan)
            if check_ratio:
                tolerance = RATIO_TOLERANCE[recipe.model.dtype]
                check_ratio_is_one(setup.model, rollouts, actions, pairs=micro_batch, tolerance=tolerance)

        yield StageStarted("score", epoch, recipe.train.epochs)
        with clock.stage("score"):
            scored = key_rewards(scorer, asked)
            gap = preview_gap(setup.model, scorer, rollouts)

    yield StageStarted("credit", epoch, recipe.train.epochs)
    with clock.stage("credit"):
        credited = assign_credit(rollouts, scored, plan, snapshot.statistics)

    yield StageStarted("update", epoch, recipe.train.epochs)
    with clock.stage("update"):
        rollouts, divergence = compared_with_base(setup, rollouts, actions, micro_batch)
        updates = plan_updates(rollouts, actions, plan, batch=setup.batch, seed=recipe.seed, epoch=epoch)
        lesson = Lesson(setup.objective, rollouts, credited.advantage, recipe.train.kl, recipe.train.max_grad_norm)
        learnt, micro_batch = update_policy(setup.model, run.optimizer, lesson, updates, micro_batch)
    progress = advanced(snapshot.progress, rollouts, scored, updates)
    metrics = epoch_metrics(progress, rollouts, scored, credited, plan, {**gap, **learnt, **divergence})
    done = EpochDone(epoch, recipe.train.epochs, metrics, clock.seconds)
    return EpochEnd(done, credited.statistics, progress, micro_batch)


def roll_out_and_ask(setup: Setup, scorer: Scorer, draw: Draw, batch: int) -> tuple[Rollouts, list[Asked]]:
    """Sample the epoch, `batch` pairs at a time; the finished ones are scored while the next are sampled."""
    scorer.forget()  # what an attempt that ran out of memory has asked
    plan, parts, asked = setup.objective.plan, [], []
    for part in roll_out_parts(setup.model, setup.kernel, draw, plan, setup.recipe.seed, batch):
        parts.append(part)
        pictures = asked[-1].batch if asked else setup.decoded_at_once(batch)
        asked.append(ask_rewards(setup.model, scorer, part, plan, pictures))
    return joined_rollouts(draw, parts), asked


def advanced(progress: Progress, rollouts: Rollouts, scored: KeyRewards, updates: Sequence[Update]) -> Progress:
    """The counters after one more epoch."""
    return Progress(
        epoch=progress.epoch + 1,
        images=progress.images + rollouts.x0.shape[0] * rollouts.x0.shape[1],
        queries=progress.queries + scored.queries,
        updates=progress.updates + len(updates),
    )


def draw_epoch(run: Run, epoch: int) -> Draw:
    """The epoch's prompts, encoded."""
    recipe = run.setup.recipe
    prompts = draw_prompts(run.setup.prompts, recipe.rollout.pairs, epoch, recipe.seed)
    texts = [prompt.text for prompt in prompts]
    return Draw(prompts, (epoch - 1) * recipe.rollout.pairs, encode_distinct(run.setup.model, texts, known=run.known))
