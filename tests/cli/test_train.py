"""`sdpo train` from the outside: what it writes, what it says, and what it refuses."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from PIL import Image

from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.training.run_request import finished_run
from sdpo_cli.main import main


def test_a_run_leaves_everything_it_promises(trained):
    run = trained / "runs" / "small"
    assert sorted(path.name for path in run.iterdir()) == [
        "adapter", "before-after.png", "checkpoints", "curves.png", "metrics.jsonl", "recipe.yaml", "report.html",
        "report.json", "samples", "tensorboard", "timings.jsonl",
    ]  # fmt: skip
    assert (trained / "runs" / "latest").resolve() == run
    assert sorted(path.name for path in (run / "adapter").iterdir()) == [
        "README.md", "pytorch_lora_weights.safetensors",
    ]  # fmt: skip
    assert [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert [path.name for path in (run / "samples").iterdir()] == ["epoch-00002.png"]
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    with Image.open(run / "before-after.png") as grid:
        assert min(grid.size) > 200


def test_the_written_recipe_is_whole_and_names_the_versions(trained):
    text = (trained / "runs" / "small" / "recipe.yaml").read_text()
    assert re.match(r"# Written by sdpo on 20\d\d-\d\d-\d\d \d\d:\d\d UTC with sdpo-cli \S+, torch \S+, ", text)
    written = yaml.safe_load(text)
    assert written["objective"]["sdpo"]["credit"] == "next"
    assert written["train"]["weight_decay"] == 1e-4
    assert written["eval"]["prompts"] == {"file": {"path": str(trained / "few.txt")}}


def test_the_report_compares_the_same_pictures_before_and_after(trained):
    report = json.loads((trained / "runs" / "small" / "report.json").read_text())
    assert [(row["steps"], row["reward"], row["count"]) for row in report["results"]] == [
        (1, "colorfulness", 4), (1, "emoji-clip", 4), (2, "colorfulness", 4), (2, "emoji-clip", 4),
    ]  # fmt: skip
    for row in report["results"]:
        assert row["difference"]["mean"] == pytest.approx(row["tuned"]["mean"] - row["base"]["mean"], abs=1e-4)
    assert {row["measure"] for row in report["diversity"]} == {"1 - cosine of emoji-clip embeddings"}


def test_plain_lines_when_stderr_is_no_terminal_and_a_table_on_stdout(workplace, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "small.yaml", "--set", "train.epochs=1"]) == 0
    out, err = capfd.readouterr()
    beginning = ["load: rewards colorfulness, emoji-clip", "load: model emoji-turbo"]
    assert err.splitlines()[:4] == [*beginning, "the run's folder: runs/small", "epoch 1/1: rollout"]
    assert re.search(r"\nepoch 1/1 +4 images +[\d.]+/s  reward +[\d.]+ +then eval\n", err)
    assert [line for line in err.splitlines() if line.startswith("evaluate: ")] == [
        "evaluate: base model, 1 step (1 of 4)", "evaluate: base model, 2 steps (2 of 4)",
        "evaluate: tuned model, 1 step (3 of 4)", "evaluate: tuned model, 2 steps (4 of 4)",
    ]  # fmt: skip
    assert "torchvision" not in err
    assert re.search(r"colorfulness +│ +1 │", out)
    assert max(map(len, out.splitlines())) <= 80
    assert "Before and after: runs/small/before-after.png" in out
    assert "sdpo sample runs/small" in out


def test_a_second_run_does_not_touch_the_first(workplace):
    for _ in range(2):
        assert (
            main(["train", "small.yaml", "--quiet", "--set", "train.epochs=1", "--set", "train.samples_every=0"]) == 0
        )
    assert sorted(path.name for path in (workplace / "runs").iterdir()) == ["latest", "small", "small-2"]
    assert (workplace / "runs" / "latest").resolve().name == "small-2"


def test_resume_may_go_further_but_not_elsewhere(workplace, capsys):
    assert main(["train", "small.yaml", "--quiet", "--set", "train.epochs=1", "--set", "eval.steps=[1]"]) == 0
    assert main(["train", "--resume", "--quiet", "--set", "train.learning_rate=1e-4", "--set", "seed=1"]) == 2
    lines = capsys.readouterr().err.splitlines()
    place = "error: runs/small/recipe.yaml"
    assert lines == [
        f"{place}: train.learning_rate: 0.01 cannot become 0.0001 in a resumed run; "
        "--override train.learning_rate allows it",
        f"{place}: seed: 0 cannot become 1 in a resumed run; --override seed allows it",
    ]
    recipe = workplace / "runs/small/recipe.yaml"
    said = recipe.read_text().splitlines(keepends=True)
    recipe.write_text("".join(line for line in said if "antithetic" not in line))  # as before there was this option
    assert main(["train", "--resume", "--quiet", "--set", "train.epochs=2"]) == 2
    assert capsys.readouterr().err == (
        f"{place}: objective.sdpo.antithetic: is newer than the run, which was trained without it; say what is the "
        "same, --set objective.sdpo.antithetic=VALUE; the default is now true\n"
    )
    more = ["--set", "train.epochs=2", "--set", "objective.sdpo.antithetic=false"]
    assert main(["train", "--resume", "runs/latest", "--quiet", *more]) == 0
    assert (workplace / "runs/latest").resolve().name == "small"
    assert not (workplace / "runs/small/changes.jsonl").exists()
    assert yaml.safe_load(recipe.read_text())["objective"]["sdpo"]["antithetic"] is False
    epochs = [json.loads(line)["epoch"] for line in (workplace / "runs/small/metrics.jsonl").read_text().splitlines()]
    assert epochs == [1, 2]


def test_an_overridden_field_is_recorded_and_shown_wherever_the_run_is(workplace, capsys):
    settings = ["--set", "train.samples_every=0", "--set", "eval.steps=[1]"]
    assert main(["train", "small.yaml", "--quiet", "--set", "train.epochs=1", *settings]) == 0
    change = ["--set", "train.epochs=2", "--set", "train.learning_rate=1e-4"]
    assert main(["train", "--resume", *change, "--override", "train.learnin_rate"]) == 2
    assert capsys.readouterr().err == (
        "error: --override train.learnin_rate: no field of a recipe; did you mean train.learning_rate? docs/recipe.md "
        "has all of them\n"
    )
    assert main(["train", "--resume", *change, "--override", "train.learning_rate"]) == 0
    line = "from epoch 2 on: train.learning_rate from 0.01 to 0.0001"
    said = capsys.readouterr().err
    assert said.startswith("the run's folder: runs/small\n")
    assert line in said
    run = workplace / "runs" / "small"
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train"]["learning_rate"] == 1e-4
    assert line in (run / "report.html").read_text()
    assert f"Not one unbroken run of the recipe below:\n\n- {line}\n" in (run / "adapter" / "README.md").read_text()
    assert main(["export", "--format", "diffusers", "--out", "exported"]) == 0
    assert line in (workplace / "exported" / "README.md").read_text()


def test_a_finished_run_is_shown_again_and_rebuilt_only_where_something_of_it_is_gone(workplace, trained, capsys):
    run = shutil.copytree(trained / "runs" / "small", workplace / "run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    resume = ["train", "--resume", "run", "--set", "train.epochs=2", "--set", "model.lora.rank=8"]  # as null means
    program = "import sys; from sdpo_cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program, *resume], capture_output=True, text=True)
    assert shown.stderr == "run: trained and evaluated already; train on with --set train.epochs=N\n"
    assert re.search(r"colorfulness +│ +1 │", shown.stdout)
    assert shown.stdout.endswith("False\n"), "torch was loaded"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert finished_run(RunFolder(run), ["eval.steps=[1]"]) is None, "another evaluation is another result"
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("epochs: 2,", "epochs: 3,"))
    assert finished_run(RunFolder(run), []) is None, "an epoch more is to be trained"
    (run / "recipe.yaml").write_text(recipe)
    results = json.loads((run / "report.json").read_text())["results"]
    (run / "report.html").unlink()
    assert main([*resume, "--quiet"]) == 0
    assert (run / "report.html").is_file()
    assert json.loads((run / "report.json").read_text())["results"] == results


REFUSED = {
    "override without resume": (
        ["train", "small.yaml", "--override", "seed"], 2,
        "--override: nothing is gone on with; add --resume, or leave it out",
    ),
    "override without a field": (
        ["train", "--resume", "--override"], 2,
        "option '--override' requires an argument; name a field that may differ, such as --override "
        "train.learning_rate",
    ),
    "override before an option": (
        ["train", "--resume", "--override", "--set", "seed=1"], 2,
        "--override: '--set' is no field; name a field that may differ, such as --override train.learning_rate",
    ),
    "override with a value": (
        ["train", "--resume", "--override", "train.learning_rate=1e-4"], 2,
        "--override train.learning_rate=1e-4: takes a field without a value; write --set train.learning_rate=1e-4 "
        "--override train.learning_rate",
    ),
    "no recipe": (["train"], 2, "sdpo train: no recipe; try `sdpo train recipes/quickstart.yaml`"),
    "missing recipe": (["train", "nosuch.yaml"], 2, r"nosuch.yaml: no such recipe; .*shipped recipes: .*quickstart.*"),
    "nothing to resume": (
        ["train", "--resume"], 2, "--resume: no latest run under runs/; name its folder",
    ),
    "not a run": (
        ["train", "--resume", "--out", "."], 2, ".: holds no run; name a folder that `sdpo train` wrote",
    ),
    "no run there": (
        ["train", "--resume", "runs/nope"], 2,
        "runs/nope: no such folder; name a folder that `sdpo train` wrote",
    ),
    "recipe and resume": (
        ["train", "small.yaml", "--resume"], 2,
        "small.yaml: holds no run; name a folder that `sdpo train` wrote",
    ),
    "a run named twice": (
        ["train", "runs/small", "--resume", "--out", "runs/other"], 2,
        "--out runs/other: the run is named already; leave it out",
    ),
    "full folder": (["train", "small.yaml", "--out", "."], 2, ".: is not an empty folder; name another one"),
    "unknown reward": (
        ["train", "small.yaml", "--set", "reward=colorfulnes"], 2,
        r"small.yaml: reward: no reward named 'colorfulnes'; did you mean colorfulness\? .*",
    ),
    "unknown model": (
        ["train", "small.yaml", "--set", "model=emoji-turb"], 2,
        r"small.yaml: model: no base model or folder named 'emoji-turb'; did you mean emoji-turbo\? .*",
    ),
    "missing prompts": (
        ["train", "small.yaml", "--set", "prompts=nosuch.txt"], 2,
        r"small.yaml: prompts: no prompt source or file named 'nosuch.txt'; .*",
    ),
    "one step": (
        ["train", "small.yaml", "--set", "rollout.steps=1"], 2,
        "small.yaml: rollout.steps: no action of a 1-step rollout earns a reward of its own; use 2 or more steps",
    ),
    "one step, credit current": (
        ["train", "small.yaml", "--set", "rollout.steps=1", "--set", "objective.sdpo.credit=current"], 2,
        "small.yaml: rollout.steps: no action of a 1-step rollout earns a reward of its own; use 2 or more steps",
    ),
    "unknown device": (
        ["train", "small.yaml", "--set", "train.device=cuda:7"], 2,
        "device cuda:7: this machine has no such device; use auto or cpu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_and_write_nothing(workplace, capsys, case):
    arguments, code, message = REFUSED[case]
    before = sorted(workplace.rglob("*"))
    assert main(arguments) == code
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0] == f"error: {message}" or re.fullmatch(f"error: {message}", errors[0]), errors[0]
    assert sorted(workplace.rglob("*")) == before


def test_a_run_that_is_named_otherwise_is_told_with_the_command_that_goes_on_with_it(workplace, trained, capsys):
    def fault(*arguments):
        assert main(["train", *arguments]) == 2
        return capsys.readouterr().err

    shutil.copytree(trained / "runs" / "small", workplace / "runs" / "small")
    command = "`sdpo train --resume runs/small`"
    assert fault("small.yaml", "--out", "runs/small") == (
        f"error: runs/small: holds another run; {command} continues it; or name another folder\n"
    )
    goes_on = f"the run of this name goes on with {command}\n"
    assert fault("small.yaml", "--resume") == f"error: small.yaml: holds no run; {goes_on}"
    assert fault("small", "--resume") == f"error: small: no such folder; {goes_on}"
    shutil.copytree(trained / "runs" / "small", workplace / "runs" / "small-2")
    os.utime(workplace / "runs" / "small-2", (1, 1))
    assert fault("small", "--resume").endswith(" goes on with `sdpo train --resume runs/small-2`\n")
    assert fault("runs", "--resume") == ("error: runs: holds no run; name one of its runs: runs/small, runs/small-2\n")
    (workplace / "mine").mkdir()
    (workplace / "mine" / "r.yaml").write_text((workplace / "small.yaml").read_text() + "name: small\n")
    assert fault("mine/r.yaml", "--resume").startswith("error: mine/r.yaml: holds no run; the run of this name")


FAILING = """\
asked = []


def score(images, prompts, metadata):
    asked.append(prompts)
    if len(asked) > 2:
        raise ValueError("no luck")
    return images.mean((1, 2, 3))
"""


def test_a_reward_that_fails_is_told_with_the_command_that_goes_on_when_it_is_mended(workplace, capsys):
    (workplace / "unlucky.py").write_text(FAILING)
    settings = ["reward={unlucky:score: {}}", "train.epochs=4", "train.samples_every=0", "eval.steps=[1]"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert main(["train", "small.yaml", "--quiet", "--out", "my run", *arguments]) == 3
    told = capsys.readouterr().err
    command = "sdpo train --out 'my run' --resume --override reward"
    assert re.fullmatch(
        r"error: reward unlucky:score: raised ValueError: no luck at unlucky.py:7 \(.*\); mend the function; "
        rf"then continue with `{command}`\n",
        told,
    ), told
    (workplace / "unlucky.py").write_text(FAILING.replace("> 2", "> 99"))
    program = [sys.executable, "-m", "sdpo_cli", *shlex.split(command)[1:], "--quiet"]
    subprocess.run(program, check=True, capture_output=True)
    rows = [json.loads(line)["epoch"] for line in (workplace / "my run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3, 4]
    (change,) = (workplace / "my run" / "changes.jsonl").read_text().splitlines()
    assert json.loads(change)["what"] == "version of reward unlucky:score"


def test_a_full_disk_stops_the_run_in_one_line_and_leaves_the_last_checkpoint(workplace):
    """A limit on the size of files stands in for a full disk: the first checkpoint fits, the larger ones do not."""
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000));"
            "from sdpo_cli.main import main; sys.exit(main(sys.argv[1:]))",
            *("train", "small.yaml", "--out", "run"),
        ],
        cwd=workplace,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 4, process.stderr
    assert re.fullmatch(
        r"error: run/checkpoints/epoch-00001: cannot be written \(File too large\); .+", process.stderr.splitlines()[-1]
    )
    assert not list((workplace / "run" / "checkpoints").iterdir())


def test_a_reward_of_the_same_name_with_other_options_is_evaluated_too(workplace):
    settings = [
        "reward={emoji-style: {style: 3d}}",
        "eval.rewards={emoji-style: {style: flat}, colorfulness: {}}",
        "eval.steps=[1]",
        "train.epochs=1",
    ]
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert main(["train", "small.yaml", "--quiet", *arguments]) == 0
    report = json.loads((workplace / "runs" / "small" / "report.json").read_text())
    assert [row["reward"] for row in report["results"]] == ["emoji-style", "emoji-style style=flat", "colorfulness"]
    metrics = json.loads((workplace / "runs" / "small" / "metrics.jsonl").read_text())
    assert "reward/emoji-style/alignment" in metrics


def test_every_fault_of_a_recipe_is_said_at_once(workplace, capsys):
    (workplace / "bad.yaml").write_text(
        "model: emoji-turbo\nprompts: simple-animals\nreward: {emoji-style: {style: 4d}}\n"
        "train: {epohcs: 3, learning_rate: -1}\nobjective: {sdpo: {gamma: 2}}\n"
    )
    assert main(["train", "bad.yaml"]) == 2
    places = [line.split(": ")[2] for line in capsys.readouterr().err.splitlines()]
    assert sorted(places) == [
        "objective.sdpo.gamma", "reward.emoji-style.style", "train.epohcs", "train.learning_rate",
    ]  # fmt: skip


def test_an_empty_prompt_file_and_an_unwritable_folder(workplace, capsys):
    (workplace / "empty.txt").write_text("\n\n")
    assert main(["train", "small.yaml", "--set", "prompts=empty.txt"]) == 2
    assert re.search(r"error: .*empty.txt: .*; .*", capsys.readouterr().err)
    (workplace / "file").write_text("")
    assert main(["train", "small.yaml", "--out", "file/run"]) == 4
    assert re.search(r"error: file/run\S*: cannot be written \(Not a directory\); ", capsys.readouterr().err)
