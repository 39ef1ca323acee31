"""The guard where all weights are trained."""

import dataclasses
import json
from pathlib import Path

import torch
from guarded import EPOCHS, between_first_and_second, keeping, run_folder, run_on, watched_setup
from safetensors.torch import load_file

from sdpo_cli.engine.disk.changes import Resumption
from sdpo_cli.engine.events import StageStarted
from sdpo_cli.engine.setup import Setup
from sdpo_cli.engine.training.checkpoint import checkpoint_path, read_checkpoint
from sdpo_cli.recipe import GuardSection


def full_setup(checkpoint: Path, guard: GuardSection) -> Setup:
    """The watched setup with `model.train: full`, all checkpoints kept."""
    setup = watched_setup(checkpoint, guard, rate=1e-3, keep_last=EPOCHS)
    model = setup.recipe.model.model_copy(update={"train": "full"})
    return dataclasses.replace(setup, recipe=setup.recipe.model_copy(update={"model": model}))


def test_all_weights_go_back_the_kept_ones_are_the_adapter_and_a_resumed_run_is_the_unbroken_one(checkpoint, tmp_path):
    free = full_setup(checkpoint, GuardSection())
    folder = run_folder(tmp_path / "free", free)
    list(run_on(free, folder))
    guard = keeping(between_first_and_second(folder), times=1)
    whole, resumed = (run_folder(tmp_path / name, free) for name in ("whole", "resumed"))
    list(run_on(full_setup(checkpoint, guard), whole))
    lines = [json.loads(line) for line in whole.guard.read_text().splitlines()]
    assert [line["action"] for line in lines][:2] == ["go on", "go back"]
    kept = read_checkpoint(checkpoint_path(whole.checkpoints, lines[-1]["best"])).weights
    adapter = load_file(whole.adapter / "diffusion_pytorch_model.safetensors")
    assert adapter.keys() == kept.keys()
    assert all(torch.equal(adapter[name], kept[name]) for name in kept)

    events = run_on(full_setup(checkpoint, guard), resumed)
    next(event for event in events if event == StageStarted("update", 3, EPOCHS))
    events.close()
    list(run_on(full_setup(checkpoint, guard), resumed, resume=Resumption()))
    for one in whole.checkpoints.iterdir():
        assert {path.name: path.read_bytes() for path in one.iterdir()} == {
            path.name: path.read_bytes() for path in (resumed.checkpoints / one.name).iterdir()
        }
    assert resumed.metrics.read_bytes() == whole.metrics.read_bytes()
