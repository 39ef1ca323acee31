"""SIGKILL at 25 seeded instants of a real run, ten of them inside the writing of a checkpoint: nothing is lost."""

import json
import random
import signal
import time
from pathlib import Path

import crash
import pytest
from PIL import Image

from sdpo_cli.engine.disk.locking import LOCK
from sdpo_cli.engine.training.checkpoint import verify

KILLS, INSIDE = 25, 10
EPOCHS = 3
RECIPE = """\
model: %s
prompts: few.txt
reward: colorfulness
rollout: {pairs: 2, steps: 2}
train: {epochs: %d, learning_rate: 1e-2, ema_decay: 0.5, samples_every: 2, keep_last: 9}
eval: {steps: [1], images_per_prompt: 1}
"""


@pytest.fixture(scope="module")
def forge(tmp_path_factory, checkpoint):
    """A forge in a folder with a recipe of a moment's work."""
    folder = tmp_path_factory.mktemp("forge")
    (folder / "few.txt").write_text("cat\nowl\n")
    (folder / "tiny.yaml").write_text(RECIPE % (checkpoint, EPOCHS))
    with crash.forge(folder) as started:
        yield started


@pytest.fixture(scope="module")
def unbroken(forge) -> tuple[Path, float]:
    """The run that nobody kills, with all its checkpoints, and the seconds it took."""
    run, since = forge.folder / "unbroken", time.monotonic()
    ended, _, said = forge.run("train", "tiny.yaml", "--out", str(run), under=run)
    assert ended == 0, said
    return run, time.monotonic() - since


def test_a_run_killed_at_25_instants_equals_the_unbroken_one(forge, unbroken):
    """Each chain is one run, killed and resumed until it reaches its end before the next kill reaches it."""
    (whole, seconds), dice = unbroken, random.Random(20261126)
    kills = torn = chains = 0
    while kills < KILLS:
        run = forge.folder / f"chain-{chains}"
        chains += 1
        while kills < KILLS:
            killed, left = kill_once(forge, run, dice, seconds, inside=kills < INSIDE)
            if not killed:
                break
            kills, torn = kills + 1, torn + left
            check_nothing_lost(run, whole)
        else:
            finish(forge, run)
        check_equal(run, whole)
    assert torn >= INSIDE - 2, "two of a write's steps come before its folder is made"


def kill_once(forge, run: Path, dice: random.Random, seconds: float, *, inside: bool) -> tuple[bool, bool]:
    """Start or go on with the run and kill it; whether that was before its end, and inside a checkpoint's writing.

    Instants inside are counted in files touched, those anywhere in the run in time.
    """
    argv = ["--resume"] if (run / "recipe.yaml").exists() else ["tiny.yaml"]
    argv = ["train", *argv, "--out", str(run), "--set", f"train.keep_last={dice.choice((1, 2))}"]
    partial = run / "checkpoints" / ".partial-"
    if inside:
        ended, _, said = forge.run(*argv, under=partial, die_at=dice.randrange(2, 14))
    else:
        ended, _, said = forge.run(*argv, under=run, die_after=dice.uniform(0, seconds / 3))
    assert ended in (0, -signal.SIGKILL), said
    return ended != 0, bool(list(partial.parent.glob(".partial-*")))


def finish(forge, run: Path) -> None:
    """Go on with the run to its end."""
    start = ["--resume"] if (run / "recipe.yaml").exists() else ["tiny.yaml"]
    ended, _, said = forge.run("train", *start, "--out", str(run), "--set", "train.keep_last=2", under=run)
    assert ended == 0, said


def check_nothing_lost(run: Path, whole: Path) -> None:
    """The newest checkpoint is that of the unbroken run, to the byte, and at most the last epoch has none."""
    lines = (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").exists() else 0
    kept = sorted(path for path in (run / "checkpoints").glob("epoch-*"))
    assert len(kept) >= bool(lines > 1)
    for newest in kept[-1:]:
        verify(newest)
        assert files(newest) == files(whole / "checkpoints" / newest.name)
        assert int(newest.name.removeprefix("epoch-")) >= lines - 1


def check_equal(run: Path, whole: Path) -> None:
    """Everything that is not a time or a date is that of the unbroken run, and nothing torn lies about."""
    for kept in sorted((run / "checkpoints").iterdir()):
        assert files(kept) == files(whole / "checkpoints" / kept.name)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    weights = Path("adapter/pytorch_lora_weights.safetensors")
    assert parts(run / weights) == parts(whole / weights)
    assert files(run / "samples") == files(whole / "samples")
    times = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in times] == list(range(1, EPOCHS + 1))
    with Image.open(run / "before-after.png") as grid:
        grid.load()
    (events,) = (run / "tensorboard").iterdir()
    assert crash.event_steps(events) == crash.event_steps(next((whole / "tensorboard").iterdir()))
    assert [path.name for path in sorted(run.rglob(".*")) if path.name != LOCK] == []


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def parts(path: Path) -> tuple[dict[str, object], bytes]:
    """Header and numbers of a safetensors file: its library writes a header's two lines of metadata in any order."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]
