"""Whole runs on the tiny model: what is learnt, what is written, and that a resumed run is the unbroken one."""

import dataclasses
import json
import os
import shutil
import signal

import pytest
import tiny
import torch
from safetensors.torch import load_file

from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.builtin.objectives.options import PrdpOptions, SdpoOptions
from sdpo_cli.builtin.objectives.sdpo import Sdpo
from sdpo_cli.builtin.objectives.trajectory_difference import TrajectoryDifference
from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.disk.changes import Resumption
from sdpo_cli.engine.evaluating.evaluate import Plan, evaluate
from sdpo_cli.engine.events import EpochDone, Note, Resumed, StageStarted
from sdpo_cli.engine.rewards.scoring import LoadedReward
from sdpo_cli.engine.signals import stop_signals
from sdpo_cli.engine.training import trainer
from sdpo_cli.engine.training.checkpoint import complete_checkpoints, newest_snapshot
from sdpo_cli.engine.training.trainer import train
from sdpo_cli.errors import ArtifactError, PluginError, RecipeError


def folder(tmp_path, name="run") -> RunFolder:
    (tmp_path / name).mkdir()
    return RunFolder(tmp_path / name)


def final_state(run: RunFolder) -> dict[str, bytes]:
    newest = complete_checkpoints(run.checkpoints)[-1]
    names = ("weights.safetensors", "optimizer.safetensors", "statistics.safetensors", "state.json")
    return {name: (newest / name).read_bytes() for name in names} | {"metrics": run.metrics.read_bytes()}


def epochs_done(events) -> list[int]:
    return [event.epoch for event in events if isinstance(event, EpochDone)]


def result_of(events):
    """What a generator of events returns."""
    try:
        while True:
            next(events)
    except StopIteration as end:
        return end.value


@pytest.fixture(scope="module")
def unbroken(checkpoint, tmp_path_factory) -> dict[str, bytes]:
    """Four epochs in one go."""
    run = folder(tmp_path_factory.mktemp("unbroken"))
    assert epochs_done(train(tiny.setup(checkpoint, epochs=4), run, resume=None)) == [1, 2, 3, 4]
    return final_state(run)


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_a_resumed_run_equals_the_unbroken_one_byte_for_byte(checkpoint, tmp_path, unbroken, stop_after):
    run = folder(tmp_path)
    list(train(tiny.setup(checkpoint, epochs=stop_after), run, resume=None))
    assert epochs_done(train(tiny.setup(checkpoint, epochs=4), run, resume=Resumption())) == list(
        range(stop_after + 1, 5)
    )
    assert final_state(run) == unbroken


@pytest.mark.parametrize("checkpoint_every", [1, 3])
def test_a_consumer_that_leaves_in_mid_epoch_loses_no_whole_epoch(checkpoint, tmp_path, unbroken, checkpoint_every):
    run, setup = folder(tmp_path), tiny.setup(checkpoint, epochs=4)
    section = setup.recipe.train.model_copy(update={"checkpoint_every": checkpoint_every})
    setup = dataclasses.replace(setup, recipe=setup.recipe.model_copy(update={"train": section}))
    events = train(setup, run, resume=None)
    for event in events:
        if event == StageStarted("update", 3, 4):
            break
    events.close()
    assert newest_snapshot(run.checkpoints)[0].progress.epoch == 2
    assert epochs_done(train(tiny.setup(checkpoint, epochs=4), run, resume=Resumption())) == [3, 4]
    assert final_state(run) == unbroken


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(checkpoint, tmp_path, unbroken):
    run = folder(tmp_path)
    list(train(tiny.setup(checkpoint, epochs=3), run, resume=None))
    damaged = complete_checkpoints(run.checkpoints)[-1] / "optimizer.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(bytes(data))
    events = list(train(tiny.setup(checkpoint, epochs=4), run, resume=Resumption()))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert notes == [f"{damaged.parent}: optimizer.safetensors is damaged or missing; trying the one before"]
    assert epochs_done(events) == [3, 4]
    assert final_state(run) == unbroken


def test_a_run_stopped_before_its_first_checkpoint_starts_over(checkpoint, tmp_path):
    run = folder(tmp_path)
    run.metrics.write_text('{"epoch": 1}\n{"epo')
    (run.checkpoints / ".partial-epoch-00001").mkdir(parents=True)
    assert epochs_done(train(tiny.setup(checkpoint, epochs=2), run, resume=Resumption())) == [1, 2]
    assert [json.loads(line)["epoch"] for line in run.metrics.read_text().splitlines()] == [1, 2]


def test_a_run_is_not_shortened_nor_started_over_where_its_checkpoints_are_gone(checkpoint, tmp_path):
    run = folder(tmp_path)
    list(train(tiny.setup(checkpoint, epochs=1), run, resume=None))
    list(train(tiny.setup(checkpoint, epochs=2), run, resume=Resumption()))
    metrics = run.metrics.read_bytes()
    with pytest.raises(RecipeError) as fewer:
        list(train(tiny.setup(checkpoint, epochs=1), run, resume=Resumption()))
    assert str(fewer.value) == f"{run.recipe}: train.epochs: 1 is fewer than the run has trained; use 2 or more"
    shutil.rmtree(run.checkpoints)
    with pytest.raises(ArtifactError) as fault:
        list(train(tiny.setup(checkpoint, epochs=2), run, resume=Resumption()))
    assert str(fault.value) == (
        f"{run.checkpoints}: the run's checkpoints are gone; put them back, or start a new run with another --out"
    )
    assert run.metrics.read_bytes() == metrics


def test_metrics_count_what_was_done_and_hold_no_times(checkpoint, tmp_path):
    run = folder(tmp_path)
    list(train(tiny.setup(checkpoint, epochs=2, steps=3, pairs=4), run, resume=None))
    first, second = (json.loads(line) for line in run.metrics.read_text().splitlines())
    assert (second["epoch"], second["images"], second["queries"], second["updates"]) == (2, 16, 32, 4)
    assert first["reward/brightness"] == first["reward_last"]
    assert set(first) == {
        "epoch", "images", "queries", "updates", "reward_first", "reward_last", "reward/brightness",
        "advantage_std", "loss", "clip_fraction", "ratio_difference", "ratio_max",
        "grad_norm", "latent_diversity", "kl_base",
    }  # fmt: skip
    assert set(json.loads(run.timings.read_text().splitlines()[0])) == {"epoch", "rollout", "score", "credit", "update"}


@pytest.mark.parametrize(
    ("pairs", "states", "pictures", "said"),
    [
        (4, 99, 99, []),
        (
            4,
            4,
            3,
            [
                "2 pairs fit into memory where 4 did not; train.micro_batch=2 spares later runs the tries",
                "2 pictures fit into memory where 4 did not; train.decode_batch=2 spares later runs the tries",
            ],
        ),
        (9, 17, 99, ["4 pairs fit into memory where 9 did not; train.micro_batch=3 spares later runs the tries"]),
    ],
)
def test_what_did_not_fit_into_memory_is_said_once(checkpoint, tmp_path, monkeypatch, pairs, states, pictures, said):
    setup = tiny.setup(checkpoint, epochs=2, pairs=pairs, micro_batch=pairs)
    for name, most in (("denoise", states), ("decode", pictures)):
        monkeypatch.setattr(setup.model, name, tiny.refusing(getattr(setup.model, name), most))
    notes = [event.text for event in train(setup, folder(tmp_path), resume=None) if isinstance(event, Note)]
    assert [note for note in notes if "memory" in note] == said


def test_an_update_that_is_halved_says_nothing_of_pictures(checkpoint, tmp_path, monkeypatch):
    setup = tiny.setup(checkpoint, epochs=1, pairs=4, micro_batch=4)
    denoise = setup.model.denoise
    small = tiny.refusing(denoise, 4)
    monkeypatch.setattr(setup.model, "denoise", lambda *given: (small if torch.is_grad_enabled() else denoise)(*given))
    notes = [event.text for event in train(setup, folder(tmp_path), resume=None) if isinstance(event, Note)]
    assert [note for note in notes if "memory" in note] == [
        "2 pairs fit into memory where 4 did not; train.micro_batch=2 spares later runs the tries"
    ]


def test_the_spread_of_advantages_is_that_of_the_actions_learnt(checkpoint, tmp_path, monkeypatch):
    given, metrics = [], trainer.epoch_metrics
    monkeypatch.setattr(trainer, "epoch_metrics", lambda *those: given.append(those) or metrics(*those))
    setup, run = tiny.setup(checkpoint, epochs=1, steps=4), folder(tmp_path)
    list(train(setup, run, resume=None))
    advantage = given[0][3].advantage
    assert setup.actions == [0, 1, 2]
    logged = json.loads(run.metrics.read_text())["advantage_std"]
    assert logged == pytest.approx(float(advantage[..., :3].std(correction=0)), rel=1e-6)
    assert logged != pytest.approx(float(advantage.std(correction=0)), rel=1e-3)


def test_a_failing_reward_leaves_the_epochs_before_it(checkpoint, tmp_path):
    class Failing(tiny.Brightness):
        calls = 0

        def score(self, request: ScoreRequest) -> ScoreResult:
            Failing.calls += 1
            if Failing.calls > 8:
                raise ValueError("the scorer fell over")
            return super().score(request)

    run, setup = folder(tmp_path), tiny.setup(checkpoint, epochs=4)
    section = setup.recipe.train.model_copy(update={"checkpoint_every": 4})
    setup = dataclasses.replace(
        setup,
        recipe=setup.recipe.model_copy(update={"train": section}),
        rewards=(LoadedReward("failing", "1", 1.0, Failing()),),
    )
    with pytest.raises(PluginError, match=r"^reward failing: raised ValueError: the scorer fell over \(.* of '\w+'\)"):
        list(train(setup, run, resume=None))
    assert newest_snapshot(run.checkpoints)[0].progress.epoch == len(run.metrics.read_text().splitlines()) >= 1


def test_a_signal_that_meets_the_saving_of_a_failed_run_leaves_its_fault(checkpoint, tmp_path, monkeypatch):
    class Failing(tiny.Brightness):
        def score(self, request: ScoreRequest) -> ScoreResult:
            if run.metrics.exists():
                raise ValueError("the scorer fell over")
            return super().score(request)

    def save_slowly(path):
        os.kill(os.getpid(), signal.SIGTERM)
        save(path)

    run, setup = folder(tmp_path), tiny.setup(checkpoint, epochs=4)
    section = setup.recipe.train.model_copy(update={"checkpoint_every": 4})
    recipe = setup.recipe.model_copy(update={"train": section})
    setup = dataclasses.replace(setup, recipe=recipe, rewards=(LoadedReward("failing", "1", 1.0, Failing()),))
    save = setup.model.save_adapter
    monkeypatch.setattr(setup.model, "save_adapter", save_slowly)
    with stop_signals(), pytest.raises(PluginError, match="the scorer fell over"):
        list(train(setup, run, resume=None))
    assert newest_snapshot(run.checkpoints)[0].progress.epoch == 1


def test_an_epoch_whose_record_cannot_be_written_has_no_checkpoint(checkpoint, tmp_path, unbroken):
    run = folder(tmp_path)
    with pytest.raises(ArtifactError) as fault:
        for event in train(tiny.setup(checkpoint), run, resume=None):
            if isinstance(event, EpochDone):
                timings = run.timings.read_bytes()
                run.timings.unlink()
                run.timings.mkdir()
    assert str(fault.value) == (
        f"{run.timings}: cannot be written (Is a directory); check the folder and its permissions"
    )
    assert [path.name for path in complete_checkpoints(run.checkpoints)] == ["epoch-00001"]
    run.timings.rmdir()
    run.timings.write_bytes(timings)
    list(train(tiny.setup(checkpoint, epochs=4), run, resume=Resumption()))
    assert final_state(run) == unbroken
    assert [row["epoch"] for row in map(json.loads, run.timings.read_text().splitlines())] == [1, 2, 3, 4]


def test_only_the_newest_checkpoints_are_kept_and_no_partial_one(checkpoint, tmp_path):
    run = folder(tmp_path)
    list(train(tiny.setup(checkpoint, epochs=4), run, resume=None))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["epoch-00003", "epoch-00004"]


def test_brightness_rises(checkpoint, tmp_path):
    """The whole method on a reward that it can move: fresh pictures of the same seeds are brighter than before."""
    setup = tiny.setup(checkpoint, epochs=8, pairs=10, steps=4, micro_batch=10, gamma=0.0, clip=0.0)
    section = setup.recipe.train.model_copy(update={"learning_rate": 1e-2})
    setup = dataclasses.replace(setup, recipe=setup.recipe.model_copy(update={"train": section}))
    list(train(setup, folder(tmp_path), resume=None))
    plan = Plan(tiny.PROMPTS, (1, 2, 4), 4, 1000, setup.model.sampler, 20, "tiny")
    evaluation = result_of(evaluate(setup.model, setup.rewards, plan, adapter="adapter"))
    for result in evaluation.report.results:
        assert result.difference.low > 0, result
        assert result.win_rate > 0.7, result


def test_in_two_steps_sdpo_is_prdp_with_antithetic_pairs(checkpoint, tmp_path):
    """One action and one reward: nothing is left of what is particular to SDPO. docs/evidence.md says so."""
    learnt = []
    for name, objective in (
        ("sdpo", Sdpo(SdpoOptions(clip=5e-3))),
        ("prdp", TrajectoryDifference(PrdpOptions(clip=5e-3, antithetic=True), clip=5e-3)),
    ):
        setup = dataclasses.replace(tiny.setup(checkpoint, steps=2), objective=objective)
        list(train(setup, folder(tmp_path, name), resume=None))
        learnt.append(setup.model.trainable())
    assert all(torch.equal(value, learnt[1][name]) for name, value in learnt[0].items())


def test_in_two_steps_branched_pairs_are_antithetic_pairs(checkpoint, tmp_path):
    """There is one action that earns a reward, so that it is the branch."""
    learnt = []
    for branched in (False, True):
        setup = tiny.setup(checkpoint, steps=2, branched=branched)
        list(train(setup, folder(tmp_path, str(branched)), resume=None))
        learnt.append(setup.model.trainable())
    assert all(torch.equal(value, learnt[1][name]) for name, value in learnt[0].items())


def test_a_resumed_run_writes_its_adapter_anew(checkpoint, tmp_path):
    run = folder(tmp_path)
    list(train(tiny.setup(checkpoint, epochs=1), run, resume=None))
    weights = run.adapter / "pytorch_lora_weights.safetensors"
    expected = load_file(weights)
    weights.unlink()
    assert [type(event) for event in train(tiny.setup(checkpoint, epochs=1), run, resume=Resumption())] == [Resumed]
    found = load_file(weights)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_prompts_are_encoded_once_in_a_run(checkpoint, tmp_path, monkeypatch):
    setup = tiny.setup(checkpoint, epochs=4)
    encoded, encode = [], setup.model.encode
    monkeypatch.setattr(setup.model, "encode", lambda prompts: encoded.extend(prompts) or encode(prompts))
    list(train(setup, folder(tmp_path), resume=None))
    assert sorted(encoded) == ["ant", "bee", "cat", "dog", "owl"]
