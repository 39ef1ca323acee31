"""The average of the weights: what it is, where it is used, and that nothing of it is lost between two epochs."""

import dataclasses
import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.disk.changes import Resumption
from sdpo_cli.engine.events import EpochDone
from sdpo_cli.engine.learning.ema import AVERAGE, averaged, follow
from sdpo_cli.engine.training.checkpoint import checkpoint_path, complete_checkpoints, read_checkpoint
from sdpo_cli.engine.training.run import keep_records
from sdpo_cli.engine.training.trainer import train
from sdpo_cli.recipe import GuardSection, KeepBestSection, RollbackSection, StopRule

DECAY = 0.75


def setup(checkpoint, epochs: int = 3, *, kind: str = "lora", decay: float = DECAY):
    """The tiny setup with one update an epoch, and all checkpoints kept."""
    whole = tiny.setup(checkpoint, epochs=epochs, steps=2, pairs=2)
    section = whole.recipe.train.model_copy(update={"ema_decay": decay, "keep_last": 9, "learning_rate": 1e-2})
    model = whole.recipe.model.model_copy(update={"train": kind})
    return dataclasses.replace(whole, recipe=whole.recipe.model_copy(update={"train": section, "model": model}))


def folder(path) -> RunFolder:
    path.mkdir()
    return RunFolder(path)


def weights_and_averages(run: RunFolder, epoch: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    snapshot = read_checkpoint(checkpoint_path(run.checkpoints, epoch))
    averages = {name: snapshot.optimizer[f"{name}/{AVERAGE}"] for name in snapshot.weights}
    return dict(snapshot.weights), averages


def on(model) -> dict[str, torch.Tensor]:
    return {name: one.detach().clone() for name, one in model.trainable().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], **tolerance: float) -> None:
    torch.testing.assert_close(one, other, **(tolerance or {"rtol": 0, "atol": 0}))


def final_bytes(run: RunFolder) -> dict[str, bytes]:
    newest = complete_checkpoints(run.checkpoints)[-1]
    return {path.name: path.read_bytes() for path in newest.iterdir()} | {"metrics": run.metrics.read_bytes()}


def test_it_is_the_formula_and_leaves_the_weights_alone():
    weights = [nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.ones(1, 3)), nn.Parameter(torch.ones(1))]
    optimizer, seen = torch.optim.AdamW(weights, lr=0.1), []
    follow(optimizer, DECAY)
    for _ in range(4):
        optimizer.zero_grad()
        (weights[0].square().sum() + weights[1].sum()).backward()  # the third has no gradient
        optimizer.step()
        seen.append(weights[0].detach().clone())
    wanted = seen[0]
    for value in seen[1:]:
        wanted = DECAY * wanted + (1 - DECAY) * value
    with averaged(optimizer):
        torch.testing.assert_close(weights[0].detach(), wanted)
        assert weights[2].item() == 1
    assert torch.equal(weights[0].detach(), seen[-1])
    assert set(optimizer.state[weights[2]]) == set()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_is_saved_shown_and_evaluated_is_the_average(checkpoint, tmp_path, kind):
    whole, run, shown = setup(checkpoint, kind=kind), folder(tmp_path / "run"), {}
    for event in train(whole, run, resume=None):
        if isinstance(event, EpochDone):
            shown[event.epoch] = on(whole.model)
    (first, average), (second, then) = weights_and_averages(run, 1), weights_and_averages(run, 2)
    assert_same(average, first)
    assert_same(
        then, {name: DECAY * average[name] + (1 - DECAY) * second[name] for name in first}, rtol=1e-6, atol=1e-7
    )
    for epoch in (1, 2, 3):
        assert_same(shown[epoch], weights_and_averages(run, epoch)[1])
    assert_same(on(whole.model), shown[3])
    saved = tiny.load(checkpoint)
    saved.load_adapter(run.adapter)
    assert_same(on(saved), shown[3])


def test_training_is_the_same_as_without_it(checkpoint, tmp_path):
    runs = [folder(tmp_path / name) for name in ("with", "without")]
    for run, decay in zip(runs, (DECAY, 0.0), strict=True):
        list(train(setup(checkpoint, decay=decay), run, resume=None))
    states = [read_checkpoint(checkpoint_path(run.checkpoints, 3)) for run in runs]
    assert_same(dict(states[0].weights), dict(states[1].weights))
    assert runs[0].metrics.read_bytes() == runs[1].metrics.read_bytes()
    assert not [name for name in states[1].optimizer if name.endswith(AVERAGE)]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_resumed_run_equals_the_unbroken_one_byte_for_byte(checkpoint, tmp_path, kind):
    whole, broken = folder(tmp_path / "whole"), folder(tmp_path / "broken")
    list(train(setup(checkpoint, kind=kind), whole, resume=None))
    events = train(setup(checkpoint, kind=kind), broken, resume=None)
    next(event for event in events if isinstance(event, EpochDone) and event.epoch == 2)
    events.close()  # while the average is on the model
    list(train(setup(checkpoint, kind=kind), broken, resume=Resumption()))
    assert final_bytes(broken) == final_bytes(whole)


def test_the_guard_takes_it_back_with_the_weights(checkpoint, tmp_path):
    """Every evaluation breaks the rule but the first: the average of the third epoch knows nothing of the second."""
    whole, run = setup(checkpoint), folder(tmp_path / "run")
    guard = GuardSection(
        keep_best=KeepBestSection(measure="brightness"),
        stop_if=(StopRule(measure="brightness", drop=1e-9, since="best"), StopRule(measure="kl_base", above=1e-12)),
        rollback=RollbackSection(times=1, lr_factor=1.0),
    )
    section = whole.recipe.eval.model_copy(update={"steps": (1,), "every": 1, "images_per_prompt": 1})
    whole = dataclasses.replace(whole, recipe=whole.recipe.model_copy(update={"eval": section, "guard": guard}))
    evaluation = None
    for event in train(whole, run, resume=None):
        if isinstance(event, EpochDone):
            for _ in (found := keep_records(whole, run, event.epoch, evaluation)):
                pass
            found.close()
    actions = [json.loads(line)["action"] for line in run.guard.read_text().splitlines()]
    assert actions[1] == "go back"
    (_, first), (third, average) = weights_and_averages(run, 1), weights_and_averages(run, 3)
    wanted = {name: DECAY * first[name] + (1 - DECAY) * third[name] for name in first}
    assert_same(average, wanted, rtol=1e-6, atol=1e-7)
    best = weights_and_averages(run, json.loads(run.guard.read_text().splitlines()[-1])["best"])[1]
    assert_same(on(whole.model), best)
    names = load_file(run.adapter / "pytorch_lora_weights.safetensors")
    assert len(names) == len(best)
