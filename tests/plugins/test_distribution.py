"""A real distribution, built and installed as a stranger's would be, found and used by the program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed the distribution `sdpo-brightness` into."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", target, HERE / "brightness"], check=True, capture_output=True)
    return target


def sdpo(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "80"}
    command = [sys.executable, "-m", "sdpo_cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_it_is_listed_with_its_distribution_and_version(installed: Path) -> None:
    listed = json.loads(sdpo(installed, "plugins", "list", "--json").stdout)
    assert listed["broken"] == []
    assert [plugin for plugin in listed["plugins"] if plugin["distribution"] == "sdpo-brightness"] == [
        {
            "kind": "reward",
            "name": "brightness",
            "summary": "mean of all pixels",
            "version": "1",
            "source": "this file",
            "distribution": "sdpo-brightness",
            "distribution_version": "0.3.0",
        }
    ]


def test_its_options_are_shown(installed: Path) -> None:
    shown = sdpo(installed, "plugins", "show", "brightness")
    assert [line.rstrip() for line in shown.stdout.splitlines() if line.strip()] == [
        "brightness: reward, version 1, from sdpo-brightness 0.3.0",
        "mean of all pixels",
        "Source: this file",
        "Options:",
        "  gain: float > 0, default 1.0",
        "      Factor of the mean.",
    ]


def test_it_keeps_the_contract(installed: Path) -> None:
    checked = sdpo(installed, "plugins", "check", "sdpo-brightness")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert checked.stdout.splitlines()[0] == "reward brightness ok"


def test_its_scores_are_its_own(installed: Path, tmp_path: Path) -> None:
    for name, gray in (("dark", 51), ("light", 204)):
        Image.fromarray(np.full((8, 8, 3), gray, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    scored = sdpo(installed, "score", str(tmp_path), "--reward", "brightness", "--out", str(tmp_path / "scores.jsonl"))
    assert scored.returncode == 0, scored.stderr
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()
    scores = {Path(row["file"]).stem: row["value"] for row in map(json.loads, lines) if "value" in row}
    assert scores == pytest.approx({"dark": 0.2, "light": 0.8}, abs=1e-6)
