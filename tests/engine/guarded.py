"""Guarded runs on the tiny model, driven as `whole_run` drives them."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import tiny

from sdpo_cli.engine.disk.artifacts import RunFolder, write_recipe
from sdpo_cli.engine.disk.changes import Resumption
from sdpo_cli.engine.events import EpochDone, Event, Resumed
from sdpo_cli.engine.setup import Setup
from sdpo_cli.engine.training.run import keep_records
from sdpo_cli.engine.training.trainer import train
from sdpo_cli.recipe import GuardSection, KeepBestSection, RollbackSection, StopRule, dump_recipe

EPOCHS = 3
RATE = 1e-2


def watched_setup(
    checkpoint: Path, guard: GuardSection, *, every: int = 1, rate: float = RATE, **train: object
) -> Setup:
    """The tiny setup with an evaluation of 1-step pictures every `every` epochs."""
    setup = tiny.setup(checkpoint, epochs=EPOCHS, steps=2, pairs=2)
    recipe = setup.recipe
    changes = {
        "train": recipe.train.model_copy(update={"learning_rate": rate, **train}),
        "eval": recipe.eval.model_copy(update={"steps": (1,), "every": every, "images_per_prompt": 1}),
        "guard": guard,
    }
    return dataclasses.replace(setup, recipe=recipe.model_copy(update=changes))


def run_folder(path: Path, setup: Setup) -> RunFolder:
    path.mkdir(parents=True)
    write_recipe(RunFolder(path), dump_recipe(setup.recipe))
    return RunFolder(path)


def brightness(folder: RunFolder, epoch: int) -> float:
    """What the evaluation after an epoch found."""
    report = json.loads((folder.evaluations / f"epoch-{epoch:05d}.json").read_text())
    return report["results"][0]["tuned"]["mean"]


def run_on(setup: Setup, folder: RunFolder, *, resume: Resumption | None = None) -> Iterator[Event]:
    """A run as `whole_run` drives it, without the report at its end."""
    evaluation = None
    with closing(train(setup, folder, resume=resume)) as events:
        for event in events:
            yield event
            if isinstance(event, EpochDone | Resumed) and event.epoch:
                evaluation = (yield from keep_records(setup, folder, event.epoch, evaluation)) or evaluation


def between_first_and_second(folder: RunFolder) -> StopRule:
    """A rule that a run's first evaluation keeps and its second breaks."""
    first, second = brightness(folder, 1), brightness(folder, 2)
    middle = (first + second) / 2
    assert abs(first - second) > 1e-4
    return StopRule(measure="brightness", **({"above": middle} if second > first else {"below": middle}))


def keeping(*rules: StopRule, times: int = 0, factor: float = 0.5) -> GuardSection:
    """Keep the epoch with the brightest pictures among those that keep the rules."""
    keep = KeepBestSection(measure="brightness")
    return GuardSection(keep_best=keep, stop_if=rules, rollback=RollbackSection(times=times, lr_factor=factor))
