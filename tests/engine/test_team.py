"""One run in several real processes, over gloo: the numbers of one process, and what is lost when one of them fails."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import ranks
import torch

from sdpo_cli.engine.training.checkpoint import newest_snapshot
from sdpo_cli.main import main

RECIPE = """\
model: %s
prompts: few.txt
reward: {colorfulness: {normalise: prompt}, "bright:score": {weight: 9}}
rollout: {pairs: 4, steps: 3}
train: {epochs: 2, learning_rate: 1e-2, epsilon: 1e-3, samples_every: 0}
eval: {steps: [1], images_per_prompt: 1}
"""
FUNCTION = """\
import os, signal

calls = 0

def score(images, prompts, metadata):
    global calls
    calls += 1
    if calls == 2 and os.environ.get("RANK") == "1":
        %s
    return images.mean((1, 2, 3))
"""
"""A reward that goes wrong in the second epoch of rank 1."""


@pytest.fixture(scope="module")
def team(tmp_path_factory, checkpoint):
    """Processes in a folder with a recipe of a moment's work."""
    folder = tmp_path_factory.mktemp("team")
    (folder / "few.txt").write_text("cat\nowl\nbee\n")
    (folder / "bright.py").write_text("def score(images, prompts, metadata):\n    return images.mean((1, 2, 3))\n")
    (folder / "tiny.yaml").write_text(RECIPE % checkpoint)
    with ranks.ranks(folder) as started:
        yield started


def train(team, out: str, size: int, *settings: str) -> list[dict[str, float]]:
    """Train, or go on; gives the metrics, an epoch each."""
    start = ["--resume"] if (team.folder / out / "recipe.yaml").exists() else ["tiny.yaml"]
    codes, said = team.run("train", *start, "--out", out, *[f"--set={one}" for one in settings], size=size)
    assert codes == [0] * size, said
    assert not any(said[1:])
    return metrics(team.folder / out)


def metrics(run: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    return rows


def check_equal(team, one: str, other: str) -> None:
    """The same metrics, weights and counters up to the order of sums in float32."""
    for row, like in zip(*(metrics(team.folder / run) for run in (one, other)), strict=True):
        for numbers in (row, like):
            numbers.pop("preferred", None)  # the share of Δρ > 0; before the first update all are 0 but for rounding
        for name, value in row.items():
            assert value == pytest.approx(like[name], rel=ENLARGED.get(name, 1e-4), abs=1e-6), name
        assert row.keys() == like.keys()
    snapshots = [newest_snapshot(team.folder / run / "checkpoints")[0] for run in (one, other)]
    for found, like in zip(*(snapshot.weights.values() for snapshot in snapshots), strict=True):
        torch.testing.assert_close(found, like, rtol=1e-4, atol=1e-5)
    assert snapshots[0].optimizer.keys() == snapshots[1].optimizer.keys()
    assert snapshots[0].progress == snapshots[1].progress


ENLARGED = dict.fromkeys(("loss", "grad_norm", "ratio_max"), 1e-3)
"""Metrics of an epoch that starts from weights one update apart by rounding, where a small spread of rewards was
divided by: 3e-4 on one machine."""

VARIANTS = {
    "sdpo with prompt statistics, 9 pairs in batches of 3, pulled to the base model": (
        2, ["rollout.pairs=9", "train.batch=3", "train.kl=0.1", "train.ema_decay=0.5",
            "objective.sdpo.statistics.min_count=1"]),
    "d3po, whose loss compares with the base model, one process without a pair": (
        3, ["rollout.pairs=2", "objective={d3po: {}}", "train.epochs=1"]),
    "ddpo, all weights": (2, ["rollout.pairs=5", "objective={ddpo: {}}", "model.train=full", "train.epochs=1"]),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_several_processes_make_the_numbers_of_one(team, variant):
    (size, settings), place = VARIANTS[variant], f"v{list(VARIANTS).index(variant)}"
    train(team, f"{place}-one", 1, *settings)
    train(team, f"{place}-several", size, *settings)
    check_equal(team, f"{place}-several", f"{place}-one")


def broken(team, name: str, how: str) -> tuple[list[int], list[str]]:
    """How two processes end that train for two epochs with a reward that goes wrong in the second of rank 1."""
    (team.folder / f"{name}.py").write_text(FUNCTION % how)
    return team.run("train", "tiny.yaml", "--out", name, f"--set=reward={name}:score", "--quiet", size=2)


def test_a_reward_that_fails_in_a_worker_is_told_in_one_line_with_its_rank(team):
    codes, said = broken(team, "fails", 'raise ValueError("no")')
    assert codes == [3, 0]
    assert said == [
        "error: rank 1, reward fails:score: raised ValueError: no at fails.py:9 (8 pictures, the first of 'owl'); "
        "mend the function; then continue with `sdpo train --out fails --resume --override reward`\n",
        "",
    ]
    assert newest_snapshot(team.folder / "fails" / "checkpoints")[0].progress.epoch == 1


def test_what_a_worker_cannot_load_is_told_before_anything_is_written(team):
    (team.folder / "absent.py").write_text(
        "import os\n\nif os.environ.get('RANK') != '1':\n    from bright import score\n"
    )
    codes, said = team.run("train", "tiny.yaml", "--out", "unloaded", "--set=reward=absent:score", "--quiet", size=2)
    fault = f"{team.folder / 'absent.py'} has no score; define score(images, prompts, metadata) there"
    assert (codes, said) == ([2, 0], [f"error: rank 1, tiny.yaml: reward.absent:score: {fault}\n", ""])
    assert not (team.folder / "unloaded").exists()


def test_a_worker_that_is_killed_costs_the_epoch_at_work_and_another_number_goes_on(team):
    codes, said = broken(team, "dies", "os.kill(os.getpid(), signal.SIGKILL)")
    assert codes == [5, -signal.SIGKILL]
    told = r"error: dies: a process of the run is gone \(.+\); continue with `sdpo train --out dies --resume`\n"
    assert re.fullmatch(told, said[0])
    assert not said[1]
    assert [row["epoch"] for row in metrics(team.folder / "dies")] == [1]
    train(team, "dies", 1)
    train(team, "whole", 1, "reward=dies:score")
    check_equal(team, "dies", "whole")


def test_a_fault_of_rank_0_s_own_is_told_and_the_others_leave(team):
    (team.folder / "own.py").write_text(FUNCTION.replace('"1"', '"0"') % 'raise ValueError("no")')
    codes, said = team.run("train", "tiny.yaml", "--out", "own", "--set=reward=own:score", "--quiet", size=3)
    assert codes == [3, 0, 0]
    assert said[0].startswith("error: reward own:score: raised ValueError: no at own.py:9 (")
    assert not any(said[1:])


def test_more_processes_go_on_with_a_run_of_one(team):
    train(team, "more", 1, "train.epochs=1")
    train(team, "more", 2, "train.epochs=2")
    train(team, "as-ever", 1)
    check_equal(team, "more", "as-ever")


def test_a_signal_stops_rank_0_while_another_process_is_busy(team):
    (team.folder / "slow.py").write_text(FUNCTION % "import time; open('busy', 'w').write('\\n'); time.sleep(600)")
    children = team.start("train", "tiny.yaml", "--out", "slow", "--set=reward=slow:score", "--quiet", size=2)
    wait_for(team.folder / "busy")
    os.kill(children[0], signal.SIGTERM)
    wait_for(team.folder / "said-0")
    with suppress(ProcessLookupError):  # between two tasks it has seen by itself that rank 0 is gone
        os.kill(children[1], signal.SIGKILL)
    codes, said = team.end()
    assert codes[0] == 143
    assert said[0] == "error: slow: stopped by SIGTERM; continue with `sdpo train --out slow --resume`\n"
    assert newest_snapshot(team.folder / "slow" / "checkpoints")[0].progress.epoch == 1


def test_rank_0_killed_lets_the_others_leave(team):
    children = team.start("train", "tiny.yaml", "--out", "headless", size=3)
    wait_for(team.folder / "headless" / "metrics.jsonl")
    os.kill(children[0], signal.SIGKILL)
    codes, said = team.end()
    assert (codes, said[1:]) == ([-signal.SIGKILL, 0, 0], ["", ""])


def wait_for(path: Path) -> None:
    """Until a file has a line."""
    until = time.monotonic() + 120
    while not path.is_file() or b"\n" not in path.read_bytes():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_torchrun_stopped_by_sigterm_leaves_a_checkpoint_to_go_on_with(team):
    command = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node=2", "-m", "sdpo_cli"]
    with subprocess.Popen(
        [*command, "train", "tiny.yaml", "--out", "stopped", "--set=train.epochs=400"],
        cwd=team.folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            wait_for(team.folder / "stopped" / "metrics.jsonl")
        finally:
            process.send_signal(signal.SIGTERM)  # which it passes on to all
        err = process.stderr.read()
    said = "error: stopped: stopped by SIGTERM; continue with `sdpo train --out stopped --resume`"
    assert err.splitlines().count(said) == 1
    epochs = len(metrics(team.folder / "stopped"))
    assert newest_snapshot(team.folder / "stopped" / "checkpoints")[0].progress.epoch == epochs
    assert len(train(team, "stopped", 1, f"train.epochs={epochs + 1}")) == epochs + 1
    train(team, "stopped", 2)  # all is trained: nothing is done, and nobody waits


def test_what_does_not_share_its_work_is_refused_once(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    ended = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        ended.append((main(["eval", "quickstart"]), capsys.readouterr().err))
    assert ended == [
        (2, "error: sdpo eval: runs in one process, and there are 2; start it without torchrun, or unset WORLD_SIZE; "
            "only `sdpo train` shares its work\n"),
        (0, ""),
    ]  # fmt: skip
