"""Ctrl-C, SIGTERM and SIGHUP: the first asks to stop, at once but never inside a write; the second leaves."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup has it ignored
    SIGNALS.append(signal.SIGHUP)
SAME_REQUEST = 1.0
"""Seconds within which a second signal is the first one again: launchers pass on what the terminal sent already."""
SHOW_CURSOR = b"\x1b[?25h\n"

T = TypeVar("T")
R = TypeVar("R")


class StopSignal(BaseException):
    """Raised in the main thread by the first signal. Not an Exception: no plug-in may swallow it."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class _Desk:
    """Which signal has been received, when, and whether it must wait; `stopped` outlives the work."""

    asked: int | None = None
    stopped: bool = False
    since = 0.0
    held: int = 0


_desk = _Desk()


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _desk.asked is None:
        _desk.asked, _desk.since, _desk.stopped = number, time.monotonic(), True
        if not _desk.held:
            raise StopSignal(number)
    elif time.monotonic() - _desk.since > SAME_REQUEST:
        if sys.stderr.isatty():
            with suppress(OSError):
                os.write(sys.stderr.fileno(), SHOW_CURSOR)
        os._exit(128 + number)


def raise_if_asked() -> None:
    """Raise a signal that was received, also one that somebody else's clean-up code swallowed."""
    if _desk.asked is not None and not _desk.held:
        raise StopSignal(_desk.asked)


def stop_asked() -> bool:
    """Whether a signal has stopped the work, or is about to."""
    return _desk.stopped


@contextmanager
def stop_signals() -> Iterator[None]:
    """While entered, the first SIGINT, SIGTERM or SIGHUP raises StopSignal and a second one leaves the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _desk.asked, _desk.stopped, _desk.held = None, False, 0
    before = {number: signal.signal(number, _on_signal) for number in SIGNALS}
    try:
        yield
    finally:
        again = None if _desk.asked is None else _same_request(before, _desk.since)
        for number, handler in before.items():
            signal.signal(number, again or handler)
        _desk.asked = None


def _same_request(before: Mapping[int, Any], since: float) -> Callable[[int, FrameType | None], None]:
    """A handler for after a stop: deaf to the request of `since` given again, and then those `before` it are back."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        if time.monotonic() - since > SAME_REQUEST:
            for one, handler in before.items():
                signal.signal(one, handler)
            signal.raise_signal(number)

    return on_signal


@contextmanager
def held() -> Iterator[None]:
    """While entered, a first signal waits; it is raised on the way out, unless something else is being raised."""
    _desk.held += 1
    try:
        yield
    finally:
        _desk.held -= 1
    raise_if_asked()


def interruptible(events: Generator[T, None, R]) -> Generator[T, None, R]:
    """The same events. A signal stops the work on the next event, never the consumer's showing of the last one."""
    with closing(events):
        while True:
            raise_if_asked()
            try:
                event = next(events)
            except StopIteration as end:
                result: R = end.value
                return result
            with held():
                yield event
