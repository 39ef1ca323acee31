"""What a comparison is asked for: its parts, budget and measures. Imports no torch, so that a fault comes at once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdpo_cli.api import ObjectiveSpec
from sdpo_cli.engine.comparing.comparison import Holding
from sdpo_cli.engine.comparing.table import STORED
from sdpo_cli.engine.disk.artifacts import is_run
from sdpo_cli.errors import RecipeError, UsageError
from sdpo_cli.recipe import Recipe, did_you_mean, shipped_recipes
from sdpo_cli.recipe.source import find_recipe
from sdpo_cli.registry import DIVERSITY, ResolvedRecipe, distinct_rewards, load_recipe, load_registry

SOURCES_WORD = "name one recipe, one comparison, or folders that `sdpo train` wrote"

OVERRIDES = ("train.samples_every=0", "guard={}")
"""What every run of a comparison is told before the user's own settings."""

OWN_FIELDS = ("name", "train.epochs", "eval.every", "guard")
"""What a comparison decides itself; the seed too, of which all parts may be told the first."""


@dataclass(frozen=True)
class Budget:
    """When a run has spent enough: pictures drawn, or rewards asked."""

    unit: str
    amount: int


@dataclass(frozen=True)
class Arm:
    """What is compared: a name, an objective, and recipe overrides of its own, which come after those of all."""

    name: str
    objective: str
    overrides: tuple[str, ...] = ()


def check_sources(sources: Sequence[str]) -> bool:
    """Whether the sources are runs, rather than one recipe. UsageError where they are neither."""
    for source in sources:
        if not is_run(Path(source)) and not is_recipe(source):
            begun = all((Path(source) / part).is_dir() for part in ("locks", "runs"))
            fault = "a comparison without a table yet" if begun else "neither a recipe nor a run"
            remedy = f"{did_you_mean(Path(source).stem, shipped_recipes())} {SOURCES_WORD}".strip()
            remedy = "give the command that began it again, to go on" if begun else remedy
            raise UsageError(fault, place=source or "''", remedy=remedy)
    runs = [is_run(Path(source)) for source in sources]
    if not all(runs) and len(sources) > 1:
        raise UsageError("a recipe, and not the only one named", place=sources[runs.index(False)], remedy=SOURCES_WORD)
    return all(runs)


def is_comparison(source: str) -> bool:
    """Whether there is a comparison with a table at that path, and no recipe is meant by the name."""
    return (Path(source) / STORED).is_file() and not is_recipe(source)


def is_recipe(source: str) -> bool:
    """Whether there is a recipe at that path or of that name."""
    try:
        return find_recipe(source).is_file()
    except RecipeError:
        return False


def check_arms(source: str, arms: Sequence[Arm], shared: Sequence[str], holding: Holding | None) -> None:
    """RecipeError where the recipe of a part is faulty.

    UsageError where there is no such objective, or a part does not measure what is to hold.
    """
    usual = load_recipe(source, [*OVERRIDES, *shared])
    for arm in arms:
        load_registry().find(ObjectiveSpec, arm.objective, "--objectives")
        check_holding(holding, measured_names(load_recipe(source, arm_overrides(usual.recipe, arm, shared))))


def arm_overrides(usual: Recipe, arm: Arm, shared: Sequence[str]) -> list[str]:
    """What makes an arm's recipe of the usual one."""
    chosen = [] if arm.objective == usual.objective.name else [f"objective={arm.objective}"]
    return [*OVERRIDES, *shared, *chosen, *arm.overrides]


def parse_budget(text: str) -> Budget:
    """`images=2000` or `queries=2000`. UsageError where it is neither."""
    unit, _, amount = text.partition("=")
    if unit not in ("images", "queries") or not re.fullmatch("[1-9][0-9]{0,8}", amount):
        raise UsageError(f"{text!r} is no budget", place="--budget", remedy="write images=2000 or queries=2000")
    return Budget(unit, int(amount))


def parse_holding(text: str) -> Holding:
    """`emoji-clip=0.1`. UsageError where it is no measure and number."""
    measure, _, drop = text.rpartition("=")
    if not measure or not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", drop):
        raise UsageError(f"{text!r} is no measure and fall", place="--holding", remedy="write as in emoji-clip=0.1")
    return Holding(measure, float(drop))


def check_holding(holding: Holding | None, measured: Sequence[str]) -> None:
    """UsageError where what is to hold is not among the names `measured`, or is the only reward among them."""
    if holding is None:
        return
    if holding.measure not in measured:
        remedy = f"{did_you_mean(holding.measure, measured)} measured: {', '.join(measured)}"
        raise UsageError(f"nothing called {holding.measure!r} is measured", place="--holding", remedy=remedy)
    if not set(measured) - {holding.measure, DIVERSITY}:
        remedy = "add one to eval.rewards, or leave --holding out"
        raise UsageError(f"no reward is measured beside {holding.measure}", place="--holding", remedy=remedy)


def measured_names(resolved: ResolvedRecipe) -> list[str]:
    """What every evaluation of a run measures: its rewards, and the diversity of several pictures of a prompt."""
    diversity = [DIVERSITY] if resolved.recipe.eval.images_per_prompt > 1 else []
    return [*distinct_rewards([*resolved.rewards, *resolved.eval_rewards]), *diversity]


def parse_arms(text: str, overrides: Sequence[str]) -> tuple[list[Arm], list[str]]:
    """Arms from `NAME` or `NAME=OBJECTIVE` between commas, and `ARM:FIELD=VALUE` among the overrides; and the others.

    UsageError on a name without letters, one that comes twice, and an override of an arm that is not there.
    """
    pairs = [part.strip().partition("=") for part in text.split(",")]
    arms = [Arm(name, objective or name) for name, _, objective in pairs]
    for arm in arms:
        if not arm.name or not set(arm.name) <= NAME_LETTERS:
            remedy = "use letters, digits, dots, hyphens and underscores"
            raise UsageError(f"{arm.name!r} cannot name a part of the comparison", place="--objectives", remedy=remedy)
        if [other.name for other in arms].count(arm.name) > 1:
            remedy = f"tell them apart: {arm.name}-2={arm.objective}"
            raise UsageError(f"{arm.name} comes twice", place="--objectives", remedy=remedy)
    found: dict[str, list[str]] = {"": [], **{arm.name: [] for arm in arms}}
    for one in overrides:
        name, own = own_override(one)
        if name not in found:
            remedy = f"there are {', '.join(arm.name for arm in arms)}"
            raise UsageError(f"no part called {name}", place=f"--set {one}", remedy=remedy)
        field = own.partition("=")[0]
        if field in OWN_FIELDS or field.startswith("guard.") or (name and field == "seed"):
            remedy = "it follows from --seeds, --budget and --points; a guard is left out"
            raise UsageError("is not to be set in a comparison", place=f"--set {one}", remedy=remedy)
        found[name].append(own)
    return [replace(arm, overrides=tuple(found[arm.name])) for arm in arms], found[""]


NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")


def own_override(text: str) -> tuple[str, str]:
    """`ARM:FIELD=VALUE` as (arm, `FIELD=VALUE`); ("", text) where it is meant for all."""
    name, colon, _ = text.partition("=")[0].partition(":")
    return (name, text[len(name) + 1 :]) if colon else ("", text)
