"""The tutorial of `plugins/README.md`, followed to the letter in an environment of its own, and what `new` writes."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from sdpo_cli.api import HubFiles, LoadContext
from sdpo_cli.errors import UsageError
from sdpo_cli.registry import chosen_rewards

GUIDE = Path(__file__).parents[2] / "plugins" / "README.md"
STEP = re.compile(r"(?:`([\w./-]+)`:\n\n)?```(bash|toml|python|yaml)\n(.*?)```", re.DOTALL)
SMALL = (
    "train.epochs=1",
    "rollout.pairs=2",
    "eval.steps=[1]",
    "eval.images_per_prompt=1",
    "eval.prompts=complex-animals",
)
SHORT = "".join(f" --set {setting}" for setting in SMALL)
"""Makes the quick start a matter of seconds."""

Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment that also sees what is installed here, but nothing here sees it."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "here.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    for name, module in (("sdpo", "sdpo_cli"), ("pip", "pip")):
        script = home / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{home}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    return home / "bin"


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Run:
    """Runs a line of shell in an empty folder of that environment; pip builds with what is here."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= {"PATH": f"{environment}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "80"}

    def run(line: str) -> subprocess.CompletedProcess[str]:
        line = line.replace("pip install", "pip install --quiet --no-deps --no-index --no-build-isolation")
        line += SHORT * line.startswith("sdpo train")
        return subprocess.run(line, shell=True, cwd=tmp_path, env=variables, capture_output=True, text=True)

    return run


def test_the_tutorial_works_to_the_letter(run: Run, tmp_path: Path) -> None:
    said: dict[str, str] = {}
    for name, language, text in STEP.findall(GUIDE.read_text(encoding="utf-8")):
        if language == "bash":
            for line in text.splitlines():
                done = run(line)
                assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
                said[line] = done.stdout
        elif name:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    assert said["sdpo plugins check my-reward"].startswith("reward my-reward ok\n")
    shown = said["sdpo plugins show brightness"].splitlines()
    assert shown[0] == "brightness: reward, version 1, from sdpo-brightness 1.0"
    assert "Scale: minus the distance, -1..0" in shown
    assert said["sdpo plugins check sdpo-brightness --set target=0.2"].startswith("reward brightness ok\n")
    assert said["python -m pytest -q sdpo-brightness"].splitlines()[-1].startswith("2 passed")
    report = json.loads((tmp_path / "runs/quickstart/report.json").read_text())
    assert {row["reward"] for row in report["results"]} == {"my-reward"}


def block(language: str, word: str) -> str:
    """The first block of the guide in a language that has a word."""
    return next(
        text for _, kind, text in STEP.findall(GUIDE.read_text(encoding="utf-8")) if kind == language and word in text
    )


def test_the_example_of_weights_says_what_it_needs_and_fails_in_one_line() -> None:
    module: dict[str, Any] = {}
    exec(block("python", "HubFiles"), module)
    (spec,) = module["sdpo_rewards"]()
    revision = "0123456789abcdef0123456789abcdef01234567"
    assert spec.needs(spec.options()) == [HubFiles("somebody/sharpness", revision, ("model.safetensors",))]
    with pytest.raises(UsageError, match=r"^somebody/sharpness: not on this machine, and the hub cannot be reached"):
        spec.load(spec.options(), LoadContext())


def test_the_recipe_of_the_guide_is_one() -> None:
    recipe = yaml.safe_load(block("yaml", "brightness"))
    with pytest.raises(UsageError, match="no reward named 'brightness'"):
        chosen_rewards([str(recipe["reward"])], "guide")
    del recipe["reward"]["brightness"]
    assert [one.name for one in chosen_rewards([str(recipe["reward"])], "guide")] == ["emoji-clip"]


def test_what_new_writes_installs_passes_its_tests_and_is_used(run: Run, tmp_path: Path) -> None:
    assert run("sdpo plugins new warm").returncode == 0
    assert run("sdpo plugins new my-animals --kind prompt-source --out animals").returncode == 0
    installed = run("pip install -e warm -e animals")
    assert installed.returncode == 0, installed.stderr
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--of-another-project"\n')
    for folder in ("warm", "animals"):
        tested = run(f"python -m pytest -q {folder}")
        assert tested.stdout.splitlines()[-1].startswith("2 passed"), tested.stdout + tested.stderr
    assert run("sdpo plugins check my-animals").stdout.startswith("prompt source my-animals ok\n")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8), (255, 0, 51)).save(tmp_path / "pictures" / "a.png")
    scored = run("sdpo score pictures --reward '{warm: {color: red}}' --out scores.jsonl")
    assert scored.returncode == 0, scored.stderr
    rows = map(json.loads, (tmp_path / "scores.jsonl").read_text().splitlines())
    assert [row["value"] for row in rows if "value" in row] == [pytest.approx(0.6)]  # 1 less the mean of 1, 0 and 0.2
