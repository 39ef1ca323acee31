"""One rule for every command: what is named and not there, plug-ins too, is 2; a damaged file is 4."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sdpo_cli.main import main

ABSENT = {
    "train a recipe": ["train", "gone.yaml"],
    "train a name": ["train", "gone"],
    "resume nothing": ["train", "--resume"],
    "resume a folder": ["train", "--resume", "--out", "gone"],
    "train prompts": ["train", "small.yaml", "--set", "prompts=gone.txt"],
    "train a model's folder": ["train", "small.yaml", "--set", "model=./gone"],
    "train a LoRA": ["train", "small.yaml", "--set", "model.lora.start=gone"],
    "sample a run": ["sample", "runs/gone", "--prompt", "cat"],
    "sample a recipe": ["sample", "gone.yaml", "--prompt", "cat"],
    "sample a folder": ["sample", "./gone", "--prompt", "cat"],
    "sample a file": ["sample", "gone.safetensors", "--prompt", "cat"],
    "sample prompts": ["sample", "small.yaml", "--prompts", "gone.txt"],
    "eval a run": ["eval", "runs/gone"],
    "eval a recipe": ["eval", "gone.yaml"],
    "eval prompts": ["eval", "small.yaml", "--prompts", "gone.csv"],
    "export nothing": ["export"],
    "export a run": ["export", "runs/gone"],
    "export a folder without one": ["export", "empty"],
    "score a picture": ["score", "gone.png", "--reward", "colorfulness"],
    "score a folder": ["score", "gone", "--reward", "colorfulness"],
    "score prompts": ["score", "one.png", "--reward", "colorfulness", "--prompts", "gone.txt"],
    "bench a recipe": ["bench", "gone.yaml"],
    "bench against": ["bench", "small.yaml", "--against", "gone.json"],
    "compare a recipe": ["compare", "gone.yaml"],
    "compare runs": ["compare", "runs/gone", "runs/gone-2"],
    "compare a folder": ["compare", "empty"],
}
UNKNOWN = {
    "train a model": ["train", "small.yaml", "--set", "model=gone"],
    "train a reward": ["train", "small.yaml", "--set", "reward=gone"],
    "eval a reward": ["eval", "emoji-turbo", "--reward", "gone"],
    "eval prompts": ["eval", "emoji-turbo", "--reward", "colorfulness", "--prompts", "gone"],
    "compare": ["compare", "small.yaml", "--objectives", "gone"],
    "sample": ["sample", "gone", "--prompt", "cat"],
    "eval": ["eval", "gone"],
    "score": ["score", "one.png", "--reward", "gone"],
    "serve-reward": ["serve-reward", "gone"],
    "plugins show": ["plugins", "show", "gone"],
    "plugins check": ["plugins", "check", "gone"],
}
DAMAGED = {
    "score": (["score", "list.jsonl", "--reward", "colorfulness"], "list.jsonl:1: "),
    "bench against": (["bench", "small.yaml", "--against", "list.jsonl"], "list.jsonl: "),
    "export": (["export", "broken"], "broken"),
    "sample": (["sample", "unfinished", "--prompt", "cat"], "unfinished: "),
    "eval": (["eval", "unfinished"], "unfinished: "),
}


@pytest.fixture
def place(workplace: Path) -> Path:
    """A folder with a recipe and things that are empty, damaged or unfinished."""
    (workplace / "empty").mkdir()
    (workplace / "list.jsonl").write_text("nothing\n")
    (workplace / "one.png").write_bytes(b"x")
    (workplace / "broken").mkdir()
    (workplace / "broken" / "pytorch_lora_weights.safetensors").write_bytes(b"nothing")
    (workplace / "unfinished").mkdir()
    (workplace / "unfinished" / "recipe.yaml").write_text((workplace / "small.yaml").read_text())
    return workplace


def outcome(argv, capsys):
    code = main(argv)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1, said.err
    return code, said.err


@pytest.mark.parametrize("case", ABSENT)
def test_what_is_named_and_not_there_is_2(place, capsys, case):
    assert outcome(ABSENT[case], capsys)[0] == 2


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_plug_in_that_nobody_has_is_2(place, capsys, case):
    code, said = outcome(UNKNOWN[case], capsys)
    assert (code, "named 'gone'" in said) == (2, True)


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_or_unfinished_is_4(place, capsys, case):
    argv, beginning = DAMAGED[case]
    code, said = outcome(argv, capsys)
    assert (code, said.startswith(f"error: {beginning}")) == (4, True), said


AT_ONCE = [
    ["train", "gone"], ["train", "small.yaml", "--set", "train.epochs=no"], ["sample", "gone", "--prompt", "cat"],
    ["sample", "--prompt", "cat", "--out", "."], ["eval", "runs/gone"], ["eval", "--steps", "x"], ["export", "gone"],
    ["score", "gone.png", "--reward", "colorfulness"], ["bench", "gone"], ["serve-reward", "gone"],
    ["compare", "gone"], ["compare", "small.yaml", "--objectives", "gone"], ["compare", "small.yaml", "--budget", "x"],
    ["compare", "small.yaml", "--holding", "gone=1"], ["train", "--resume"], ["train", "--resume", "gone"],
    ["train", "--resume", "--out", "empty"], ["train", "small.yaml", "--out", "unfinished"],
    ["train", "unfinished", "--resume", "--set", "seed=7"],
]  # fmt: skip


def test_cheap_faults_are_told_before_torch_is_loaded(place):
    program = """
import contextlib, io, json, sys
from sdpo_cli.main import main
for argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()):
        code = main(argv)
    print(code, "torch" in sys.modules, *argv)
"""
    done = subprocess.run([sys.executable, "-c", program, json.dumps(AT_ONCE)], capture_output=True, text=True)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == len(AT_ONCE)
    assert [line for line in lines if line.split()[0] not in ("2", "3") or line.split()[1] != "False"] == []
