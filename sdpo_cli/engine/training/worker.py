"""A process of a run that is not rank 0: it loads the same, does its share of what rank 0 tells, and keeps nothing."""

import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sdpo_cli.engine.events import Event
from sdpo_cli.engine.rewards.scorer import Scorer
from sdpo_cli.engine.setup import load_setup
from sdpo_cli.engine.signals import SIGNALS
from sdpo_cli.engine.training.shares import Seat, alike
from sdpo_cli.engine.training.team import GoneError, Team, assembled
from sdpo_cli.registry import resolve

T = TypeVar("T")


def work() -> None:
    """Serve rank 0 until it ends the run or is gone. Signals are rank 0's: it ends the others in good order."""
    with assembled() as team:
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)  # not SIG_IGN, which what a reward starts would inherit
        with suppress(GoneError):
            serve(team)


def serve(team: Team) -> None:
    """Load the run, then do what is told until there is nothing more. GoneError where rank 0 has died."""
    seats: list[Seat] = []

    def take_seat(recipe: Mapping[str, Any], place: str) -> dict[str, str]:
        """Load what rank 0's recipe names; gives what must be the same everywhere."""
        resolved = resolve(recipe, place)
        setup = returned(load_setup(resolved, team.device(resolved.recipe.train.device)))
        seats.append(Seat(setup, team, scorer=Scorer(setup.rewards)))
        return alike(setup)

    def obey(task: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        return task(*seats, *arguments)

    run = team.hear()
    if run is None:
        return
    team.answer(run, take_seat)
    while (order := team.hear()) is not None:
        team.answer(order, obey)


def returned(events: Generator[Event, None, T]) -> T:
    """What a generator returns, its events aside."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            result: T = end.value
            return result
