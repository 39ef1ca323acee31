"""The guard in whole runs on the tiny model: it stops, goes back, keeps the best, and a resumed run does the same."""

import dataclasses
import json
import shutil

import pytest
import torch
from guarded import EPOCHS, RATE, between_first_and_second, brightness, keeping, run_folder, run_on, watched_setup
from safetensors.torch import load_file

from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.disk.changes import Resumption, check_same_run
from sdpo_cli.engine.evaluating.guarding import judgements
from sdpo_cli.engine.events import EpochDone, Note, StageStarted
from sdpo_cli.engine.learning.ema import AVERAGE
from sdpo_cli.engine.training.checkpoint import checkpoint_path, complete_checkpoints, read_checkpoint, write_checkpoint
from sdpo_cli.engine.training.run import whole_run
from sdpo_cli.engine.training.trainer import train
from sdpo_cli.errors import ArtifactError, RecipeError, TrainingError
from sdpo_cli.recipe import (
    GuardSection,
    StopRule,
)


def everything(folder: RunFolder) -> dict[str, bytes]:
    """All that must be the same in a resumed run, but for the checkpoints that are kept beside the newest."""
    paths = [
        *complete_checkpoints(folder.checkpoints)[-1].iterdir(), *folder.evaluations.iterdir(),
        folder.guard, folder.metrics,
    ]  # fmt: skip
    own = str(folder.path).encode()
    files = {str(path.relative_to(folder.path)): path.read_bytes().replace(own, b"RUN") for path in paths}
    adapter = load_file(folder.adapter / "pytorch_lora_weights.safetensors")
    return files | {name: value.numpy().tobytes() for name, value in adapter.items()}


@pytest.fixture(scope="module")
def free(checkpoint, tmp_path_factory) -> RunFolder:
    """The run with the guard left out, all of its checkpoints kept."""
    setup = watched_setup(checkpoint, GuardSection(), keep_last=EPOCHS)
    folder = run_folder(tmp_path_factory.mktemp("free") / "run", setup)
    list(whole_run(setup, folder, resume=None))
    return folder


@pytest.fixture(scope="module")
def limit(free) -> StopRule:
    """A rule that the first evaluation keeps and the second breaks."""
    return between_first_and_second(free)


@pytest.fixture(scope="module")
def turned_back(checkpoint, limit, tmp_path_factory) -> RunFolder:
    """A run that went back to its first epoch after the second."""
    setup = watched_setup(checkpoint, keeping(limit, times=1), keep_last=1)
    folder = run_folder(tmp_path_factory.mktemp("back") / "run", setup)
    list(run_on(setup, folder))
    return folder


def test_without_a_guard_nothing_is_written_and_the_last_epoch_is_the_adapter(free):
    assert not free.guard.exists()
    assert "Guard" not in (free.path / "report.html").read_text()
    assert json.loads(free.evaluation.read_text())["results"][0]["tuned"]["mean"] == brightness(free, EPOCHS)


def test_a_broken_rule_stops_the_run_and_the_best_epoch_is_its_adapter(checkpoint, free, limit, tmp_path):
    setup = watched_setup(checkpoint, keeping(limit), keep_last=1)
    folder = run_folder(tmp_path / "run", setup)
    events = list(whole_run(setup, folder, resume=None))
    assert [event.epoch for event in events if isinstance(event, EpochDone)] == [1, 2]
    assert [path.name for path in complete_checkpoints(folder.checkpoints)] == ["epoch-00001", "epoch-00002"]
    best = read_checkpoint(checkpoint_path(free.checkpoints, 1)).weights
    assert all(torch.equal(value.detach(), best[name]) for name, value in setup.model.trainable().items())
    assert json.loads(folder.evaluation.read_text())["results"][0]["tuned"]["mean"] == brightness(free, 1)
    notes = [event.text for event in events if isinstance(event, Note)]
    first, second, kept = notes[-3:]
    assert first == f"guard, epoch 1: brightness is {brightness(free, 1):.4g}, the best so far"
    assert second.startswith(f"guard, epoch 2: brightness is {brightness(free, 2):.4g}, ")
    assert second.endswith("; training stops")
    assert kept.startswith("Kept: epoch 1, where brightness, ")
    lines = [json.loads(line) for line in folder.guard.read_text().splitlines()]
    assert [(line["epoch"], line["best"], line["action"]) for line in lines] == [(1, 1, "go on"), (2, 1, "stop")]
    for page in (folder.path / "report.html", folder.adapter / "README.md"):
        assert all(note in page.read_text() for note in notes[-3:])


def test_the_adapter_file_is_that_of_a_run_that_ended_with_the_best_epoch(checkpoint, limit, tmp_path):
    saved = []
    for name, guard, epochs in (("guarded", keeping(limit), EPOCHS), ("short", GuardSection(), 1)):
        setup = watched_setup(checkpoint, guard, epochs=epochs)
        folder = run_folder(tmp_path / name, setup)
        list(run_on(setup, folder))
        saved.append(load_file(folder.adapter / "pytorch_lora_weights.safetensors"))
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_going_back_trains_on_from_the_best_epoch_at_a_lower_rate(checkpoint, free, turned_back, tmp_path):
    """By hand: the checkpoint of epoch 1 put in the place of epoch 2's, and half the learning rate."""
    lines = [json.loads(line) for line in turned_back.guard.read_text().splitlines()]
    assert lines[1]["action"] == "go back"
    setup = watched_setup(checkpoint, GuardSection(), rate=RATE / 2, epochs=3)
    folder = run_folder(tmp_path / "run", setup)
    first, second = (read_checkpoint(checkpoint_path(free.checkpoints, epoch)) for epoch in (1, 2))
    write_checkpoint(folder.checkpoints, dataclasses.replace(first, progress=second.progress), keep_last=2)
    shutil.copy(free.metrics, folder.metrics)
    shutil.copy(free.timings, folder.timings)
    list(train(setup, folder, resume=Resumption()))
    assert folder.metrics.read_text().splitlines() == turned_back.metrics.read_text().splitlines()[:3]


@pytest.mark.parametrize(
    ("leave", "checkpoint_every"),
    [(StageStarted("update", 2, EPOCHS), 1), ("judged", 1), (StageStarted("update", 3, EPOCHS), 1), ("judged", 3)],
    ids=str,
)
def test_a_resumed_run_is_the_unbroken_one(checkpoint, limit, turned_back, tmp_path, leave, checkpoint_every):
    guard = keeping(limit, times=1)
    setup = watched_setup(checkpoint, guard, keep_last=1, checkpoint_every=checkpoint_every)
    folder = run_folder(tmp_path / "run", setup)
    events = run_on(setup, folder)
    for event in events:
        if event == leave or (leave == "judged" and isinstance(event, Note) and "back to epoch 1" in event.text):
            break
    events.close()
    list(run_on(watched_setup(checkpoint, guard, keep_last=1), folder, resume=Resumption()))
    assert everything(folder) == everything(turned_back)


def test_a_run_that_the_guard_has_stopped_stays_stopped(checkpoint, limit, tmp_path):
    setup = watched_setup(checkpoint, keeping(limit), checkpoint_every=3)
    folder = run_folder(tmp_path / "run", setup)
    list(run_on(setup, folder))
    before = everything(folder)
    events = list(run_on(watched_setup(checkpoint, keeping(limit)), folder, resume=Resumption()))
    assert not [event for event in events if isinstance(event, EpochDone)]
    assert everything(folder) == before


def test_a_run_with_nothing_worth_keeping_is_no_success(checkpoint, tmp_path):
    setup = watched_setup(checkpoint, keeping(StopRule(measure="brightness", below=2.0)))
    folder = run_folder(tmp_path / "run", setup)
    with pytest.raises(TrainingError) as fault:
        list(whole_run(setup, folder, resume=None))
    assert str(fault.value) == (
        f"{folder.path}: every evaluation broke a rule of the guard, so no epoch is worth keeping; evaluate more often "
        "(eval.every) or lower train.learning_rate; report.html shows the last epoch"
    )
    assert "for want of a better one" in (folder.path / "report.html").read_text()


def test_a_kept_checkpoint_that_is_gone_is_one_line(checkpoint, limit, tmp_path):
    setup = watched_setup(checkpoint, keeping(limit))
    folder = run_folder(tmp_path / "run", setup)
    list(run_on(setup, folder))
    gone = checkpoint_path(folder.checkpoints, 1)
    (gone / "weights.safetensors").write_bytes(b"")
    for fault in (
        f"{gone}: weights.safetensors is damaged or missing",
        f"{gone}: the kept epoch's checkpoint is gone; put it back, or the guard's rules as they were",
    ):
        with pytest.raises(ArtifactError) as found:
            next(run_on(watched_setup(checkpoint, keeping(limit)), folder, resume=Resumption()))
        assert str(found.value) == fault
        assert folder.guard.exists(), "nothing is touched"
        shutil.rmtree(gone, ignore_errors=True)


def test_what_was_changed_since_the_kept_epoch_stays_changed_when_training_goes_back(checkpoint, limit, tmp_path):
    """No average of weights and no return of the reward before comes back with it."""
    setup = watched_setup(checkpoint, keeping(limit, times=1), keep_last=EPOCHS, ema_decay=0.5)
    folder = run_folder(tmp_path / "run", setup)
    events = run_on(setup, folder)
    next(event for event in events if event == StageStarted("update", 2, EPOCHS))
    events.close()
    plain = watched_setup(checkpoint, keeping(limit, times=1), keep_last=EPOCHS)
    plain = dataclasses.replace(plain, rewards=(dataclasses.replace(plain.rewards[0], version="2"),))
    resumption = Resumption(("train.ema_decay", "reward"), {"train.ema_decay": (0.5, 0.0)})
    list(run_on(plain, folder, resume=resumption))
    actions = [json.loads(line)["action"] for line in folder.guard.read_text().splitlines()]
    assert actions[:2] == ["go on", "go back"]
    first, last = (read_checkpoint(checkpoint_path(folder.checkpoints, epoch)) for epoch in (1, 3))
    assert [any(name.endswith(AVERAGE) for name in one.optimizer) for one in (first, last)] == [True, False]
    assert sum(len(returns) for returns in last.statistics.returns.values()) == 2 * 2, "those of epoch 3 alone"


def test_a_guarded_run_may_go_back_more_often_but_not_get_other_rules_or_evaluations(checkpoint):
    written = watched_setup(checkpoint, keeping()).recipe
    check_same_run(written, written.model_copy(update={"guard": keeping(times=1)}), "r.yaml")
    rule = StopRule(measure="brightness", below=0.1)
    evaluation = written.eval.model_copy(update={"steps": (2,), "batch": 8})
    with pytest.raises(RecipeError) as fault:
        check_same_run(written, written.model_copy(update={"eval": evaluation, "guard": keeping(rule)}), "r.yaml")
    assert [line.split(": ")[1] for line in fault.value.faults] == ["eval.steps", "guard.stop_if"]


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        (StopRule(measure="brightness", steps=(2,), below=0.0), "brightness at 2 steps"),
        (StopRule(measure="sharpness", below=0.0), "sharpness"),
    ],
)
def test_rules_about_what_earlier_evaluations_did_not_measure_are_one_line(checkpoint, free, rule, what):
    recipe = watched_setup(checkpoint, keeping(rule)).recipe
    with pytest.raises(ArtifactError) as fault:
        judgements(free, recipe, 1)
    assert str(fault.value) == (
        f"{free.evaluations / 'epoch-00001.json'}: has no {what}; let the guard look at what every evaluation of the "
        "run has measured"
    )


def test_a_stopped_run_goes_on_where_it_may_go_back_once_more(checkpoint, limit, turned_back, tmp_path):
    setup = watched_setup(checkpoint, keeping(limit), keep_last=1)
    folder = run_folder(tmp_path / "run", setup)
    list(run_on(setup, folder))
    list(run_on(watched_setup(checkpoint, keeping(limit, times=1), keep_last=1), folder, resume=Resumption()))
    assert everything(folder) == everything(turned_back)


def test_the_divergence_from_the_base_model_is_watched_too(checkpoint, free, tmp_path):
    rows = {row["epoch"]: row["kl_base"] for row in map(json.loads, free.metrics.read_text().splitlines())}
    assert rows[1] == 0 < rows[2]
    rule = StopRule(measure="kl_base", above=rows[2] / 2)
    setup = watched_setup(checkpoint, GuardSection(stop_if=(rule,)))
    folder = run_folder(tmp_path / "run", setup)
    notes = [event.text for event in run_on(setup, folder) if isinstance(event, Note)]
    assert notes == [
        "guard, epoch 1: every rule is kept",
        f"guard, epoch 2: kl_base is {rows[2]:.4g}, above {rows[2] / 2:g}; training stops",
    ]
