"""`sdpo eval`: base model and adapter on the same prompts and seeds."""

import json
import re
import shutil

import pytest

from sdpo_cli.main import main


@pytest.fixture
def run(trained, workplace):
    """A copy of the finished run where commands look for it."""
    shutil.copytree(trained / "runs", workplace / "runs", symlinks=True)
    return workplace / "runs" / "small"


def test_the_latest_run_is_compared_with_its_base_model(run, workplace, capsys):
    assert main(["eval", "--steps", "1,2", "--quiet"]) == 0
    table = capsys.readouterr().out
    assert re.search(r"│ colorfulness │ +2 │ +[\d.]+ │ +[\d.]+ │ +[+-][\d.]+ ± [\d.]+ │ +\d+% │", table)
    folder = workplace / "evals" / "small"
    assert sorted(path.name for path in folder.iterdir()) == ["grid.png", "report.html", "report.json", "values.jsonl"]
    ours, trainers = (json.loads(path.read_text()) for path in (folder / "report.json", run / "report.json"))
    assert ours["results"] == trainers["results"]


def test_every_value_says_how_to_draw_its_picture_again(run, workplace):
    assert main(["eval", "--steps", "1", "--prompts", "few.txt", "--reward", "emoji-clip", "--quiet"]) == 0
    rows = [json.loads(line) for line in (workplace / "evals" / "small" / "values.jsonl").read_text().splitlines()]
    assert [(row["model"], row["prompt"], row["seed"]) for row in rows] == [
        (model, prompt, seed)
        for model in ("base", "tuned")
        for seed, prompt in enumerate(["cat", "cat", "two dogs", "two dogs"])
    ]
    assert all(set(row) == {"model", "steps", "prompt", "seed", "emoji-clip"} for row in rows)
    row = next(row for row in rows if row["model"] == "tuned" and row["seed"] == 2)
    draw = ["sample", str(run), "--prompt", row["prompt"], "--seed", "2", "--count", "1", "--steps", "1"]
    assert main([*draw, "--out", "again", "--quiet"]) == 0
    assert main(["score", "again", "--reward", "emoji-clip"]) == 0
    (score,) = [json.loads(line) for line in (workplace / "again" / "scores.jsonl").read_text().splitlines()]
    assert score["value"] == pytest.approx(row["emoji-clip"], abs=2e-3)


def test_without_a_run_the_base_model_alone_is_measured(workplace, capsys):
    (workplace / "two.txt").write_text("cat\ndog\n")
    assert main(["eval", "--steps", "1,2", "--prompts", "two.txt", "--quiet"]) == 0
    assert re.search(r"│ emoji-clip +│ +1 │ +[\d.]+ ± [\d.]+ │", capsys.readouterr().out)
    report = json.loads((workplace / "evals" / "quickstart" / "report.json").read_text())
    assert report["adapter"] is None
    assert all(row["tuned"] is None for row in report["results"])


REFUSED = {
    "bad steps": (
        ["eval", "--steps", "1,x"], 2, "--steps: 'x' should be a whole number, 1 or more; write them as in 1,2,4",
    ),
    "no steps": (
        ["eval", "--steps", "0,1"], 2, "--steps: '0' should be a whole number, 1 or more; write them as in 1,2,4",
    ),
    "steps beyond reason": (
        ["eval", "--steps", "1,123456"], 2,
        "--steps: '123456' should be a whole number, below 100000; write them as in 1,2,4",
    ),
    "too many steps": (
        ["eval", "small.yaml", "--steps", "1,1001", "--reward", "colorfulness"], 2,
        r"--steps, \S*emoji-turbo: 1001 steps cannot be sampled; use 1 to 1000 steps",
    ),
    "no reward": (
        ["eval", "emoji-turbo"], 2,
        "emoji-turbo: no reward to measure with; add --reward NAME; see `sdpo plugins list`",
    ),
    "unknown reward": (
        ["eval", "emoji-turbo", "--reward", "emojiclip"], 2,
        r"--reward: no reward named 'emojiclip'; did you mean emoji-clip\? .*",
    ),
    "unfinished run": (
        ["eval", "unfinished"], 4,
        "unfinished: this run has no adapter yet; train it: `sdpo train --out unfinished --resume`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_and_write_nothing(workplace, capsys, case):
    (workplace / "unfinished").mkdir()
    shutil.copy(workplace / "small.yaml", workplace / "unfinished" / "recipe.yaml")
    arguments, code, message = REFUSED[case]
    before = sorted(workplace.rglob("*"))
    assert main([*arguments, "--quiet"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {message}" or re.fullmatch(f"error: {message}", line), line
    assert sorted(workplace.rglob("*")) == before
