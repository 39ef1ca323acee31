"""`sdpo compare`: the same recipe under several objectives or settings and seeds, until each has spent a budget.

Every run is an ordinary one in a folder of its own. A run that is there already is not made again, one that was
interrupted goes on, and processes that are given the same comparison share its runs between them.
"""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from sdpo_cli.api import LoadContext
from sdpo_cli.engine import run
from sdpo_cli.engine.artifacts import RunFolder, is_run
from sdpo_cli.engine.comparison import (
    TOTAL,
    Cell,
    Curve,
    Holding,
    grouped_runs,
    measures,
    read_curve,
    tabulate,
)
from sdpo_cli.engine.comparison_figure import draw_comparison
from sdpo_cli.engine.comparison_table import comparison_json, comparison_markdown
from sdpo_cli.engine.credit import queries_per_prompt
from sdpo_cli.engine.events import Event, FileWritten, Note
from sdpo_cli.engine.files import write_bytes, write_text, writing
from sdpo_cli.engine.guarding import evaluation_path
from sdpo_cli.engine.locking import InUseError, locked
from sdpo_cli.errors import RecipeError, StoppedError, TrainingError, UsageError, one_line
from sdpo_cli.recipe import Recipe, did_you_mean
from sdpo_cli.registry import DIVERSITY, ResolvedRecipe, distinct_rewards, load_recipe

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


@dataclass(frozen=True)
class Trial:
    """One run of a comparison: its arm, its whole recipe and where it is kept."""

    arm: str
    resolved: ResolvedRecipe
    folder: Path


@dataclass(frozen=True)
class Compared:
    """What a comparison found; `missing` counts the runs that others are still making, or that cannot be trained."""

    cells: list[Cell]
    curves: list[Curve]
    missing: int


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


def plan_trials(
    source: str, arms: Sequence[Arm], shared: Sequence[str], seeds: int, budget: Budget, points: int, out: Path
) -> list[Trial]:
    """All runs, seed by seed, each with the epochs that its budget pays for and `points` evaluations along the way.

    Objectives with other numbers of rollouts draw as many pictures an epoch as the recipe does, as nearly as whole
    prompts allow. Errors as for a recipe.
    """
    usual = load_recipe(source, [*OVERRIDES, *shared])
    images = usual.recipe.rollout.pairs * usual.objective.load(LoadContext()).plan.rollouts
    trials = []
    for seed in range(usual.recipe.seed, usual.recipe.seed + seeds):
        for arm in arms:
            chosen = [] if arm.objective == usual.recipe.objective.name else [f"objective={arm.objective}"]
            own = [*OVERRIDES, *shared, *chosen, *arm.overrides, f"seed={seed}", f"name={arm.name}-seed{seed}"]
            own += paid_epochs(load_recipe(source, own), usual.recipe, images, budget, points)
            trials.append(Trial(arm.name, load_recipe(source, own), out / "runs" / f"{arm.name}-seed{seed}"))
    return trials


def paid_epochs(resolved: ResolvedRecipe, usual: Recipe, images: int, budget: Budget, points: int) -> list[str]:
    """The overrides that let a run spend the budget and evaluate on the way.

    An epoch has `images` pictures, unless its recipe has other pairs than the `usual` one, and an optimiser step as
    many as in the usual one, unless its recipe says otherwise.
    """
    recipe, plan = resolved.recipe, resolved.objective.load(LoadContext()).plan
    pairs, batch = recipe.rollout.pairs, recipe.train.batch
    if pairs == usual.rollout.pairs:
        pairs = max(1, images // plan.rollouts)
        if batch == usual.train.batch and batch != "all":
            batch = max(1, batch * pairs // usual.rollout.pairs)
    each = plan.rollouts if budget.unit == "images" else queries_per_prompt(plan, recipe.rollout.steps)
    epochs = ceil(budget.amount / (pairs * each))
    every = max(1, epochs // points)
    epochs = ceil(epochs / every) * every
    keep = [f"train.checkpoint_every={every}", "train.keep_last=1"]
    return [f"rollout.pairs={pairs}", f"train.batch={batch}", f"train.epochs={epochs}", f"eval.every={every}", *keep]


def compare(trials: Sequence[Trial], out: Path, holding: Holding | None = None) -> Generator[Event, None, Compared]:
    """Make the runs that are missing, and show what all of them reached, and how far while `holding` held.

    UsageError where a run does not measure what is to hold.
    """
    for trial in trials:
        check_holding(holding, measured_names(trial.resolved))
    for number, trial in enumerate(trials, start=1):
        lock, which = out / "locks" / trial.folder.name, f"run {number} of {len(trials)}: {trial.folder.name}"
        with writing(lock):
            lock.mkdir(parents=True, exist_ok=True)
        try:
            with locked(lock):
                if not finished(trial):
                    yield Note(which)
                    yield from make_run(trial)
        except StoppedError as stop:
            remedy, number = "give the same command again to go on", stop.exit_code - 128
            raise StoppedError("stopped", place=trial.folder.name, remedy=remedy, signal_number=number) from None
        except InUseError:
            yield Note(f"{which} is being made by another process")
        except TrainingError as error:
            yield Note(f"{which} cannot be trained and is left out: {error}")
    done = [trial for trial in trials if finished(trial)]
    if not done:
        raise UsageError("no run is finished yet", place=str(out), remedy="give the command again later")
    curves = [read_curve(RunFolder(trial.folder), trial.arm) for trial in done]
    trained = [one.name for one in trials[0].resolved.recipe.reward]
    cells = yield from write_comparison(curves, trained, out, holding)
    return Compared(cells, curves, len(trials) - len(done))


def make_run(trial: Trial) -> Generator[Event, None, None]:
    """Start the run, or go on with it."""
    if not is_run(trial.folder):
        yield from run.start(trial.resolved, trial.folder)
        return
    recipe = trial.resolved.recipe
    changes = [f"train.epochs={recipe.train.epochs}", f"eval.every={recipe.eval.every}"]
    changes += [f"train.checkpoint_every={recipe.train.checkpoint_every}"]
    yield from run.resume(RunFolder(trial.folder), changes)


def finished(trial: Trial) -> bool:
    """Whether the run has trained and been evaluated as long as its recipe says.

    RecipeError where another recipe was trained there, or this one evaluated otherwise.
    """
    folder, recipe = RunFolder(trial.folder), trial.resolved.recipe
    if not is_run(trial.folder):
        return False
    written = load_recipe(folder.recipe).recipe
    run.check_same_run(written, recipe, str(folder.recipe))
    for field in ("steps", "prompts", "images_per_prompt", "rewards"):
        if getattr(written.eval, field) != getattr(recipe.eval, field):
            fault, remedy = "not as in the run that is there", "evaluate as it does, or choose another --out"
            raise RecipeError([one_line(fault, f"{folder.recipe}: eval.{field}", remedy)])
    return folder.evaluation.is_file() and evaluation_path(folder, recipe.train.epochs).is_file()


def compare_runs(paths: Sequence[Path], out: Path, holding: Holding | None = None) -> Generator[Event, None, Compared]:
    """Show what finished runs reached, and how far while `holding` held.

    UsageError where a run does not measure what is to hold.
    """
    curves = grouped_runs(paths)
    check_holding(holding, list(dict.fromkeys(name for _, name in measures(curves))))
    trained = [one.name for one in load_recipe(RunFolder(paths[0]).recipe).recipe.reward]
    cells = yield from write_comparison(curves, trained, out, holding)
    return Compared(cells, curves, 0)


def write_comparison(
    curves: Sequence[Curve], trained: Sequence[str], out: Path, holding: Holding | None
) -> Generator[Event, None, list[Cell]]:
    """The table, the numbers, and a figure a step count, in which the trained rewards come first."""
    cells, keys = tabulate(curves), measures(curves)
    cells += tabulate(curves, holding) if holding else []
    if not keys:
        fault = "the runs have no measure in common at one number of steps"
        raise UsageError(fault, place="sdpo compare", remedy="evaluate them with the same eval.steps and rewards")
    write_text(out / "comparison.md", comparison_markdown(cells))
    write_text(out / "comparison.json", comparison_json(cells, curves))
    for steps in dict.fromkeys(steps for steps, _ in keys):
        names = sorted((name for count, name in keys if count == steps), key=lambda one: one not in (TOTAL, *trained))
        figure = out / f"steps-{steps}.png"
        write_bytes(figure, draw_comparison(curves, steps, names))
        yield FileWritten(figure, f"drawn in {steps} step{'' if steps == 1 else 's'}")
    yield FileWritten(out / "comparison.md", "the table")
    return cells
