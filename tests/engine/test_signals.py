"""Ctrl-C and SIGTERM: when they stop the work, and when they wait."""

import os
import signal
from contextlib import suppress

import pytest

from sdpo_cli.engine import signals
from sdpo_cli.engine.signals import StopSignal, held, interruptible, stop_signals


def ask(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)
    for _ in range(1000):  # the handler runs between two of these
        pass


def test_the_first_signal_is_raised_and_handlers_are_put_back_when_it_can_no_longer_be_given_again(monkeypatch):
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    with stop_signals():
        pass
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    monkeypatch.setattr(signals, "SAME_REQUEST", 1e9)
    with pytest.raises(StopSignal, match="SIGTERM"), stop_signals():
        ask(signal.SIGTERM)
    ask(signal.SIGTERM)
    monkeypatch.setattr(signals, "SAME_REQUEST", 0.0)
    with pytest.raises(KeyboardInterrupt):
        ask(signal.SIGINT)
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_a_signal_waits_for_the_end_of_a_write():
    written = []
    with stop_signals(), pytest.raises(StopSignal):
        with held(), held():
            ask()
            written.append("whole")
        written.append("after")
    assert written == ["whole"]


def test_the_same_request_sent_twice_is_one():
    with stop_signals(), pytest.raises(StopSignal), held():
        ask()
        ask()


def test_a_signal_in_the_consumer_stops_the_work_and_lets_it_clean_up():
    done = []

    def work():
        try:
            for number in range(5):
                done.append(number)
                yield number
        finally:
            done.append("cleaned up")

    shown = []
    with stop_signals(), pytest.raises(StopSignal):
        for number in interruptible(work()):
            if number == 2:
                ask()
            shown.append(number)
    assert shown == [0, 1, 2]
    assert done == [0, 1, 2, "cleaned up"]


def test_a_signal_that_clean_up_code_swallowed_is_raised_at_the_next_event():
    def work():
        with suppress(StopSignal):
            ask()
        yield 1
        yield 2

    seen = []
    with stop_signals(), pytest.raises(StopSignal):
        for event in interruptible(work()):
            seen.append(event)
    assert seen == [1]
