"""SIGINT, SIGTERM and SIGHUP to real processes: what is saved, how soon they end, and what a second one does."""

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from sdpo_cli.engine.training.checkpoint import newest_snapshot
from sdpo_cli.main import main

COMMAND = ("-m", "sdpo_cli")
SLOW_WRITE = (
    "-c",
    """\
import os, sys, time
fsync = os.fsync

def slow(handle):
    fsync(handle)
    if ".partial-epoch-00002" in os.readlink(f"/proc/self/fd/{handle}"):
        time.sleep(100)

os.fsync = slow
from sdpo_cli.main import main
sys.exit(main(sys.argv[1:]))
""",
)
"""The command on a disk that takes 100 s for each file of the second checkpoint."""

HANGS = """\
import pathlib, time
from concurrent.futures import ThreadPoolExecutor

calls = 0

def score(images, prompts, metadata):
    global calls
    calls += 1
    if calls == 2:
        pathlib.Path("hanging").write_text("yes\\n")
        ThreadPoolExecutor().submit(time.sleep, 600).result()
    return images.mean((1, 2, 3))
"""


def sdpo(*arguments: str, folder: Path, program: tuple[str, ...] = COMMAND) -> subprocess.Popen:
    """The command in a process of its own, in a session of its own, so that signals reach it alone."""
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen, lines: int = 1) -> None:
    """Until `path` has so many lines; fails where the process ends before."""
    while not path.is_file() or path.read_text().count("\n") < lines:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_and_the_resumed_run_equals_the_unbroken_one(workplace, trained, number, code):
    process = sdpo("train", "small.yaml", "--out", "run", folder=workplace)
    wait_for(workplace / "run" / "metrics.jsonl", process)
    for _ in range(4):  # what comes within a second of the first is the first again, also while the process ends
        os.kill(process.pid, number)
        time.sleep(0.2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err.splitlines()[-1] == (
        f"error: run: stopped by {signal.Signals(number).name}; continue with `sdpo train --out run --resume`"
    )
    assert main(["train", "--out", "run", "--resume", "--quiet"]) == 0
    unbroken = trained / "runs" / "small"
    assert (workplace / "run" / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    newest = Path("checkpoints/epoch-00002/weights.safetensors")
    assert (workplace / "run" / newest).read_bytes() == (unbroken / newest).read_bytes()


def test_a_second_signal_leaves_at_once_and_the_last_whole_checkpoint_is_intact(workplace, trained):
    process = sdpo("train", "small.yaml", "--out", "run", folder=workplace, program=SLOW_WRITE)
    checkpoints = workplace / "run" / "checkpoints"
    wait_for(checkpoints / ".partial-epoch-00002" / "state.json", process, lines=0)
    process.send_signal(signal.SIGHUP)  # as a closed terminal does
    time.sleep(1.5)  # within a second it would be the same request
    assert process.poll() is None, "the first signal waits for the write"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGINT, err
    assert sorted(path.name for path in checkpoints.iterdir()) == [".partial-epoch-00002", "epoch-00001"]
    snapshot, notes = newest_snapshot(checkpoints)
    assert (snapshot.progress.epoch, notes) == (1, [])
    assert main(["train", "--out", "run", "--resume", "--quiet"]) == 0
    assert (workplace / "run/metrics.jsonl").read_bytes() == (trained / "runs/small/metrics.jsonl").read_bytes()


def test_a_reward_that_hangs_for_minutes_does_not_hold_up_the_end(workplace):
    (workplace / "hangs.py").write_text(HANGS)
    settings = ["--set", "reward=hangs:score", "--set", "train.samples_every=0"]
    process = sdpo("train", "small.yaml", "--out", "run", *settings, folder=workplace)
    wait_for(workplace / "hanging", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 143, err
    assert [json.loads(line)["epoch"] for line in (workplace / "run/metrics.jsonl").read_text().splitlines()] == [1]
    assert newest_snapshot(workplace / "run" / "checkpoints")[0].progress.epoch == 1


def test_a_closed_terminal_leaves_a_checkpoint_and_exit_code_129(workplace):
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, *COMMAND, "train", "small.yaml", "--out", "run"],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    metrics = workplace / "run" / "metrics.jsonl"
    while not metrics.is_file() or not metrics.read_text():
        assert process.poll() is None
        if select.select([master], [], [], 0.05)[0]:
            os.read(master, 1 << 16)
    os.close(master)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    assert newest_snapshot(workplace / "run" / "checkpoints")[0].progress.epoch == 1


def test_a_reader_that_goes_with_the_stop_leaves_its_exit_code(workplace):
    process = sdpo("train", "small.yaml", "--out", "run", folder=workplace)
    wait_for(workplace / "run" / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=60) == 130
