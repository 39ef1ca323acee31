"""Checkpoints and adapters out of rubbish: used, passed over with a note, or refused in one line."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_cases import cases, edited, edits, junk, outcome, safetensors
from hypothesis import strategies as st

from sdpo_cli.api.lora_file import read_lora
from sdpo_cli.engine.training.checkpoint import newest_snapshot, write_checkpoint
from sdpo_cli.engine.training.continuing import check_continues
from sdpo_cli.engine.training.snapshot import Progress, Snapshot
from sdpo_cli.errors import SdpoError
from sdpo_cli.maths import StepStatistics

ABOUT = {"base model": "tiny"}
NAMES = ["manifest.json", "state.json", "weights.safetensors", "optimizer.safetensors", "statistics.safetensors"]


def snapshot(epoch: int) -> Snapshot:
    statistics = StepStatistics(4, 2, {"a dog": torch.ones(1, 2)})
    return Snapshot(Progress(epoch, 8, 8, 1), statistics, {"w": torch.ones(2)}, {"w/step": torch.ones(())}, ABOUT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints; read them, change nothing."""
    folder = tmp_path_factory.mktemp("whole")
    for epoch in (1, 2):
        write_checkpoint(folder, snapshot(epoch), keep_last=2)
    return folder


@pytest.fixture(autouse=True)
def copy(whole: Path, place: Path) -> None:
    """A copy of them to break."""
    shutil.copytree(whole, place / "whole")


def broken(place: Path) -> Path:
    """A fresh copy, and in it the newest checkpoint."""
    shutil.rmtree(place / "some", ignore_errors=True)
    shutil.copytree(place / "whole", place / "some")
    return place / "some" / "epoch-00002"


def used(place: Path) -> Any:
    """What comes of the folder: the epoch gone on from, or the error."""

    def go_on() -> int:
        found, notes = newest_snapshot(place / "some")
        assert found is not None
        assert len(notes) == 2 - found.progress.epoch or found.progress.epoch not in (1, 2)
        check_continues(found, ABOUT)
        return found.progress.epoch

    return outcome(go_on)


harm = st.one_of(edits, st.just("missing"), st.just("folder"), st.sampled_from(NAMES))


@cases("checkpoint bytes", st.sampled_from(NAMES), harm)
def test_any_damage_is_noticed_and_the_one_before_is_used(place: Path, name: str, how: Any) -> None:
    path = broken(place)
    data = (path / name).read_bytes()
    if isinstance(how, list):
        (path / name).write_bytes(edited(data, how))
    elif how in NAMES:
        (path / name).write_bytes((path / how).read_bytes())
    else:
        (path / name).unlink()
        if how == "folder":
            (path / name).mkdir()
    same = (path / name).is_file() and (path / name).read_bytes() == data
    found = used(place)
    assert found == (2 if same else 1) or (name == "manifest.json" and (found == 2 or isinstance(found, SdpoError)))


tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I64", "BF16", "X9", 3]),
        "shape": st.lists(st.sampled_from([0, 1, 2, -1, 2**40]), max_size=2) | junk,
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 2**50]), max_size=3) | junk,
    }
)
headers = st.dictionaries(st.sampled_from(["w", "000000", "__metadata__", "unet.a.lora_A.weight"]), tensors | junk)
lies = st.builds(safetensors, headers | st.binary(max_size=9), st.binary(max_size=9), st.none() | st.integers(0, 2**64))
states = st.sampled_from(["format", "about", "progress", "statistics"])
inner = st.sampled_from(["size", "min_count", "prompts", "epoch", "images", "more"])


@cases("checkpoint state", st.tuples(states, st.none() | inner, junk) | st.tuples(st.sampled_from(NAMES[2:]), lies))
def test_a_checkpoint_whose_author_lies_is_used_or_passed_over(place: Path, lie: tuple[Any, ...]) -> None:
    path = broken(place)
    if len(lie) == 2:
        (path / lie[0]).write_bytes(lie[1])
    else:
        state = json.loads((path / "state.json").read_text())
        section, key, value = lie
        state[section] = {**state[section], key: value} if key and isinstance(state[section], dict) else value
        (path / "state.json").write_text(json.dumps(state))
    sums = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in NAMES[1:]}
    (path / "manifest.json").write_text(json.dumps({"format": 1, "sha256": sums}))
    used(place)


@cases("lora", lies)
def test_any_lora_file_is_read_or_refused(place: Path, data: bytes) -> None:
    path = place / "a.safetensors"
    path.write_bytes(data)
    outcome(lambda: read_lora(path))
