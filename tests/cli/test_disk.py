"""File systems that fill up, vanish or turn read-only under a run: real ones, mounted by the test."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from sdpo_cli.engine.disk.locking import LOCK
from sdpo_cli.main import main

REWARD = """\
import errno, os, subprocess
calls = 0

def score(images, prompts, metadata):
    global calls
    calls += 1
    if calls == 2:
        {fault}
    return images.mean((1, 2, 3))
"""

FILL = """try:
            with open("disk/filler", "wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        except OSError as error:
            assert error.errno == errno.ENOSPC"""
READ_ONLY = """subprocess.run(["mount", "--bind", "-o", "ro", "disk", "disk"], check=True)"""  # a remount is refused
VANISH = """subprocess.run(["umount", "-l", "disk"], check=True)"""

SETTINGS = [
    "--quiet", "--set", "train.epochs=3", "--set", "train.samples_every=0", "--set", "train.device=cpu",
    "--set", "eval.steps=[1]", "--set", "eval.images_per_prompt=1",
]  # fmt: skip


def mount(*arguments: str) -> None:
    """A mount of this test's own; skips where this user may not mount, as outside a container of their own."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


@pytest.fixture
def disk(workplace):
    """A folder `disk` of the workplace to mount something at."""
    folder = workplace / "disk"
    folder.mkdir()
    yield folder
    while os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


def train(module: str, fault: str) -> int:
    """The smallest run, into disk/run, at whose second epoch the reward brings about the fault."""
    Path(f"{module}.py").write_text(REWARD.replace("{fault}", fault))
    return main(["train", "small.yaml", "--out", "disk/run", *SETTINGS, "--set", f"reward={module}:score"])


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_disk_that_fills_up_costs_the_epoch_at_work(disk, capsys):
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk))
    assert train("fills", FILL) == 4
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.fullmatch(r"error: disk/run/\S+: cannot be written \(No space left on device\); free some space", line)
    assert sorted(path.name for path in (disk / "run" / "checkpoints").iterdir()) == ["epoch-00001"]

    (disk / "filler").unlink()
    assert main(["train", "--resume", "--out", "disk/run", "--quiet"]) == 0
    broken = metrics(disk / "run")
    assert main(["train", "small.yaml", "--out", "whole", *SETTINGS, "--set", "reward=fills:score"]) == 0
    assert broken == metrics(Path("whole"))


def test_a_disk_that_vanishes_costs_the_epoch_at_work(disk, workplace, capsys):
    real = workplace / "real"
    real.mkdir()
    mount("--bind", str(real), str(disk))
    assert train("vanishes", VANISH) == 4
    message = "error: disk/run: the run's folder has vanished; bring its disk back, and continue with --resume\n"
    assert capsys.readouterr().err == message
    assert list(disk.iterdir()) == []  # nothing beneath where the disk was
    assert sorted(path.name for path in (real / "run" / "checkpoints").iterdir()) == ["epoch-00001"]
    assert main(["train", "--resume", "--out", "real/run", "--quiet"]) == 0
    assert [row["epoch"] for row in metrics(real / "run")] == [1, 2, 3]


def test_a_disk_that_turns_read_only_costs_the_epoch_at_work(disk, capsys):
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk))
    assert train("turns", READ_ONLY) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: disk/run/metrics.jsonl: cannot be written (Read-only file system); check the folder and its permissions"
    )
    run = disk / "run"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["epoch-00001"]
    subprocess.run(["umount", str(disk)], check=True)
    assert main(["train", "--resume", "--out", "disk/run", "--quiet"]) == 0
    assert [row["epoch"] for row in metrics(run)] == [1, 2, 3]
    assert [path.name for path in run.rglob(".*") if path.name != LOCK] == []


def test_a_disk_that_has_turned_read_only_is_told_before_anything_is_loaded(disk, capsys):
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk))
    assert main(["train", "small.yaml", "--out", "disk/run", *SETTINGS, "--set", "train.epochs=1"]) == 0
    before = metrics(disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    capsys.readouterr()
    assert main(["train", "--resume", "--out", "disk/run", "--set", "train.epochs=2"]) == 4
    assert capsys.readouterr().err == (
        "error: disk/run/.lock: cannot be written (Read-only file system); check the folder and its permissions\n"
    )
    assert metrics(disk / "run") == before
