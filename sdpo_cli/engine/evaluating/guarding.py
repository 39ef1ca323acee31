"""The guard at work: what it reads of a run's evaluations, and what it writes down."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sdpo_cli.engine.disk.artifacts import RunFolder, named_epoch, read_epochs
from sdpo_cli.engine.disk.files import read_text, write_json_lines
from sdpo_cli.engine.evaluating.guard import Evaluated, Judgement, conclusion, decide, in_words, label, watched
from sdpo_cli.engine.evaluating.records import EvaluationReport, from_json
from sdpo_cli.engine.events import Event, Note
from sdpo_cli.errors import ArtifactError, TrainingError
from sdpo_cli.recipe import GuardSection, Recipe, read_recipe, recipe_faults
from sdpo_cli.registry import DIVERGENCE, DIVERSITY


def evaluation_path(folder: RunFolder, epoch: int) -> Path:
    """Where the evaluation after `epoch` is."""
    return folder.evaluations / f"epoch-{epoch:05d}.json"


def is_due(recipe: Recipe, epoch: int) -> bool:
    """Whether there is to be an evaluation after `epoch`."""
    return recipe.eval.every > 0 and epoch > 0 and epoch % recipe.eval.every == 0


def judgements(folder: RunFolder, recipe: Recipe, epoch: int) -> tuple[Judgement, ...]:
    """What the guard makes of the evaluations up to that of `epoch`; nothing where it is off."""
    if not recipe.guard.on:
        return ()
    due = [one for one in range(1, epoch + 1) if is_due(recipe, one) and evaluation_path(folder, one).exists()]
    wanted = due and any(one.measure == DIVERGENCE for one in watched(recipe.guard))
    divergence = logged(folder, DIVERGENCE) if wanted else {}
    found = [read_evaluation(folder, one, divergence) for one in due]
    for one in found:
        check_measured(recipe.guard, one, str(evaluation_path(folder, one.epoch)))
    return decide(recipe.guard, found)


def check_measured(guard: GuardSection, found: Evaluated, place: str) -> None:
    """ArtifactError where an evaluation lacks what the guard looks at, as one from before `--override guard` may."""
    for one in watched(guard):
        for table in (found.base, found.tuned):
            by_steps = table.get(str(one.measure), {})
            if not by_steps or not set(one.steps or ()) <= by_steps.keys():
                remedy = "let the guard look at what every evaluation of the run has measured"
                raise ArtifactError(f"has no {label(one)}", place=place, remedy=remedy)


def logged(folder: RunFolder, name: str) -> Mapping[int, float]:
    """A number of `metrics.jsonl` by epoch."""
    return {row["epoch"]: row[name] for row in read_epochs(folder.metrics) if name in row}


def read_evaluation(folder: RunFolder, epoch: int, divergence: Mapping[int, float]) -> Evaluated:
    """What was measured after `epoch`, and where it was logged the divergence from the base model in it."""
    path = evaluation_path(folder, epoch)
    found = evaluated(epoch, from_json(read_text(path), str(path)))
    if epoch not in divergence:
        return found
    return Evaluated(epoch, {**found.base, DIVERGENCE: {0: 0.0}}, {**found.tuned, DIVERGENCE: {0: divergence[epoch]}})


def evaluated(epoch: int, report: EvaluationReport) -> Evaluated:
    """The means of a report."""
    base: dict[str, dict[int, float]] = {}
    tuned: dict[str, dict[int, float]] = {}
    for one in report.diversity:
        base.setdefault(DIVERSITY, {})[one.steps] = one.base
        if one.tuned is not None:
            tuned.setdefault(DIVERSITY, {})[one.steps] = one.tuned
    for row in report.results:
        base.setdefault(row.reward, {})[row.steps] = row.base.mean
        if row.tuned is not None:
            tuned.setdefault(row.reward, {})[row.steps] = row.tuned.mean
    return Evaluated(epoch, base, tuned)


def watch(folder: RunFolder, recipe: Recipe, epoch: int) -> Generator[Event, None, Judgement | None]:
    """The judgement that counts after `epoch`, if there is one: told where it is new, and all written down."""
    found = judgements(folder, recipe, epoch)
    if not found:
        return None
    write_json_lines(folder.guard, [asdict(one) for one in found])
    if found[-1].epoch == epoch:
        yield Note(in_words(recipe.guard, found[-1]))
    return found[-1]


def kept_epoch(folder: RunFolder, recipe: Recipe, epoch: int) -> int:
    """The epoch whose weights are the run's, when `epoch` is the last one trained."""
    found = judgements(folder, recipe, epoch)
    if not found:
        return epoch
    last = found[-1]
    return last.best or (last.epoch if last.action == "stop" else epoch)


def account(folder: RunFolder, recipe: Recipe) -> Sequence[str]:
    """What the guard did and which epoch is kept, one line each; nothing where it is off."""
    found = judgements(folder, recipe, recipe.train.epochs)
    return [*(in_words(recipe.guard, one) for one in found), conclusion(recipe.guard, found)] if found else []


def account_of(folder: RunFolder) -> Sequence[str]:
    """`account` of a finished run, by the recipe in its folder."""
    recipe, _ = recipe_faults(read_recipe(folder.recipe).raw, str(folder.recipe))
    return account(folder, recipe) if recipe else []


def check_kept(folder: RunFolder, recipe: Recipe) -> None:
    """TrainingError where the best epoch was to be kept and every evaluation broke a rule."""
    found = judgements(folder, recipe, recipe.train.epochs)
    if found and found[-1].best is None and recipe.guard.keep_best.measure is not None:
        raise TrainingError(
            "every evaluation broke a rule of the guard, so no epoch is worth keeping",
            place=str(folder.path),
            remedy="evaluate more often (eval.every) or lower train.learning_rate; report.html shows the last epoch",
        )


def forget_evaluations(folder: RunFolder, epoch: int) -> None:
    """Drop the evaluations of epochs after `epoch`, which the run will make again, and what was made of them."""
    folder.guard.unlink(missing_ok=True)
    for path in folder.evaluations.glob("epoch-*.json"):
        if named_epoch(path) > epoch:
            path.unlink()
