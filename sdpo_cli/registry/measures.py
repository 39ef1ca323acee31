"""What an evaluation measures, by name, and whether a guard's rules name it."""

from collections.abc import Iterable, Sequence
from typing import Any

from sdpo_cli.errors import one_line
from sdpo_cli.recipe import KeepBestSection, Recipe, StopRule, did_you_mean, joined
from sdpo_cli.registry.lookup import Chosen

DIVERSITY, DIVERGENCE = "diversity", "kl_base"
"""What is measured beside the rewards: by every evaluation, and by every epoch of training."""


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


def guard_faults(recipe: Recipe, rewards: Sequence[Chosen[Any]], place: str) -> Iterable[str]:
    """A line for each rule whose measure there is not; `rewards` are those that evaluations score."""
    guard, model = recipe.guard, recipe.model
    logged = [DIVERGENCE] if model.train == "lora" or recipe.train.kl > 0 else []
    known = [*distinct_rewards(rewards), DIVERSITY, *logged]
    rules: dict[str, KeepBestSection | StopRule] = {"keep_best": guard.keep_best}
    for field, one in (rules | {f"stop_if.{number}": rule for number, rule in enumerate(guard.stop_if)}).items():
        where = joined(place, ["guard", field])
        if one.measure is not None and one.measure not in known:
            remedy = f"{did_you_mean(one.measure, known)} measured: {', '.join(known)}"
            yield one_line(f"nothing called {one.measure!r} is measured", f"{where}.measure", remedy)
        if one.measure == DIVERGENCE and one.steps:
            yield one_line(f"{DIVERGENCE} is measured in training, at no step count", f"{where}.steps", "leave it out")
