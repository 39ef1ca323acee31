"""The display of a run: on a terminal, in a log file, quiet, and when the run fails."""

import io
from collections.abc import Generator
from pathlib import Path

import pytest
from rich.console import Console

from sdpo_cli.commands import display
from sdpo_cli.engine.events import EpochDone, Event, FileWritten, Note, RunDone, StageStarted


def log_file(width: int = 200) -> Console:
    return Console(file=io.StringIO(), width=width)


def terminal(width: int = 80, term: str = "xterm-256color") -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, height=30, color_system=None, _environ={"TERM": term}
    )


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def epoch(number: int, epochs: int, *, first: float = 0.25, last: float = 0.5, seconds: float = 8.0) -> EpochDone:
    metrics = {"images": 64.0 * number, "reward_first": first, "reward_last": last}
    return EpochDone(number, epochs, metrics, {"rollout": seconds / 2, "update": seconds / 2})


def run(epochs: int = 3) -> Generator[Event, None, str]:
    yield StageStarted("load", 0, epochs)
    yield Note("2 threads [cpu], no accelerator")
    for number in range(1, epochs + 1):
        yield StageStarted("rollout", number, epochs)
        yield StageStarted("update", number, epochs)
        yield epoch(number, epochs, last=0.5 + 0.25 * number)
    yield StageStarted("evaluate", 0, 0, "tuned model, 4 steps")
    yield FileWritten(Path("runs/x/adapter"), "adapter")
    return "the outcome"


def of(*events: Event) -> Generator[Event, None, None]:
    yield from events


def screen(written: str) -> str:
    """What is left on the screen: of a region redrawn in place, the last drawing."""
    return written.rsplit("\x1b[2K", 1)[-1]


@pytest.mark.parametrize("console", [log_file, terminal])
def test_names_between_colons_stay_as_they_are(console):
    shown = console()
    display.show(of(FileWritten(Path("a:fire:b"), "report"), Note("reward my_module:boom: ValueError")), shown)
    assert "report: a:fire:b\n" in text(shown)
    assert "reward my_module:boom: ValueError\n" in text(shown)


class TestLogFile:
    def test_one_line_an_epoch_and_one_for_whatever_has_something_to_say(self):
        console = log_file()
        display.show(run(), console)
        assert text(console).splitlines() == [
            "2 threads [cpu], no accelerator",
            "epoch 1/3: rollout",
            "epoch 1/3: update",
            "epoch 1/3       64 images    8.0/s  reward    0.7500      16s left + eval",
            "epoch 2/3      128 images    8.0/s  reward    1.0000       8s left + eval",
            "epoch 3/3      192 images    8.0/s  reward    1.2500            then eval",
            "evaluate: tuned model, 4 steps",
            "adapter: runs/x/adapter",
        ]

    def test_lines_keep_their_width_and_are_never_folded(self):
        console = log_file(width=20)
        display.show(of(*(epoch(n, 2000, last=-0.1 * n, seconds=0.7 * n) for n in (1, 60, 2000))), console)
        lines = text(console).splitlines()
        assert len(lines) == 3
        assert {len(line) for line in lines} == {79}

    def test_a_resumed_run_counts_on_from_where_it_was(self):
        console = log_file()
        display.show(of(epoch(9, 10, seconds=4.0)), console)
        assert text(console) == "epoch  9/10      576 images   16.0/s  reward    0.5000       4s left + eval\n"

    def test_each_run_of_a_comparison_begins_anew(self):
        console = log_file()
        load = StageStarted("load", 0, 0, "model tiny")
        display.show(of(load, epoch(1, 2, seconds=90), load, StageStarted("rollout", 1, 2), epoch(1, 2)), console)
        assert text(console).splitlines()[2:] == [
            "load: model tiny",
            "epoch 1/2: rollout",
            "epoch 1/2       64 images    8.0/s  reward    0.5000       8s left + eval",
        ]

    def test_what_was_not_measured_is_a_dash(self):
        console = log_file()
        display.show(of(EpochDone(1, 1, {"images": 4.0, "reward_last": 1.0})), console)
        display.show(of(EpochDone(1, 1, {"images": 4.0}, {"rollout": 2.0})), console)
        assert text(console).splitlines() == [
            "epoch 1/1        4 images      -/s  reward    1.0000            then eval",
            "epoch 1/1        4 images    2.0/s  reward         -            then eval",
        ]

    def test_a_dumb_terminal_gets_the_same_lines(self):
        dumb, plain = terminal(width=200, term="dumb"), log_file()
        display.show(run(), dumb)
        display.show(run(), plain)
        assert text(dumb) == text(plain)


class TestTerminal:
    def test_leaves_the_last_state_and_the_cursor(self):
        console = terminal()
        display.show(run(), console)
        lines = [line.rstrip() for line in screen(text(console)).replace("\x1b[?25h", "").splitlines()]
        assert lines == [
            "epoch 3/3  ━━━━━━━━━━━━━━━━  evaluate: tuned model, 4 steps",
            "8.0 images/s",
            "reward at first step   0.2500   +0.0000  ▁▁▁",
            "reward at last step    1.2500   +0.5000  ▁▅█",
        ]
        assert text(console).endswith("\x1b[?25h")

    def test_one_line_where_the_last_step_alone_earns_a_reward_and_what_comes_after_the_epochs(self):
        console = terminal()
        display.show(of(StageStarted("update", 1, 2), epoch(1, 2, first=0.5)), console)
        lines = [line.rstrip() for line in screen(text(console)).replace("\x1b[?25h", "").splitlines()]
        assert lines[1:] == ["8.0 images/s, 8s left, then evaluation", "reward at last step    0.5000   +0.0000  ▁"]

    def test_notes_and_files_stay_above_it(self):
        console = terminal()
        display.show(run(), console)
        assert "2 threads [cpu], no accelerator\n" in text(console)
        assert "adapter: runs/x/adapter\n" in text(console)

    def test_before_training_there_is_no_speed_yet(self):
        console = terminal()
        display.show(of(StageStarted("load", 0, 16)), console)
        assert screen(text(console)).replace("\x1b[?25l", "").split() == ["before", "training", "load", "\x1b[?25h"]

    def test_work_without_epochs_has_no_bar(self):
        console = terminal()
        display.show(of(StageStarted("evaluate", 0, 0, "base model, 1 step")), console)
        assert "━" not in text(console)
        assert "evaluate: base model, 1 step" in text(console)

    @pytest.mark.parametrize("width", [20, 40])
    def test_a_narrow_window_cuts_lines_and_folds_none(self, width):
        console = terminal(width=width)
        display.show(of(StageStarted("update", 1, 9), *(epoch(n, 9) for n in range(1, 10))), console)
        lines = screen(text(console)).replace("\x1b[?25h", "").splitlines()
        assert len(lines) == 4
        assert max(map(len, lines)) <= width

    def test_without_unicode_only_letters_are_drawn(self):
        console = Console(
            file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
            force_terminal=True,
            width=80,
            _environ={"TERM": "xterm"},
        )
        display.show(run(), console)
        console.file.flush()
        assert b"reward at last step" in console.file.buffer.getvalue()


class TestFailure:
    @pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
    def test_passes_through_and_gives_the_cursor_back(self, error):
        def failing() -> Generator[Event, None, None]:
            yield StageStarted("rollout", 1, 2)
            raise error

        console = terminal()
        with pytest.raises(type(error)):
            display.show(failing(), console)
        assert text(console).count("\x1b[?25l") == text(console).count("\x1b[?25h") == 1
        console.print("after")
        assert text(console).endswith("after\n")

    def test_passes_through_in_a_log_file_after_the_lines_before_it(self):
        def failing() -> Generator[Event, None, None]:
            yield Note("first")
            raise RuntimeError("boom")

        console = log_file()
        with pytest.raises(RuntimeError, match="boom"):
            display.show(failing(), console)
        assert text(console) == "first\n"


def test_quiet_says_nothing():
    for console in (terminal(), log_file()):
        display.show(run(), console, quiet=True)
        assert text(console) == ""


@pytest.mark.parametrize("console", [terminal(), log_file()])
@pytest.mark.parametrize("quiet", [False, True])
def test_gives_what_the_work_returns(console, quiet):
    assert display.show(run(), console, quiet=quiet) == "the outcome"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0s"), (59.4, "59s"), (59.6, "1m 00s"), (185, "3m 05s"), (3599.6, "1h 00m"), (7650, "2h 07m")],
)
def test_duration(seconds, expected):
    assert display.duration(seconds) == expected


def test_after_a_run_of_a_comparison_it_is_said_what_the_others_will_take():
    console = log_file()
    display.show(of(RunDone(14, 5040.0), RunDone(1, 90.0)), console)
    assert text(console) == "about 1h 24m left for 14 more runs\nabout 1m 30s left for 1 more run\n"


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [([0.0, 3.5, 7.0], 9, "▁▅█"), ([2.0, 2.0], 9, "▁▁"), ([0.0, 7.0, 1.0, 2.0], 2, "▂▃"), ([-1.0], 9, "▁")],
)
def test_sparkline_shows_the_latest_on_the_scale_of_all(values, width, expected):
    assert display.sparkline(values, width) == expected
