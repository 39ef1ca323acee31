"""What `sdpo train` can say, refuse or show again before torch, which takes seconds, is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from sdpo_cli.api.lora_place import find_lora
from sdpo_cli.engine.disk.artifacts import LATEST, RUNS, RunFolder, adapter_place, check_out, read_epochs
from sdpo_cli.engine.disk.changes import Resumption, by_path, check_said, check_same_run, meant_otherwise, newer_options
from sdpo_cli.engine.disk.files import read_text
from sdpo_cli.engine.disk.locking import is_locked
from sdpo_cli.engine.disk.named_runs import name_one, newest_run
from sdpo_cli.engine.evaluating.guarding import check_kept, judgements
from sdpo_cli.engine.evaluating.records import EvaluationReport, from_json
from sdpo_cli.errors import SdpoError, UsageError
from sdpo_cli.recipe import Recipe, read_recipe, recipe_faults
from sdpo_cli.registry import ResolvedRecipe, resolve


@dataclass(frozen=True)
class Trained:
    """A finished run: its folder, and what its evaluation found."""

    folder: RunFolder
    report: EvaluationReport


@dataclass(frozen=True)
class Reread:
    """The recipe of a run as it was written, as it is wanted now, and how the run is gone on with."""

    written: Recipe
    wanted: ResolvedRecipe
    resumption: Resumption


def check_start(resolved: ResolvedRecipe, out: Path | None) -> str:
    """The name of a new run.

    UsageError where it cannot be made in `out`, or there is no adapter to start from; ArtifactError where that is none.
    """
    name, begun = resolved.recipe.name or "run", resolved.recipe.model.lora.start
    check_out(out, name)
    if begun:
        find_lora(adapter_place(Path(begun)))
    return name


def find_run(named: Path | None, latest: Path | None) -> RunFolder:
    """The run to resume: the one named, else the latest. UsageError where there is none.

    `runs/latest` is called by its own name: the link may point elsewhere before the run ends.
    """
    path = latest if named in (None, RUNS / LATEST) else named
    if path is None:
        raise UsageError("no latest run under runs/", place="--resume", remedy="name its folder")
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        fault = "holds no run" if path.exists() else "no such folder"
        raise UsageError(fault, place=str(path), remedy=run_meant(path) or "name a folder that `sdpo train` wrote")
    return folder


def run_meant(path: Path) -> str:
    """What to do where a run is named by its recipe, or by the folder it is in; empty where no run is known."""
    if inside := name_one(path):
        return inside
    try:
        name = str(read_recipe(path).raw["name"])
    except SdpoError:
        name = path.stem
    run = newest_run(name)
    return f"the run of this name goes on with `sdpo train --resume {quote(str(run))}`" if run else ""


def read_resumption(folder: RunFolder, settings: Sequence[str], overrides: Sequence[str] = ()) -> Reread:
    """The recipe of a run, and what of it `settings` change.

    RecipeError where one changes what was trained by, and is not in a field that `overrides` names, or where a plug-in
    has an option now that it had not.
    """
    place, read = str(folder.recipe), (read_recipe(folder.recipe), read_recipe(folder.recipe, settings))
    written, wanted = (resolve(one.raw, one.place, one.folder, faults=one.faults) for one in read)
    newer, said = newer_options(read[0].raw, written.recipe), by_path(read[1].raw)
    check_said({path: value for path, value in newer.items() if path not in said}, place)
    return Reread(written.recipe, wanted, check_same_run(written.recipe, wanted.recipe, place, overrides, newer))


def finished_run(folder: RunFolder, settings: Sequence[str], overrides: Sequence[str] = ()) -> Trained | None:
    """The run, where it has ended, all of its results are there, and nothing of its recipe is to change.

    Errors as of `read_resumption`, and TrainingError where it ended with no epoch worth keeping.
    """
    reread = read_resumption(folder, settings, overrides)
    recipe, results = reread.wanted.recipe, (folder.evaluation, folder.page, folder.grid, folder.adapter)
    if meant_otherwise(reread.written, recipe) or not all(path.exists() for path in results):
        return None
    if not is_trained(folder, recipe):
        return None
    check_kept(folder, recipe)
    return Trained(folder, from_json(read_text(folder.evaluation), str(folder.evaluation)))


def how_far(run: Path) -> str:
    """`stopped after epoch 3 of 14` of a run that is not trained to its end; empty where it is, or cannot be read."""
    folder = RunFolder(run)
    try:
        recipe, _ = recipe_faults(read_recipe(folder.recipe).raw, str(folder.recipe))
        if recipe is None or is_trained(folder, recipe):
            return ""
        last = max((row["epoch"] for row in read_epochs(folder.metrics)), default=0)
    except SdpoError:  # whoever takes the run will say so, where it matters
        return ""
    return f"{'still training,' if is_locked(run) else 'stopped'} after epoch {last} of {recipe.train.epochs}"


def is_trained(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether the last epoch logged is the recipe's last, or the guard stopped there; ArtifactError as it is read."""
    last = max((row["epoch"] for row in read_epochs(folder.metrics)), default=0)
    judged = judgements(folder, recipe, last)
    return last == recipe.train.epochs or bool(judged and judged[-1].action == "stop")
