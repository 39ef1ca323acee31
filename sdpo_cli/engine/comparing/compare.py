"""`sdpo compare`: the same recipe under several objectives or settings and seeds, until each has spent a budget.

Every run is an ordinary one in a folder of its own. A run that is there already is not made again, one that was
interrupted goes on, and processes that are given the same comparison share its runs between them.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import LearningPlan
from sdpo_cli.engine.comparing.comparison import (
    TOTAL,
    Cell,
    Curve,
    Holding,
    grouped_runs,
    measures,
    read_curve,
    step_word,
    tabulate,
)
from sdpo_cli.engine.comparing.figure import draw_comparison, draw_trade_off
from sdpo_cli.engine.comparing.pace import Made, Work, foreseen
from sdpo_cli.engine.comparing.plan import OVERRIDES, Arm, Budget, arm_overrides, check_holding
from sdpo_cli.engine.comparing.table import (
    STORED,
    Compared,
    comparison_json,
    comparison_markdown,
    main_table,
    preamble,
)
from sdpo_cli.engine.disk.artifacts import RunFolder, is_run, named_epoch
from sdpo_cli.engine.disk.changes import recipe_changes
from sdpo_cli.engine.disk.files import write_bytes, write_text, writing
from sdpo_cli.engine.disk.locking import InUseError, is_locked, locked
from sdpo_cli.engine.evaluating.guarding import evaluation_path
from sdpo_cli.engine.events import Event, FileWritten, Note, RunDone
from sdpo_cli.engine.learning.credit import queries_per_prompt
from sdpo_cli.engine.setup import check_steps
from sdpo_cli.engine.training import run
from sdpo_cli.engine.training.checkpoint import complete_checkpoints
from sdpo_cli.engine.training.clock import Clock
from sdpo_cli.errors import RecipeError, StoppedError, TrainingError, UsageError, one_line
from sdpo_cli.recipe import Recipe
from sdpo_cli.registry import ResolvedRecipe, load_recipe

TRADE_OFF = "trade-off.png"
"""The figure of a trained reward against what should hold."""


@dataclass(frozen=True)
class Trial:
    """One run of a comparison: its arm, its whole recipe and where it is kept."""

    arm: str
    resolved: ResolvedRecipe
    folder: Path


@dataclass(frozen=True)
class TradeOff:
    """A figure to be drawn: a trained reward against what should hold, at each of some step counts."""

    reward: str
    counts: Sequence[int]
    holding: Holding

    @property
    def title(self) -> str:
        """What it shows."""
        return f"{self.reward} against {self.holding.measure}"


def plan_trials(
    source: str, arms: Sequence[Arm], shared: Sequence[str], seeds: int, budget: Budget, points: int, out: Path
) -> list[Trial]:
    """All runs, seed by seed, each with the epochs that its budget pays for and `points` evaluations along the way.

    Objectives with other numbers of rollouts draw as many pictures an epoch as the recipe does, as nearly as whole
    prompts allow. Errors as for a recipe, of the runs that are there too, and UsageError where one of them that has not
    ended has spent more than the budget.
    """
    usual = load_recipe(source, [*OVERRIDES, *shared])
    images = usual.recipe.rollout.pairs * usual.objective.load(LoadContext()).plan.rollouts
    trials = []
    for seed in range(usual.recipe.seed, usual.recipe.seed + seeds):
        for arm in arms:
            own = [*arm_overrides(usual.recipe, arm, shared), f"seed={seed}", f"name={arm.name}-seed{seed}"]
            own += paid_epochs(load_recipe(source, own), usual.recipe, images, budget, points)
            trials.append(Trial(arm.name, load_recipe(source, own), out / "runs" / f"{arm.name}-seed{seed}"))
    check_spent(trials, budget)
    return trials


def check_spent(trials: Sequence[Trial], budget: Budget) -> None:
    """UsageError where a run that has not ended as its recipe says has spent more than that lets it."""
    spent = {}
    for trial in trials:
        epochs, recipe = epochs_kept(trial), trial.resolved.recipe
        if not finished(trial) and epochs > recipe.train.epochs:
            plan = trial.resolved.objective.load(LoadContext()).plan
            each = price(budget.unit, plan, recipe.rollout.pairs, recipe.rollout.steps)
            spent[trial.folder.name] = ceil(epochs * each)
    if spent:
        most = max(spent, key=lambda name: spent[name])
        enough = f"{budget.unit}={spent[most]}"
        fault, remedy = f"is less than {most} has spent: {enough}", f"give {enough} or more, or choose another --out"
        raise UsageError(fault, place=f"--budget {budget.unit}={budget.amount}", remedy=remedy)


def epochs_kept(trial: Trial) -> int:
    """The epochs that a run has trained, up to its newest checkpoint; 0 before the first."""
    kept = complete_checkpoints(RunFolder(trial.folder).checkpoints)
    return named_epoch(kept[-1]) if kept else 0


def paid_epochs(resolved: ResolvedRecipe, usual: Recipe, images: int, budget: Budget, points: int) -> list[str]:
    """The overrides that let a run spend the budget and evaluate on the way.

    An epoch has `images` pictures, unless its recipe has other pairs than the `usual` one, and an optimiser step as
    many as in the usual one, unless its recipe says otherwise. RecipeError where its rollouts are too short.
    """
    recipe, objective = resolved.recipe, resolved.objective.load(LoadContext())
    check_steps(objective, recipe.rollout.steps, resolved.place)
    plan = objective.plan
    pairs, batch = recipe.rollout.pairs, recipe.train.batch
    if pairs == usual.rollout.pairs:
        pairs = max(1, images // plan.rollouts)
        if batch == usual.train.batch and batch != "all":
            batch = max(1, batch * pairs // usual.rollout.pairs)
    epochs = ceil(budget.amount / price(budget.unit, plan, pairs, recipe.rollout.steps))
    every = max(1, epochs // points)
    epochs = ceil(epochs / every) * every
    keep = [f"train.checkpoint_every={every}", "train.keep_last=1"]
    return [f"rollout.pairs={pairs}", f"train.batch={batch}", f"train.epochs={epochs}", f"eval.every={every}", *keep]


def price(unit: str, plan: LearningPlan, pairs: int, steps: int) -> Fraction:
    """What an epoch spends: pictures drawn, or rewards asked."""
    return Fraction(pairs) * (plan.rollouts if unit == "images" else queries_per_prompt(plan, steps))


def compare_trials(
    trials: Sequence[Trial], out: Path, holding: Holding | None = None
) -> Generator[Event, None, Compared]:
    """Make the runs that are missing, and show what all of them reached, and how far while `holding` held."""
    elsewhere: list[Trial] = []
    made: list[Made] = []
    with TemporaryDirectory() as bases:  # not kept: what rewards read may be another the next time
        for number, trial in enumerate(trials, start=1):
            lock, which = lock_of(trial, out), f"run {number} of {len(trials)}: {trial.folder.name}"
            with writing(lock):
                lock.mkdir(parents=True, exist_ok=True)
            try:
                with locked(lock):
                    if not finished(trial):
                        yield Note(which)
                        made.append((yield from make_run(trial, Path(bases))))
                        yield from outlook(made, trials[number:], out)
            except StoppedError as stop:
                remedy, number = "give the same command again to go on", stop.exit_code - 128
                raise StoppedError("stopped", place=trial.folder.name, remedy=remedy, signal_number=number) from None
            except InUseError:
                elsewhere.append(trial)
                yield Note(f"{which} is being made by another process")
            except TrainingError as error:
                yield Note(f"{which} cannot be trained and is left out: {error}")
    done = [trial for trial in trials if finished(trial)]
    if not done:
        raise UsageError("no run is finished yet", place=str(out), remedy="give the command again later")
    curves = [read_curve(RunFolder(trial.folder), trial.arm) for trial in done]
    trained = [one.name for one in trials[0].resolved.recipe.reward]
    origin = f"recipe: `{trials[0].resolved.place}`"
    cells = yield from write_comparison(curves, trained, out, holding, origin)
    return Compared(main_table(cells, trained), sum(not finished(trial) for trial in elsewhere))


def lock_of(trial: Trial, out: Path) -> Path:
    """The folder that is locked while the run is made."""
    return out / "locks" / trial.folder.name


def make_run(trial: Trial, bases: Path) -> Generator[Event, None, Made]:
    """Start the run, or go on with it; gives what that took. `bases` as of `run.start`."""
    recipe, clock, left = trial.resolved.recipe, Clock(), epochs_left(trial)
    with clock.stage("run"):
        if is_run(trial.folder):
            changes = [f"train.epochs={recipe.train.epochs}", f"eval.every={recipe.eval.every}"]
            changes += [f"train.checkpoint_every={recipe.train.checkpoint_every}"]
            yield from run.resume(RunFolder(trial.folder), changes, bases=bases)
        else:
            yield from run.start(trial.resolved, trial.folder, bases)
    return Made(trial.arm, left, clock.seconds["run"])


def epochs_left(trial: Trial) -> int:
    """The epochs that are still to be trained."""
    return trial.resolved.recipe.train.epochs - epochs_kept(trial)


def outlook(made: Sequence[Made], others: Sequence[Trial], out: Path) -> Generator[Event, None, None]:
    """About how long the other runs will take that nobody makes or has made."""
    to_come = [
        Work(one.arm, epochs_left(one)) for one in others if not finished(one) and not is_locked(lock_of(one, out))
    ]
    seconds = foreseen(made, to_come)
    if to_come and seconds is not None:
        yield RunDone(len(to_come), seconds)


def finished(trial: Trial) -> bool:
    """Whether the run has trained and been evaluated as long as its recipe says.

    RecipeError where another recipe was trained there, or this one evaluated otherwise.
    """
    folder, recipe = RunFolder(trial.folder), trial.resolved.recipe
    if not is_run(trial.folder):
        return False
    written = load_recipe(folder.recipe).recipe
    changed = recipe_changes(written, recipe).items()
    if changed:
        faults = [
            f"{folder.recipe}: {path}: {old!r} in the run that is there, not {new!r}" for path, (old, new) in changed
        ]
        raise RecipeError([one_line(fault, remedy="choose another --out") for fault in faults])
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
    origin = f"runs: {', '.join(f'`{path}`' for path in paths)}"
    cells = yield from write_comparison(curves, trained, out, holding, origin)
    return Compared(main_table(cells, trained))


def write_comparison(
    curves: Sequence[Curve], trained: Sequence[str], out: Path, holding: Holding | None, origin: str
) -> Generator[Event, None, list[Cell]]:
    """The table, the numbers, and a figure a step count, in which the trained rewards come first."""
    cells, keys = tabulate(curves), measures(curves)
    cells += tabulate(curves, holding) if holding else []
    if not keys:
        fault = "the runs have no measure in common at one number of steps"
        raise UsageError(fault, place="sdpo compare", remedy="evaluate them with the same eval.steps and rewards")
    counts, traded = list(dict.fromkeys(steps for steps, _ in keys)), trade_off(keys, trained, holding)
    figures = {step_word(steps): f"steps-{steps}.png" for steps in counts}
    figures |= {traded.title: TRADE_OFF} if traded else {}
    write_text(out / "comparison.md", preamble(origin, curves, figures) + comparison_markdown(cells))
    write_text(out / STORED, comparison_json(cells, curves, trained))
    for steps in counts:
        names = sorted((name for count, name in keys if count == steps), key=lambda one: one not in (TOTAL, *trained))
        figure = out / f"steps-{steps}.png"
        write_bytes(figure, draw_comparison(curves, steps, names))
        yield FileWritten(figure, f"drawn in {step_word(steps)}")
    if traded:
        write_bytes(out / TRADE_OFF, draw_trade_off(curves, traded.counts, traded.reward, traded.holding))
        yield FileWritten(out / TRADE_OFF, traded.title)
    yield FileWritten(out / "comparison.md", "the table")
    return cells


def trade_off(keys: Sequence[tuple[int, str]], trained: Sequence[str], holding: Holding | None) -> TradeOff | None:
    """What there is to be drawn of what the trained reward has cost of what should hold, where both were measured."""
    if holding is None:
        return None
    for reward in [TOTAL, *trained]:
        counts = [steps for steps, name in keys if name == reward and (steps, holding.measure) in keys]
        if counts and reward != holding.measure:
            return TradeOff(reward, counts, holding)
    return None
