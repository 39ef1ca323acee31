"""A conformance report: every law of a plug-in's kind, with its verdict."""

from collections.abc import Callable, Iterator
from typing import Any

from sdpo_cli.api import BaseModelSpec, LoadContext, ObjectiveSpec, PromptSourceSpec, RewardSpec
from sdpo_cli.registry import Chosen
from sdpo_cli.testing.laws import Stage, Verdict, judged, verdict
from sdpo_cli.testing.models import model_laws
from sdpo_cli.testing.objectives import objective_laws
from sdpo_cli.testing.prompts import prompt_laws
from sdpo_cli.testing.rewards import reward_laws

LAWS: dict[type, Callable[[Any], list[Stage]]] = {
    RewardSpec: reward_laws,
    BaseModelSpec: model_laws,
    PromptSourceSpec: prompt_laws,
    ObjectiveSpec: objective_laws,
}


def conformance(chosen: Chosen[Any], context: LoadContext | None = None) -> Iterator[Verdict]:
    """Load a plug-in and try every law of its kind; nothing is raised."""
    loaded: list[Any] = []
    loads = verdict("it loads", lambda: loaded.append(chosen.load(context or LoadContext())))
    yield loads
    if loads.result == "ok":
        yield from judged(LAWS[type(chosen.spec)](loaded[0]))
