"""The kept epoch's weights, put on the model."""

from dataclasses import replace
from pathlib import Path

from torch.optim import Optimizer

from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.disk.changes import recorded
from sdpo_cli.engine.evaluating.guard import Judgement, lr_share
from sdpo_cli.engine.evaluating.guarding import kept_epoch
from sdpo_cli.engine.setup import Setup
from sdpo_cli.engine.training.checkpoint import checkpoint_path, read_checkpoint, verify
from sdpo_cli.engine.training.continuing import carried_over
from sdpo_cli.engine.training.snapshot import Snapshot, restore_snapshot
from sdpo_cli.errors import ArtifactError
from sdpo_cli.recipe import Recipe


def heeded(
    folder: RunFolder, setup: Setup, optimizer: Optimizer, snapshot: Snapshot, judged: Judgement | None
) -> Snapshot:
    """What the next epoch starts from: the snapshot, or the kept epoch's where the guard has just said to go back.

    The counters go on, so that no prompt or noise is drawn twice.
    """
    for group in optimizer.param_groups:
        group["lr"] = setup.recipe.train.learning_rate * lr_share(setup.recipe.guard, judged)
    if judged is None or judged.best is None or (judged.action, judged.epoch) != ("go back", snapshot.progress.epoch):
        return snapshot
    best = carried_over(read_kept(folder, judged.best), recorded(folder), setup)
    restore_snapshot(best, setup.model, optimizer)
    return replace(best, progress=snapshot.progress)


def put_kept_on(folder: RunFolder, setup: Setup, optimizer: Optimizer, epoch: int) -> bool:
    """Put the kept epoch's weights on the model, where it is not `epoch`, the last one trained; whether it is not."""
    kept = kept_epoch(folder, setup.recipe, epoch)
    if kept != epoch:
        restore_snapshot(read_kept(folder, kept), setup.model, optimizer)
    return kept != epoch


def read_kept(folder: RunFolder, epoch: int) -> Snapshot:
    """The checkpoint of the kept epoch. ArtifactError where it is gone or damaged."""
    return read_checkpoint(kept_path(folder, epoch))


def kept_path(folder: RunFolder, epoch: int) -> Path:
    """Where the kept epoch's checkpoint is. ArtifactError where it is gone."""
    path = checkpoint_path(folder.checkpoints, epoch)
    if not path.is_dir():
        remedy = "put it back, or the guard's rules as they were"
        raise ArtifactError("the kept epoch's checkpoint is gone", place=str(path), remedy=remedy)
    return path


def check_kept_there(folder: RunFolder, recipe: Recipe, epoch: int) -> None:
    """ArtifactError where a run cannot go on after `epoch`, for its kept epoch's checkpoint is gone or damaged."""
    kept = kept_epoch(folder, recipe, epoch)
    if kept != epoch:
        verify(kept_path(folder, kept))
