"""What `sdpo train` can say, refuse or show again before torch, which takes seconds, is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo_cli.engine.artifacts import LATEST, RUNS, RunFolder, check_out, read_epochs
from sdpo_cli.engine.changes import Resumption, by_path, check_said, check_same_run, newer_options
from sdpo_cli.engine.files import read_text
from sdpo_cli.engine.guarding import check_kept, judgements
from sdpo_cli.engine.records import EvaluationReport, from_json
from sdpo_cli.errors import UsageError
from sdpo_cli.recipe import Recipe, long_form, read_recipe
from sdpo_cli.registry import ResolvedRecipe, load_recipe


@dataclass(frozen=True)
class Trained:
    """A finished run: its folder, and what its evaluation found."""

    folder: RunFolder
    report: EvaluationReport


def check_start(resolved: ResolvedRecipe, out: Path | None) -> str:
    """The name of a new run. UsageError where it cannot be made in `out`."""
    name = resolved.recipe.name or "run"
    check_out(out, name)
    return name


def find_run(named: Path | None, latest: Path | None) -> RunFolder:
    """The run to resume: the one named, else the latest. UsageError where there is none.

    `runs/latest` is called by its own name: the link may point elsewhere before the run ends.
    """
    path = latest if named in (None, RUNS / LATEST) else named
    if path is None:
        raise UsageError("no run to resume under runs/", place="--resume", remedy="name its folder")
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        fault = "holds no run" if path.exists() else "no such folder"
        raise UsageError(fault, place=str(path), remedy="name a folder that `sdpo train` wrote")
    return folder


def read_resumption(
    folder: RunFolder, settings: Sequence[str], overrides: Sequence[str] = ()
) -> tuple[ResolvedRecipe, Resumption]:
    """The recipe of a run, changed by `settings`, and what of it changes.

    RecipeError where one changes what was trained by, and is not in a field that `overrides` names, or where a plug-in
    has an option now that it had not.
    """
    place = str(folder.recipe)
    written, wanted = load_recipe(folder.recipe), load_recipe(folder.recipe, settings)
    newer = newer_options(read_recipe(folder.recipe).raw, written.recipe)
    said = by_path(read_recipe(folder.recipe, settings).raw)
    check_said({path: value for path, value in newer.items() if path not in said}, place)
    return wanted, check_same_run(written.recipe, wanted.recipe, place, overrides, newer)


def finished_run(folder: RunFolder, settings: Sequence[str], overrides: Sequence[str] = ()) -> Trained | None:
    """The run, where it has ended, all of its results are there, and nothing of its recipe is to change.

    Errors as of `read_resumption`, and TrainingError where it ended with no epoch worth keeping.
    """
    wanted, _ = read_resumption(folder, settings, overrides)
    results = (folder.evaluation, folder.page, folder.grid, folder.adapter)
    unchanged = long_form(wanted.recipe) == long_form(load_recipe(folder.recipe).recipe)
    if not unchanged or not all(path.exists() for path in results) or not is_trained(folder, wanted.recipe):
        return None
    check_kept(folder, wanted.recipe)
    return Trained(folder, from_json(read_text(folder.evaluation), str(folder.evaluation)))


def is_trained(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether the last epoch logged is the recipe's last, or the guard stopped there; ArtifactError as it is read."""
    last = max((row["epoch"] for row in read_epochs(folder.metrics)), default=0)
    judged = judgements(folder, recipe, last)
    return last == recipe.train.epochs or bool(judged and judged[-1].action == "stop")
