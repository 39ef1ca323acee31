"""The error boundary: what a fault, a bug and an interruption look like from outside."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sdpo_cli
from sdpo_cli.errors import ArtifactError, PluginError, RecipeError, StoppedError, TrainingError, UsageError
from sdpo_cli.main import app, main

Capture = pytest.CaptureFixture[str]


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `sdpo plugins list` raise `error`."""

    def broken() -> None:
        raise error

    monkeypatch.setattr("sdpo_cli.registry.load_registry", broken)


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sdpo {sdpo_cli.__version__}\n"


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_names_every_command_and_the_first_thing_to_do(capsys: Capture, argv: list[str]) -> None:
    assert main(argv) == 0
    said = capsys.readouterr()
    assert "sdpo train recipes/quickstart.yaml" in said.out
    assert said.err == ""
    for command in ("train", "sample", "eval", "score", "plugins"):
        assert f"\n  {command} " in said.out


@pytest.mark.parametrize(
    ("argv", "fault", "remedy"),
    [
        (["tran"], "no such command 'tran'; did you mean 'train'?", "see `sdpo --help`"),
        (["plugins", "lst"], "no such command 'lst'; did you mean 'list'?", "see `sdpo plugins --help`"),
        (["plugins"], "missing command;", "see `sdpo plugins --help`"),
        (["plugins", "show"], "missing argument 'name", "; see `sdpo plugins show --help`"),
        (["plugins", "list", "--jso"], "no such option: --jso", "; see `sdpo plugins list --help`"),
        (
            ["export", "--format", "x"],
            "invalid value for '--format': 'x' is not one of 'diffusers', ",
            "export --help`",
        ),
        (["train", "quickstart", "--out"], "option '--out' requires an argument", "; see `sdpo train --help`"),
        (["plugins", "new", "x", "--out"], "option '--out' requires", "an argument; see `sdpo plugins new --help`"),
        (["plugins", "list", "x"], "got unexpected extra argument", " (x); see `sdpo plugins list --help`"),
    ],
)
def test_a_mistyped_command_line_is_one_line_and_code_2(
    capsys: Capture, argv: list[str], fault: str, remedy: str
) -> None:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"error: {fault}")
    assert line.endswith(remedy)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["sample", "--steps", "abc"], "--steps: 'abc' should be a whole number, 1 or more"),
        (["sample", "--steps", "0"], "--steps: '0' should be a whole number, 1 or more"),
        (["sample", "--steps", "1.5"], "--steps: '1.5' should be a whole number, 1 or more"),
        (["sample", "--count", "0"], "--count: '0' should be a whole number, 1 or more"),
        (["sample", "--seed", "-1"], "--seed: '-1' should be a whole number from 0 to 4611686018427387904"),
        (["eval", "--images-per-prompt", "x"], "--images-per-prompt: 'x' should be a whole number, 1 or more"),
        (["eval", "--eta", "2"], "--eta: '2' should be a number from 0 to 1"),
        (["compare", "quickstart", "--seeds", "x"], "--seeds: 'x' should be a whole number from 1 to 1000"),
        (["serve-reward", "emoji-clip", "--port", "x"], "--port: 'x' should be a whole number from 0 to 65535"),
    ],
)
def test_an_option_that_is_no_number_is_told_what_it_should_be(capsys: Capture, argv: list[str], line: str) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (UsageError("f", place="p", remedy="r"), 2, ["p: f; r"]),
        (RecipeError(["a: one", "b: two"]), 2, ["a: one", "b: two"]),
        (PluginError("f"), 3, ["f"]),
        (ArtifactError("f"), 4, ["f"]),
        (TrainingError("f"), 5, ["f"]),
        (StoppedError("stopped", signal_number=15), 143, ["stopped"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
    ],
)
def test_a_fault_is_its_lines_and_the_code_of_its_class(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, lines: list[str]
) -> None:
    failing(monkeypatch, error)
    assert main(["plugins", "list"]) == code
    assert capsys.readouterr().err == "".join(f"error: {line}\n" for line in lines)


def test_debugging_shows_a_faults_traceback(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, PluginError("f"))
    monkeypatch.setenv("SDPO_DEBUG", "1")
    assert main(["plugins", "list"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == ["sdpo_cli.errors.PluginError: f", "error: f"]


def test_a_bug_shows_its_traceback_and_asks_for_a_report(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("division by zero"))
    assert main(["plugins", "list"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == [
        "ZeroDivisionError: division by zero",
        "error: this is a bug in sdpo or in a plug-in; please report it with the lines above",
    ]


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sdpo_cli", "plugins", "list", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file that is always full")
def test_output_to_a_full_disk_is_one_line_and_code_4(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sdpo_cli", "plugins", "list"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, text=True)
        assert done.stderr == ("error: standard output: cannot be written (No space left on device); free some space\n")
        assert done.returncode == 4
        assert subprocess.run(command[:-2], stdout=full, stderr=full, cwd=tmp_path).returncode == 4


def test_every_command_has_help_in_plain_words(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for argv in (["--help"], ["plugins", "--help"]):
        assert main(argv) == 0
        assert "..." not in capsys.readouterr().out.partition("Commands:")[2], "a summary is cut off"
    assert [command.callback.__doc__ for command in app.registered_commands if not command.callback.__doc__] == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [("sdpo score --reward jpeg-c", "jpeg-compressibility"), ("sdpo train quick", "quickstart"),
     ("sdpo sample emoji-t", "emoji-turbo"), ("sdpo plugins show simple", "simple-animals")],
)  # fmt: skip
def test_the_shell_completes_names(words: str, offered: str) -> None:
    environment = os.environ | {
        "_SDPO_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    program = "import sys; from sdpo_cli.__main__ import run; run()"
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout.split() == [offered]
