"""Numbers that are not finite: they stop the epoch, which leaves nothing behind, and their batch is kept."""

import dataclasses
import json
import re

import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.builtin.objectives.options import SdpoOptions
from sdpo_cli.builtin.objectives.sdpo import Sdpo
from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.events import EpochDone
from sdpo_cli.engine.rewards.scoring import LoadedReward
from sdpo_cli.engine.training.checkpoint import newest_snapshot
from sdpo_cli.engine.training.trainer import train
from sdpo_cli.errors import PluginError, TrainingError


def folder(tmp_path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


def test_the_batch_of_an_update_that_is_not_finite_is_kept(checkpoint, tmp_path):
    class Sick(Sdpo):
        def loss(self, batch):
            found = super().loss(batch)
            return dataclasses.replace(found, loss=found.loss * torch.nan)

    run, setup = folder(tmp_path), tiny.setup(checkpoint, epochs=2)
    setup = dataclasses.replace(setup, objective=Sick(SdpoOptions()))
    with pytest.raises(TrainingError) as fault:
        list(train(setup, run, resume=None))
    kept = run.faults / "epoch-00001.json"
    assert re.fullmatch(
        r"epoch 1, update of steps \[.*\], objective sdpo: loss is nan, grad_norm is nan; the epoch is undone; "
        rf"see its batch in {re.escape(str(kept))}; .+",
        str(fault.value),
    )
    said = json.loads(kept.read_text())
    assert sorted(pair["number"] for pair in said["pairs"]) == [0, 1, 2, 3]
    assert {pair["prompt"] for pair in said["pairs"]} <= {prompt.text for prompt in tiny.PROMPTS}
    numbers = load_file(kept.with_suffix(".safetensors"))
    assert numbers.keys() == {"x_t", "x0", "log_prob", "advantage"}
    assert {tuple(one.shape[:2]) for one in numbers.values()} == {(2, 4)}
    assert all(bool((one == 0).all()) for name, one in setup.model.trainable().items() if "lora_B" in name)


def test_nothing_is_left_of_an_epoch_with_an_update_that_is_not_finite(checkpoint, tmp_path):
    """Weights, moments and averages are those of the epoch before, though its later updates have changed them."""

    class SickOnce(Sdpo):
        calls = 0

        def loss(self, batch):
            self.calls += 1
            found = super().loss(batch)
            return dataclasses.replace(found, loss=found.loss * (torch.nan if self.calls == per_epoch + 2 else 1.0))

    run, setup, per_epoch = folder(tmp_path), tiny.setup(checkpoint, epochs=3), 4
    averaging = setup.recipe.train.model_copy(update={"ema_decay": 0.5})
    recipe = setup.recipe.model_copy(update={"train": averaging})
    setup = dataclasses.replace(setup, recipe=recipe, batch=2, objective=SickOnce(SdpoOptions()))
    with pytest.raises(TrainingError, match=r"^epoch 2, update of steps .+: loss is nan, grad_norm is nan; "):
        list(train(setup, run, resume=None))
    assert setup.objective.calls == 2 * per_epoch
    saved = newest_snapshot(run.checkpoints)[0]
    assert (saved.progress.epoch, saved.progress.updates) == (1, per_epoch)
    trained = setup.model.trainable()
    assert all(torch.equal(one, trained[name]) for name, one in saved.weights.items())
    assert all(bool(one.isfinite().all()) for one in [*saved.weights.values(), *saved.optimizer.values()])
    assert any(name.endswith("/average") for name in saved.optimizer)


class NoOwls(tiny.Brightness):
    """Has no number for the second picture of an owl."""

    def score(self, request: ScoreRequest) -> ScoreResult:
        values = super().score(request).values
        owls = [number for number, prompt in enumerate(request.prompts) if prompt == "owl"]
        values[owls[1:2]] = torch.nan
        return ScoreResult(values)


def test_the_pictures_of_a_reward_that_is_not_finite_are_kept(checkpoint, tmp_path):
    run, setup = folder(tmp_path), tiny.setup(checkpoint, epochs=2)
    setup = dataclasses.replace(setup, rewards=(LoadedReward("sick", "1", 1.0, NoOwls()),))
    with pytest.raises(PluginError) as fault:
        list(train(setup, run, resume=None))
    kept = max(run.faults.glob("*.json"))
    assert re.fullmatch(
        r"epoch [12], step 2 of rollout 0 of pair \d \('owl'\), reward sick: values are not finite: "
        rf"nan for picture \d, 1 of \d in all \(.*\); see its batch in {re.escape(str(kept))}; "
        "a reward must give finite numbers",
        str(fault.value),
    )
    said = json.loads(kept.read_text())
    first, *_, last = said["pictures"]
    number = int(re.search(r"pair (\d)", str(fault.value))[1])
    wanted = {"number": number, "prompt": "owl", "rollout": 0, "step": 2, "value": "nan", "finite": False}
    assert first.items() >= wanted.items()
    assert (last["finite"], float(last["value"]) > 0, said["left_out"]) == (True, True, 0)
    for entry in said["pictures"]:
        with Image.open(kept.with_suffix("") / f"{entry['picture']:04d}.png") as picture:
            assert picture.size == (16, 16)


def test_the_rollouts_of_a_model_that_is_not_finite_are_kept_and_no_reward_is_blamed(checkpoint, tmp_path):
    run, setup = folder(tmp_path), tiny.setup(checkpoint, epochs=3)
    with pytest.raises(TrainingError) as fault:
        for event in train(setup, run, resume=None):
            if isinstance(event, EpochDone):
                sick = next(iter(setup.model.trainable().values()))
                with torch.no_grad():
                    sick.fill_(torch.nan)
    kept = run.faults / "epoch-00002.json"
    assert re.fullmatch(
        r"epoch 2, step 0 of rollout 0 of pair 4 \('\w+'\), model .+: 12 of 12 clean estimates or their "
        rf"log-probabilities are not finite; see its batch in {re.escape(str(kept))}; "
        "lower train.learning_rate, or use model.dtype float32",
        str(fault.value),
    )
    said, numbers = json.loads(kept.read_text()), load_file(kept.with_suffix(".safetensors"))
    assert (said["steps"], [pair["number"] for pair in said["pairs"]]) == ([0, 1, 2], [4, 5])
    assert {name: tuple(one.shape[:3]) for name, one in numbers.items()} == {
        "x_t": (2, 2, 4), "x0": (2, 2, 3), "log_prob": (2, 2, 3),
    }  # fmt: skip
    assert bool(numbers["x0"].isnan().all())
    saved = newest_snapshot(run.checkpoints)[0]
    assert saved.progress.epoch == 1
    assert all(bool(one.isfinite().all()) for one in saved.weights.values())
