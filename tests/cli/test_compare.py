"""`sdpo compare` end to end on the smallest comparison, interrupted and given again."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

from sdpo_cli.engine.disk.locking import locked
from sdpo_cli.main import main

SMALL = [
    "--objectives", "sdpo,d3po,grpo", "--seeds", "1", "--budget", "images=8", "--points", "2", "--steps", "1",
    "--quiet", "--set", "reward=colorfulness", "--set", "rollout.pairs=2", "--set", "rollout.steps=2",
    "--set", "grpo:objective.grpo.group=4", "--set", "train.device=cpu", "--set", "eval.images_per_prompt=1",
    "--set", "eval.prompts=prompts.txt", "--set", "prompts=prompts.txt",
]  # fmt: skip


def test_a_comparison_from_start_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "prompts.txt").write_text("owl\nbee\n")
    shutil.copy(shipped("quickstart"), tmp_path / "small.yaml")
    assert main(["compare", "small.yaml", *[one for one in SMALL if one != "--quiet"]]) == 0
    out = tmp_path / "comparisons" / "small"
    said, told = capsys.readouterr()
    assert re.findall("about .*[0-9][ms] left for (.*)", told) == ["2 more runs", "1 more run"]
    assert told.count("evaluate: base model") == 1  # the three runs share it
    assert told.endswith("beside them: comparisons/small/comparison.md\nSee it again: sdpo compare comparisons/small\n")
    table = (out / "comparison.md").read_text()
    assert table.startswith(
        "# Comparison of sdpo, d3po, grpo\n\n- recipe: `small.yaml`\n- seeds: 0\n"
        "- figures: [1 step](steps-1.png)\n\n| colorfulness, after 8 pictures | 1 step |\n"
    )
    assert said.splitlines()[0] == "colorfulness, after 8 pictures"
    assert max(map(len, said.splitlines())) <= 80
    (value,) = re.findall(r"\| d3po \| (.*) \|", table.split("\n\n")[2])
    assert re.search(rf"│ d3po +│ +{re.escape(value)} │", said)
    found = json.loads((out / "comparison.json").read_text())
    assert [(run["arm"], [point["images"] for point in run["points"]]) for run in found["runs"]] == [
        ("sdpo", [0, 4, 8]), ("d3po", [0, 4, 8]), ("grpo", [0, 4, 8])
    ]  # fmt: skip
    assert (out / "steps-1.png").read_bytes().startswith(b"\x89PNG")

    # Given again it trains nothing; a run that was interrupted goes on, to the same numbers; one in use is left alone.
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/metrics.jsonl")}
    (out / "runs" / "d3po-seed0" / "evaluations" / "epoch-00002.json").unlink()
    assert main(["compare", "small.yaml", *SMALL]) == 0
    assert capsys.readouterr().out == said
    shown = [out / "runs" / "d3po-seed0" / name for name in ("report.json", "before-after.png")]
    shared = [path.read_bytes() for path in shown]
    shutil.rmtree(out / "runs" / "d3po-seed0")
    with locked(out / "locks" / "grpo-seed0"):
        assert main(["compare", "small.yaml", *SMALL]) == 0
    assert capsys.readouterr().out == said
    assert [path.read_bytes() for path in shown] == shared  # with the base model's pictures drawn anew

    # The folder alone shows the same table, and writes nothing.
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(["compare", "comparisons/small"]) == 0
    assert capsys.readouterr() == (
        said, "\nAll tables, with figures and runs beside them: comparisons/small/comparison.md\n"
    )  # fmt: skip
    with locked(out / "locks" / "grpo-seed0"):
        assert main(["compare", "comparisons/small", "--quiet"]) == 0
    assert capsys.readouterr() == (
        said, "\n1 more being made by other processes; give the command again to see them\n"
    )  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path != out / "locks" / "grpo-seed0"} == {
        path: time for path, time in written.items() if path != out / "locks" / "grpo-seed0"
    }
    assert main(["compare", "comparisons/small", "--seeds", "3"]) == 2
    assert capsys.readouterr().err == (
        "error: --seeds: a comparison is shown again as it was made; leave it out, or name the recipe instead\n"
    )
    after = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/metrics.jsonl")}
    assert {path.parent.name for path in after if after[path] != before.get(path)} == {"d3po-seed0"}

    # Finished runs are compared without a recipe.
    runs = [str(out / "runs" / name) for name in ("sdpo-seed0", "grpo-seed0")]
    assert main(["compare", *runs, "--out", "two", "--quiet"]) == 0
    assert "│ grpo-seed0 │" in capsys.readouterr().out
    assert main(["compare", *runs, "--out", "held", "--quiet", "--holding", "emoji-clip=0.1"]) == 2
    assert capsys.readouterr().err == (
        "error: --holding: nothing called 'emoji-clip' is measured; measured: colorfulness\n"
    )
    assert main(["compare", *runs, "--out", "two", "--quiet"]) == 2
    assert capsys.readouterr().err == "error: two: is not an empty folder; name another one with --out\n"

    # What was evaluated otherwise is no part of it.
    assert main(["compare", "small.yaml", *SMALL, "--steps", "1,2"]) == 2
    assert capsys.readouterr().err == (
        "error: comparisons/small/runs/sdpo-seed0/recipe.yaml: eval.steps: not as in the run that is there; evaluate "
        "as it does, or choose another --out\n"
    )
    lively = sorted((out / "runs").iterdir())[:2]
    recipe = lively[0] / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("images_per_prompt: 1", "images_per_prompt: 3"))
    assert main(["compare", *map(str, lively), "--quiet"]) == 2
    assert capsys.readouterr().err == (
        f"error: {lively[1]}: eval.images_per_prompt is 1, but 3 in {lively[0]}; compare runs that were evaluated "
        "alike\n"
    )

    # Another recipe does not mix with these runs.
    assert main(["compare", "small.yaml", *SMALL, "--set", "sdpo:train.learning_rate=1e-5"]) == 2
    assert capsys.readouterr().err == (
        "error: comparisons/small/runs/sdpo-seed0/recipe.yaml: train.learning_rate: 0.0016 in the run that "
        "is there, not 1e-05; choose another --out\n"
    )


def test_an_interrupted_comparison_says_how_it_goes_on(workplace):
    arguments = ["compare", "small.yaml", *SMALL[:-4], "--out", "cmp", "--set", "train.device=cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sdpo_cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = workplace / "cmp" / "runs" / "sdpo-seed0" / "metrics.jsonl"
    while not metrics.is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[1] == "error: sdpo-seed0: stopped; give the same command again to go on\n"
    assert process.returncode == 143


def shipped(name):
    from sdpo_cli.recipe import shipped_recipes

    return shipped_recipes()[name]


def test_a_path_without_a_run_among_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    remedy = "name one recipe, one comparison, or folders that `sdpo train` wrote"
    (tmp_path / "empty").mkdir()
    for sources, fault in [
        (["quickstart", "nowhere"], f"nowhere: neither a recipe nor a run; {remedy}"),
        (["runs/quikstart"], f"runs/quikstart: neither a recipe nor a run; did you mean quickstart? {remedy}"),
        (["empty"], f"empty: neither a recipe nor a run; {remedy}"),
        (["quickstart", "guarded"], f"quickstart: a recipe, and not the only one named; {remedy}"),
    ]:
        assert main(["compare", *sources]) == 2
        assert capsys.readouterr().err == f"error: {fault}\n"


def test_a_comparison_that_cannot_be_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for part in ("locks", "runs"):
        (tmp_path / "begun" / part).mkdir(parents=True)
    assert main(["compare", "begun"]) == 2
    assert capsys.readouterr().err == (
        "error: begun: a comparison without a table yet; give the command that began it again, to go on\n"
    )
    for damaged in ("", "{}", '{"format": 1, "table": [], "held": []}', '{"format": 2, "table": [], "held": []}'):
        (tmp_path / "begun" / "comparison.json").write_text(damaged)
        assert main(["compare", "begun"]) == 4
        assert capsys.readouterr().err == (
            "error: begun/comparison.json: not a comparison as sdpo writes it; give the command that made it again\n"
        )
