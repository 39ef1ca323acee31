"""SIGKILL in the middle of a comparison, twice: given again it ends as an unbroken one, and trains nothing twice."""

import json
import signal

import crash
import pytest

RECIPE = """\
model: %s
prompts: few.txt
reward: colorfulness
rollout: {pairs: 2, steps: 2}
train: {learning_rate: 1e-2}
eval: {steps: [1], images_per_prompt: 1}
"""
ARGUMENTS = ["--objectives", "sdpo,ddpo", "--seeds", "1", "--points", "2", "--quiet"]


@pytest.fixture(scope="module")
def forge(tmp_path_factory, checkpoint):
    """A forge in a folder with a recipe of a moment's work."""
    folder = tmp_path_factory.mktemp("forge")
    (folder / "few.txt").write_text("cat\nowl\n")
    (folder / "tiny.yaml").write_text(RECIPE % checkpoint)
    with crash.forge(folder) as started:
        yield started


def written(folder):
    """The bytes and times of every file under a folder."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_comparison_killed_twice_equals_the_unbroken_one(forge):
    def compare(out, under, *, images=8, **kill):
        budget = ["--budget", f"images={images}"]
        return forge.run("compare", "tiny.yaml", *ARGUMENTS, *budget, "--out", str(out), under=under, **kill)

    whole, out = forge.folder / "whole", forge.folder / "killed"
    ended, work, shown = compare(whole, whole / "runs" / "ddpo-seed0")
    assert ended == 0, shown

    # In the second run, between its epochs.
    epochs = [number for number, line in enumerate(work) if line.startswith("open") and "metrics.jsonl" in line]
    ended, _, said = compare(out, out / "runs" / "ddpo-seed0", die_at=epochs[1])
    assert ended == -signal.SIGKILL, said
    half = (out / "runs" / "ddpo-seed0" / "metrics.jsonl").read_text().splitlines()
    assert len(half) == 1
    first = written(out / "runs" / "sdpo-seed0")
    assert not (out / "comparison.json").exists()

    # Between the table for people and the one for programs.
    ended, _, said = compare(out, out / ".comparison", die_at=2)
    assert ended == -signal.SIGKILL, said
    assert (out / "comparison.md").exists()
    assert not (out / "comparison.json").exists()
    second = written(out / "runs" / "ddpo-seed0")

    ended, _, said = compare(out, out)
    assert ended == 0, said
    for name in ("comparison.json", "comparison.md", "steps-1.png", "runs/ddpo-seed0/metrics.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert said == shown
    assert written(out / "runs" / "sdpo-seed0") == first
    assert written(out / "runs" / "ddpo-seed0") == second

    # A larger budget goes on with the same runs.
    before = (out / "runs" / "sdpo-seed0" / "metrics.jsonl").read_text()
    ended, _, said = compare(out, out, images=16)
    assert ended == 0, said
    after = (out / "runs" / "sdpo-seed0" / "metrics.jsonl").read_text()
    assert after.startswith(before)
    assert [json.loads(line)["images"] for line in after.splitlines()] == [4, 8, 12, 16]
    curve = json.loads((out / "comparison.json").read_text())["runs"][0]
    assert [point["images"] for point in curve["points"]] == [0, 4, 8, 16]
