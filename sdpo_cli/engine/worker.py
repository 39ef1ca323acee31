"""A process of a run that is not rank 0: it loads the same, does its share of what rank 0 tells, and keeps nothing."""

import signal
from collections.abc import Generator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from sdpo_cli.engine.events import Event
from sdpo_cli.engine.scorer import Scorer
from sdpo_cli.engine.setup import load_setup
from sdpo_cli.engine.shares import Seat
from sdpo_cli.engine.signals import SIGNALS
from sdpo_cli.engine.team import GoneError, Team, assembled
from sdpo_cli.registry import resolve

T = TypeVar("T")


def work() -> None:
    """Serve rank 0 until it ends the run or is gone. Signals are rank 0's: it ends the others in good order."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to tell as long as the processes have not met
    with assembled() as team:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        with suppress(GoneError):
            serve(team)


def serve(team: Team) -> None:
    """Load the run, then do what is told until there is nothing more. GoneError where rank 0 has died."""
    seat: list[Seat] = []
    if run := team.hear():
        team.answer(lambda: seat.append(load(team, *run)))
    while run and (order := team.hear()):
        task, arguments = order
        team.answer(task, *seat, *arguments)


def load(team: Team, recipe: Mapping[str, Any], place: str) -> Seat:
    """Load what rank 0's recipe names."""
    resolved = resolve(recipe, place)
    setup = returned(load_setup(resolved, team.device(resolved.recipe.train.device)))
    return Seat(setup, team, scorer=Scorer(setup.rewards))


def returned(events: Generator[Event, None, T]) -> T:
    """What a generator returns, its events aside."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            result: T = end.value
            return result
