"""Scoring beside the main work: one thread asks the rewards while the main thread draws what comes next."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.engine.rewards.scoring import LoadedReward, NonFiniteScoreError, checked_score
from sdpo_cli.errors import ArtifactError, PluginError, UsageError, one_line

THREAD = "sdpo scoring"
"""Name of the threads that call rewards. The program's end waits for no thread whose name begins with `sdpo `."""

WAITING = 2
"""Requests that wait for their turn: enough to keep the thread busy, few enough to hold little memory."""

POLL = 0.1
"""Seconds after which somebody who waits looks whether the reward hangs."""

T = TypeVar("T")


class Worker:
    """A daemon thread that makes calls in the order they come, one at a time; `waiting` calls wait at the most."""

    def __init__(self, waiting: int) -> None:
        self._calls: queue.Queue[tuple[Future[Any], Callable[[], Any]] | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._work, name=THREAD, daemon=True)
        self._thread.start()

    def put(self, call: Callable[[], T], timeout: float) -> "Future[T]":
        """Ask for a call. queue.Full when there is no place within `timeout` seconds."""
        future: Future[T] = Future()
        self._calls.put((future, call), timeout=timeout)
        return future

    def forget(self) -> None:
        """Drop what waits for its turn."""
        while True:
            try:
                self._calls.get_nowait()
            except queue.Empty:
                return

    def close(self, *, wait: bool) -> None:
        """End after the call that is being made; `wait` until then."""
        self.forget()
        self._calls.put(None)
        if wait:
            self._thread.join()

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as fault:
                    future.set_exception(fault)
            del item, future, call  # they hold pictures


class Scorer:
    """Asks rewards in a thread of their own, all of them for one request before the next.

    Use it in a `with`. While it waits it looks at the clock: a reward that takes longer than its timeout is a
    PluginError for whoever waits, and its thread is left behind.
    """

    def __init__(self, rewards: Sequence[LoadedReward]) -> None:
        self.rewards = rewards
        self._worker = Worker(WAITING)
        self._asked: tuple[LoadedReward, ScoreRequest, float] | None = None
        self._fault: BaseException | None = None
        self._details: dict[str, set[str]] = {}

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._worker.close(wait=kind is None)

    def submit(self, request: ScoreRequest) -> "Future[list[ScoreResult]]":
        """Ask for the scores of some pictures, waiting for a place in the queue.

        Raises:
            PluginError: an earlier request failed, or the reward at work hangs.
        """
        if self._fault:
            raise self._fault
        return self._patiently(lambda seconds: self._worker.put(lambda: self._score(request), seconds), queue.Full)

    def result(self, asked: "Future[list[ScoreResult]]") -> list[ScoreResult]:
        """The answer of each reward. PluginError where one failed or hangs."""
        return self._patiently(asked.result, TimeoutError)

    def forget(self) -> None:
        """Drop the requests that are not being scored yet."""
        self._worker.forget()

    def _patiently(self, call: Callable[[float], T], not_yet: type[Exception]) -> T:
        while True:
            try:
                return call(POLL)
            except not_yet:
                self._refuse_hanging()

    def _refuse_hanging(self) -> None:
        if self._asked is None:
            return
        loaded, request, since = self._asked
        if time.monotonic() - since > loaded.timeout:
            raise PluginError(
                f"no answer in {loaded.timeout:g} s {about(request)}",
                place=f"reward {loaded.name}",
                remedy="raise train.reward_timeout, or mend the reward",
            )

    def _score(self, request: ScoreRequest) -> list[ScoreResult]:
        try:
            with torch.cuda.device_of(request.images):  # a new thread begins with the first device
                return [self._ask(loaded, request) for loaded in self.rewards]
        except BaseException as fault:
            self._fault = self._fault or fault  # the first one is told, however late it is seen
            raise
        finally:
            self._asked = None

    def _ask(self, loaded: LoadedReward, request: ScoreRequest) -> ScoreResult:
        self._asked = loaded, request, time.monotonic()
        try:
            result = checked_score(loaded.name, loaded.reward, request)
            self._refuse_other_details(loaded.name, set(result.details))
        except NonFiniteScoreError as fault:
            raise NonFiniteScoreError(f"{fault.fault} {about(request)}", fault.place, request, fault.values) from fault
        except (PluginError, UsageError, ArtifactError) as fault:
            raise type(fault)(f"{fault.fault} {about(request)}", place=fault.place, remedy=fault.remedy) from fault
        return result

    def _refuse_other_details(self, name: str, given: set[str]) -> None:
        before = self._details.setdefault(name, given)
        if given != before:
            fault = f"gave the details {sorted(given)} and {sorted(before)} before"
            raise PluginError(fault, place=f"reward {name}", remedy="a reward must give the same details every time")


def about(request: ScoreRequest) -> str:
    """`(4 pictures, the first of 'a dog')`, for an error."""
    count, first = len(request.images), quoted(request.prompts[0] if request.prompts else "")
    return f"(1 picture, of {first})" if count == 1 else f"({count} pictures, the first of {first})"


def quoted(prompt: str) -> str:
    """A prompt in quotes, cut off where it is long."""
    line = one_line(prompt)
    return repr(line if len(line) <= 60 else f"{line[:57]}...")
