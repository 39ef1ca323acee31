"""What a run is continued from: a checkpoint of this format or the one before, if all of it fits."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from sdpo_cli.api.tensors import AdapterOptions
from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.disk.changes import Change, Resumption, changes_of, check_same_run, recorded
from sdpo_cli.engine.events import EpochDone, Note
from sdpo_cli.engine.setup import Setup
from sdpo_cli.engine.training.checkpoint import complete_checkpoints, digest, newest_snapshot
from sdpo_cli.engine.training.snapshot import Progress
from sdpo_cli.engine.training.trainer import train
from sdpo_cli.errors import ArtifactError, RecipeError


def folder(tmp_path, name="run") -> RunFolder:
    (tmp_path / name).mkdir()
    return RunFolder(tmp_path / name)


def epochs_done(events) -> list[int]:
    return [event.epoch for event in events if isinstance(event, EpochDone)]


def test_a_checkpoint_of_another_adapter_is_refused(checkpoint, tmp_path):
    run = folder(tmp_path)
    list(train(tiny.setup(checkpoint, epochs=1), run, resume=None))
    setup = tiny.setup(checkpoint, epochs=2)
    lora = setup.recipe.model.lora.model_copy(update={"rank": 4})
    model = setup.recipe.model.model_copy(update={"lora": lora})
    setup = dataclasses.replace(setup, recipe=setup.recipe.model_copy(update={"model": model}))
    with pytest.raises(ArtifactError) as fault:
        list(train(setup, run, resume=Resumption()))
    assert str(fault.value) == (
        "checkpoint of epoch 1: weights.safetensors does not fit the adapter (down_blocks.0.attentions.0."
        "transformer_blocks.0.attn1.to_q.lora_A.sdpo.weight is [8, 16], not [4, 16]); "
        "resume with the recipe that wrote it"
    )


def with_other_plugins(setup: Setup) -> Setup:
    """The setup with other weights in its base model and another version of its reward."""
    with torch.no_grad():
        next(setup.model.denoiser.parameters()).mul_(1.05)
    model = type(setup.model)(setup.model.pipeline, setup.recipe.model.name, setup.model.options)
    return dataclasses.replace(setup, model=model, rewards=(dataclasses.replace(setup.rewards[0], version="2"),))


def test_another_base_model_and_reward_are_refused_unless_they_are_overridden(checkpoint, tmp_path):
    run = folder(tmp_path)
    list(train(tiny.setup(checkpoint, epochs=1), run, resume=None))
    other = with_other_plugins(tiny.setup(checkpoint, epochs=2))
    old, new = tiny.load(checkpoint).identity, other.model.identity
    with pytest.raises(ArtifactError) as fault:
        list(train(other, run, resume=Resumption()))
    assert str(fault.value) == (
        f"checkpoint of epoch 1: made with another base model ({old}, now {new}), another version of reward brightness "
        "(1, now 2); resume with what it was made with, or add --override model --override reward"
    )
    other = with_other_plugins(tiny.setup(checkpoint, epochs=2))
    notes = [event.text for event in train(other, run, Resumption(("model", "reward"))) if isinstance(event, Note)]
    assert notes == [
        f"from epoch 2 on: base model from {old} to {new}",
        "from epoch 2 on: version of reward brightness from 1 to 2",
    ]
    assert list(map(str, recorded(run))) == notes
    snapshot = newest_snapshot(run.checkpoints)[0]
    assert snapshot.about == other.about
    drawn = sum(len(returns) for returns in snapshot.statistics.returns.values())
    assert drawn == 2 * 4, "the returns of the other reward are forgotten"


def changed(setup, **section: object):
    """The setup, its recipe's `train` changed, and that as what a resumed run was allowed to change."""
    before = setup.recipe
    after = before.model_copy(update={"train": before.train.model_copy(update=section)})
    fields = [f"train.{name}" for name in section]
    return dataclasses.replace(setup, recipe=after), check_same_run(before, after, "r.yaml", fields)


def test_what_is_overridden_is_recorded_once_and_the_rest_goes_on(checkpoint, tmp_path):
    run = folder(tmp_path)
    list(train(tiny.setup(checkpoint, epochs=2), run, resume=None))
    setup, resumption = changed(tiny.setup(checkpoint, epochs=3), learning_rate=2e-3)
    next(train(setup, run, resumption))  # left before its first epoch ends
    assert epochs_done(train(changed(tiny.setup(checkpoint, epochs=3), learning_rate=2e-3)[0], run, resumption)) == [3]
    assert [json.loads(line) for line in run.changes.read_text().splitlines()] == [
        {"epoch": 2, "what": "train.learning_rate", "before": 1e-3, "after": 2e-3}
    ]
    snapshot = newest_snapshot(run.checkpoints)[0]
    assert sum(len(returns) for returns in snapshot.statistics.returns.values()) == 3 * 2 * 4
    assert {int(one) for name, one in snapshot.optimizer.items() if name.endswith("/step")} == {6}


def test_nothing_is_changed_in_a_run_that_has_no_epoch_left(checkpoint, tmp_path):
    run = folder(tmp_path)
    list(train(tiny.setup(checkpoint, epochs=1), run, resume=None))
    setup, resumption = changed(tiny.setup(checkpoint, epochs=1), learning_rate=2e-3)
    with pytest.raises(RecipeError) as fault:
        list(train(setup, run, resumption))
    assert str(fault.value) == (
        f"{run.recipe}: train.epochs: all 1 epochs are trained, so that nothing would be trained by another "
        "train.learning_rate; raise it too, or change nothing"
    )
    assert not run.changes.exists()


def test_another_shape_of_the_adapter_or_its_optimiser_is_no_change_that_can_be_overridden(checkpoint):
    before = tiny.setup(checkpoint, epochs=1).recipe
    model = before.model.model_copy(update={"lora": before.model.lora.model_copy(update={"rank": 4})})
    train_section = before.train.model_copy(update={"optimizer": "adamw8bit", "learning_rate": 1e-4})
    after = before.model_copy(update={"model": model, "train": train_section})
    with pytest.raises(RecipeError) as fault:
        check_same_run(before, after, "r.yaml", ["model", "train"])
    assert fault.value.faults == [
        f"r.yaml: {what} in a resumed run; its checkpoints would not fit; start a new run"
        for what in (
            "model.lora.rank: null cannot become 4",
            "train.optimizer: adamw cannot become adamw8bit",
        )
    ]


def test_what_null_means_said_of_the_adapter_is_no_change(checkpoint):
    before = tiny.setup(checkpoint, epochs=1).recipe
    usual = AdapterOptions()
    said = {"rank": usual.rank, "alpha": usual.alpha, "targets": usual.targets}
    model = before.model.model_copy(update={"lora": before.model.lora.model_copy(update=said)})
    assert check_same_run(before, before.model_copy(update={"model": model}), "r.yaml").recipe == {}


def test_checkpoints_are_in_the_order_of_their_epochs(tmp_path):
    for name in ("epoch-100000", "epoch-99999", "epoch-00002", "epoch-00002-copy"):
        (tmp_path / name).mkdir()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["epoch-00002", "epoch-99999", "epoch-100000"]


def test_averages_that_nobody_carries_on_are_dropped_and_new_ones_begin(checkpoint, tmp_path):
    run, plain = folder(tmp_path), tiny.setup(checkpoint, epochs=1)
    list(train(changed(plain, ema_decay=0.5)[0], run, resume=None))
    for epochs, decay, kept in ((2, 0.0, False), (3, 0.5, True)):
        setup, _ = changed(tiny.setup(checkpoint, epochs=epochs), ema_decay=decay)
        list(train(setup, run, Resumption(("train.ema_decay",))))
        names = newest_snapshot(run.checkpoints)[0].optimizer
        assert any(name.endswith("/average") for name in names) == kept


def test_nothing_is_a_change_before_the_first_checkpoint(checkpoint, tmp_path):
    run = folder(tmp_path)
    setup, resumption = changed(tiny.setup(checkpoint, epochs=1), learning_rate=2e-3)
    assert epochs_done(train(setup, run, resumption)) == [1]
    assert not run.changes.exists()


@pytest.mark.parametrize(
    ("known", "epoch", "changed", "now", "wanted"),
    [
        ([(2, 1, 3)], 2, {}, 1, []),
        ([(2, 1, 3)], 4, {}, 3, [(2, 1, 3)]),
        ([(5, 1, 3)], 4, {}, 3, [(4, 1, 3)]),
        ([(2, 1, 3)], 2, {"rate": (3, 4)}, 4, [(2, 1, 4)]),
        ([(2, 1, 3)], 2, {"rate": (3, 1)}, 1, []),
        ([(2, 1, 3)], 4, {"rate": (3, 1)}, 1, [(2, 1, 3), (4, 3, 1)]),
        ([(2, 1, 3)], 0, {"rate": (3, 1)}, 1, []),
    ],
    ids=["written, not made", "made", "of a lost epoch", "again", "taken back", "taken back later", "at the start"],
)
def test_only_what_differs_from_what_an_epoch_was_trained_by_counts_as_changed(known, epoch, changed, now, wanted):
    known, wanted = ([Change(at, "rate", old, new) for at, old, new in some] for some in (known, wanted))
    assert changes_of(known, epoch, changed, {"rate": now}) == wanted


@pytest.mark.parametrize(
    ("what", "before", "after", "said"),
    [
        ("train.learning_rate", 1e-3, 2e-3, "from 0.001 to 0.002"),
        ("objective.sdpo.antithetic", True, False, "from true to false"),
        ("train.batch", "all", 4, "from all to 4"),
        ("train.clip", None, 1.0, "from null to 1.0"),
        (
            "reward.taste:score",
            {"weight": 2.0, "normalise": None},
            None,
            "gone, which was {weight: 2.0, normalise: null}",
        ),
        ("reward.emoji-style", None, {"style": "3d"}, "added: {style: 3d}"),
        ("version of reward taste:score", "ab12", None, "gone, which was ab12"),
        ("version of reward taste:score", None, "1", "added: 1"),
        ("prompts.file.path", "a" * 120, "b c", f"from {'a' * 120} to b c"),
    ],
)
def test_a_change_is_told_in_the_words_of_a_recipe(what, before, after, said):
    assert str(Change(1, what, before, after)) == f"from epoch 2 on: {what} {said}"


@pytest.mark.parametrize("line", ["[]", "{", '{"epoch": 1}', '{"epoch": "1", "what": "seed", "before": 0, "after": 1}'])
def test_a_damaged_record_of_changes_is_one_line(tmp_path, line):
    run = folder(tmp_path)
    run.changes.write_text(line + "\n")
    with pytest.raises(ArtifactError, match=f"^{re.escape(str(run.changes))}.*: .*; .*$"):
        recorded(run)


def test_a_checkpoint_of_a_newer_format_is_refused_not_passed_over(checkpoint, tmp_path):
    run = folder(tmp_path)
    list(train(tiny.setup(checkpoint, epochs=2), run, resume=None))
    newest = complete_checkpoints(run.checkpoints)[-1]
    (newest / "manifest.json").write_text('{"format": 3, "sha256": {}}')
    with pytest.raises(ArtifactError) as fault:
        list(train(tiny.setup(checkpoint, epochs=3), run, resume=Resumption()))
    assert str(fault.value) == f"{newest}: format 3 is newer than 2; update sdpo-cli"


def test_a_checkpoint_of_format_1_is_gone_on_from(checkpoint, tmp_path, monkeypatch):
    """One epoch of the tiny setup (2 steps, 2 pairs, rank 1), written by the program before format 2."""
    run, setup = folder(tmp_path), tiny.setup(checkpoint, epochs=2, steps=2, pairs=2)
    lora = setup.recipe.model.lora.model_copy(update={"rank": 1})
    model = setup.recipe.model.model_copy(update={"lora": lora})
    setup = dataclasses.replace(setup, recipe=setup.recipe.model_copy(update={"model": model}))
    shutil.copytree(Path(__file__).parent / "format-1", run.checkpoints)
    old, notes = newest_snapshot(run.checkpoints)
    assert notes == []
    assert old.progress == Progress(epoch=1, images=4, queries=4, updates=1)
    assert {prompt: tuple(returns.shape) for prompt, returns in old.statistics.returns.items()} == {
        "cat": (2, 2), "dog": (2, 2),
    }  # fmt: skip
    about = {**setup.about, "base model": old.about["base model"]}  # its random weights may be others elsewhere
    monkeypatch.setattr(Setup, "about", about)
    assert epochs_done(train(setup, run, resume=Resumption())) == [2]
    new = newest_snapshot(run.checkpoints)[0]
    assert (new.progress.epoch, new.progress.updates, new.about) == (2, 2, about)
    assert json.loads((run.checkpoints / "epoch-00002" / "manifest.json").read_text())["format"] == 2
    assert {int(one) for name, one in new.optimizer.items() if name.endswith("/step")} == {2}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda name, one: (name, one[:1]), r"{w}.lora_A.sdpo.weight exp_avg is \[1, 16\], not \[8, 16\]"),
        (lambda name, one: (name.replace("exp_avg", "mean"), one), r"{w}.lora_A.sdpo.weight it has no exp_avg"),
    ],
    ids=["shape", "part"],
)
def test_an_optimiser_state_that_does_not_fit_is_refused_before_a_weight_is_touched(
    checkpoint, tmp_path, change, fault
):
    run = folder(tmp_path)
    list(train(tiny.setup(checkpoint, epochs=1), run, resume=None))
    newest = complete_checkpoints(run.checkpoints)[-1]
    path, manifest = newest / "optimizer.safetensors", json.loads((newest / "manifest.json").read_text())
    tensors, spoilt = load_file(path), "/exp_avg"
    save_file(dict(change(n, one) if n.endswith(spoilt) else (n, one) for n, one in tensors.items()), path)
    manifest["sha256"][path.name] = digest(path)
    (newest / "manifest.json").write_text(json.dumps(manifest))
    setup = tiny.setup(checkpoint, epochs=2)
    with pytest.raises(ArtifactError) as error:
        list(train(setup, run, resume=Resumption()))
    weight = r"[\w.]+attn1.to_k"
    assert re.fullmatch(
        rf"checkpoint of epoch 1: optimizer.safetensors does not fit the optimiser \(of {fault.format(w=weight)}\); "
        "resume with the recipe that wrote it",
        str(error.value),
    )
    assert all(bool((one == 0).all()) for name, one in setup.model.trainable().items() if "lora_B" in name)
