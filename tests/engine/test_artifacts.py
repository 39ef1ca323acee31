"""A run's folder: who gets which, and what `latest` points to."""

import pytest
import torch

from sdpo_cli.engine.disk.artifacts import (
    RunFolder,
    claim_run_folder,
    forget_after,
    latest_run,
    mark_latest,
    read_epochs,
    sweep,
    write_recipe,
)
from sdpo_cli.engine.disk.board import Board
from sdpo_cli.engine.memory import fitting
from sdpo_cli.errors import ArtifactError, TrainingError, UsageError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_no_two_runs_get_the_same_folder():
    names = [claim_run_folder(None, "one").path.name for _ in range(3)]
    assert names == ["one", "one-2", "one-3"]


def test_the_name_of_the_link_is_not_for_runs(tmp_path):
    for out in (None, tmp_path / "elsewhere" / "latest"):
        if out is None:
            with pytest.raises(UsageError, match=r"^runs/latest: names the newest run; choose another name$"):
                claim_run_folder(None, "latest")
        else:
            assert claim_run_folder(out, "one").path == out


def test_latest_follows_the_newest_run_under_runs():
    assert latest_run() is None
    for name in ("one", "two"):
        write_recipe(claim_run_folder(None, name), "seed: 0\n")
    assert latest_run() == RunFolder(claim_run_folder(None, "x").path.parent / "two").path


def test_a_run_elsewhere_marks_nothing_and_destroys_nothing(tmp_path):
    (tmp_path / "latest").write_text("a file of the user's")
    write_recipe(claim_run_folder(tmp_path / "run", "run"), "seed: 0\n")
    assert (tmp_path / "latest").read_text() == "a file of the user's"
    assert latest_run() is None


def test_something_else_called_latest_is_left_alone(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "latest").write_text("notes")
    run = claim_run_folder(None, "one")
    write_recipe(run, "seed: 0\n")
    mark_latest(run.path)
    assert (tmp_path / "runs" / "latest").read_text() == "notes"


def test_lines_after_an_epoch_and_a_torn_last_line_are_forgotten(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epoch": 3}\n{"epo')
    forget_after(path, 2)
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


@pytest.mark.parametrize("line", ["{}", "[1]", '{"epoch": "x"}', "\0\0"])
def test_a_damaged_line_between_whole_ones_is_said_with_its_number(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"epoch": 1}}\n{line}\n{{"epoch": 3}}\n')
    with pytest.raises(ArtifactError) as fault:
        forget_after(path, 3)
    assert str(fault.value) == f"{path}:2: not the record of an epoch; remove or mend the line"


def test_records_are_read_or_the_line_that_lacks_a_number_is_said(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_epochs(path) == []
    path.write_text('{"epoch": 1, "images": 2}\n\n{"epoch": 2}\n')
    assert [row["epoch"] for row in read_epochs(path)] == [1, 2]
    with pytest.raises(ArtifactError) as fault:
        read_epochs(path, "images")
    assert str(fault.value) == f"{path}:3: not the record of an epoch; remove or mend the line"


def test_what_killed_writes_have_left_is_swept_away(tmp_path):
    run = claim_run_folder(tmp_path / "run", "run")
    (run.checkpoints / ".partial-epoch-00002").mkdir(parents=True)
    for name in ("metrics.jsonl", ".metrics.jsonl.17.tmp", ".lock"):
        (run.path / name).write_text("")
    sweep(run)
    assert sorted(path.name for path in run.path.rglob("*")) == [".lock", "checkpoints", "metrics.jsonl"]


def test_tensorboard_events_hold_every_epoch_once(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    rows = [{"images": 8, "loss": 0.5, "reward/x": 1.0}]
    Board(tmp_path / "board", [*rows, {"images": 16, "loss": 0.4, "reward/x": 2.0}])
    board = Board(tmp_path / "board", rows)
    board.add({"images": 16, "loss": 0.25, "reward/x": 3.0})
    board.close()
    (file,) = (tmp_path / "board").iterdir()
    found, data = [], file.read_bytes()
    while data:  # a record is length, checksum of it, content, checksum of it
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert found == [
        (8, "train/images", 8.0), (8, "train/loss", 0.5), (8, "reward/x", 1.0),
        (16, "train/images", 16.0), (16, "train/loss", 0.25), (16, "reward/x", 3.0),
    ]  # fmt: skip


def test_work_that_runs_out_of_memory_is_tried_in_halves():
    tried = []

    def call(batch: int) -> str:
        tried.append(batch)
        if batch > 3:
            raise torch.OutOfMemoryError("more than the card has")
        return "done"

    assert fitting(call, 16, "picture") == ("done", 2)
    assert tried == [16, 8, 4, 2]


def test_one_that_does_not_fit_is_said_in_one_line():
    def call(batch: int) -> None:
        raise torch.OutOfMemoryError("more than the card has")

    with pytest.raises(TrainingError) as fault:
        fitting(call, 4, "picture")
    assert str(fault.value) == (
        "one picture does not fit into the device's memory; "
        "use model.options.vae_tiling or tiny_vae, model.dtype bfloat16, smaller pictures or a smaller model"
    )
