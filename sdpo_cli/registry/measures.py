"""What an evaluation measures, by name, and whether a guard's rules name it."""

from collections.abc import Iterable, Sequence
from typing import Any

from sdpo_cli.errors import one_line
from sdpo_cli.recipe import GuardSection, did_you_mean, joined
from sdpo_cli.registry.lookup import Chosen

DIVERSITY = "diversity"


def distinct_rewards(chosen: Sequence[Chosen[Any]]) -> dict[str, Chosen[Any]]:
    """The rewards by the names that columns and logs give them.

    The first of a name keeps it, one with the same name and options is the same reward, and one with other options is
    called by name and options.
    """
    named: dict[str, Chosen[Any]] = {}
    for one in chosen:
        same = [other for other in named.values() if other.name == one.name]
        if all(other.all_options() != one.all_options() for other in same):
            named[f"{one.name} {options_text(one)}" if same else one.name] = one
    return named


def options_text(chosen: Chosen[Any]) -> str:
    """`style=flat, ...`"""
    return ", ".join(f"{key}={value}" for key, value in chosen.all_options().items())


def guard_faults(guard: GuardSection, rewards: Sequence[Chosen[Any]], place: str) -> Iterable[str]:
    """A line for each rule whose measure no evaluation has; `rewards` are those that it scores."""
    known = [*distinct_rewards(rewards), DIVERSITY]
    named = {f"stop_if.{number}": rule.measure for number, rule in enumerate(guard.stop_if)}
    for field, measure in {"keep_best": guard.keep_best.measure, **named}.items():
        if measure is not None and measure not in known:
            remedy = f"{did_you_mean(measure, known)} measured: {', '.join(known)}"
            where = joined(place, ["guard", field, "measure"])
            yield one_line(f"nothing called {measure!r} is evaluated", where, remedy)
