"""What `sdpo sample` and `sdpo eval` draw with: a run, a recipe, a model's name, or a folder in diffusers layout.

Imports no torch, so that a fault comes at once.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote

from sdpo_cli.api import BaseModelSpec
from sdpo_cli.engine.disk.artifacts import RUNS, RunFolder, is_run, latest_run
from sdpo_cli.engine.disk.named_runs import listed, name_one, runs_in
from sdpo_cli.errors import ArtifactError, RecipeError, UsageError
from sdpo_cli.recipe import ModelSection, did_you_mean, read_recipe, shipped_recipes, validate
from sdpo_cli.recipe.paths import user_path
from sdpo_cli.recipe.schema import Dtype
from sdpo_cli.registry import Chosen, Registry, load_registry

DEFAULT_RECIPE = "quickstart"


@dataclass(frozen=True)
class Source:
    """A model to draw with.

    Attributes:
        label: what to call it in file names.
        name: what a recipe calls the base model.
        model: the base model.
        dtype: number format of its networks.
        adapter: folder of the LoRA on it, if any.
        recipe: file or shipped name of the recipe it came from, if any: it knows rewards and prompts.
    """

    label: str
    name: str
    model: Chosen[BaseModelSpec]
    dtype: Dtype = "float32"
    adapter: Path | None = None
    recipe: str | None = None


def find_source(name: str | None) -> Source:
    """The source of a name. None: the latest run under `runs/`, else the quick start's base model.

    Raises:
        PluginError: it is a folder that holds no model.
        UsageError: nothing has this name, or it is a folder of runs.
        ArtifactError: it is a run that has no adapter yet.
        RecipeError: its recipe is faulty.
    """
    if name is None:
        run = latest_run()
        return run_source(RunFolder(run)) if run else recipe_source(DEFAULT_RECIPE)
    path = user_path(name)
    if is_run(path):
        return run_source(RunFolder(path))
    if path.name == "adapter" and is_run(path.parent):
        return run_source(RunFolder(path.parent))
    if path.suffix in (".yaml", ".yml") or name in shipped_recipes():
        return recipe_source(name)
    if not path.exists() and len(path.parts) > 1 and (path.parts[0] == RUNS.name or path.parent.is_dir()):
        raise UsageError("no such run, recipe or folder", place=name, remedy="correct the path")
    check_holds_no_runs(path)
    registry = load_registry()
    if len(path.parts) == 1 and not path.exists() and not registry.named(BaseModelSpec, name):
        raise UsageError(f"no run, recipe, model or folder named {name!r}", remedy=way_out(name, registry))
    return Source(path.resolve().name, name, registry.model(name))


def check_holds_no_runs(path: Path) -> None:
    """UsageError, naming the runs, where a folder is none but holds some."""
    if inside := name_one(path):
        raise UsageError("holds runs, and is none itself", place=str(path), remedy=inside)


def way_out(name: str, registry: Registry) -> str:
    """What to do about a name that nothing has: the nearest one, and where all are."""
    models = [plugin.spec.name for plugin in registry.of_kind(BaseModelSpec)]
    runs = {path.name: path for path in runs_in(RUNS)}
    nearest = did_you_mean(name, [*runs, *models, *shipped_recipes()])
    if nearest and nearest == did_you_mean(name, runs):
        return did_you_mean(name, runs).replace(" mean ", f" mean {RUNS}/")
    if nearest and nearest != did_you_mean(name, models):
        return nearest
    return "; ".join([registry.remedy(BaseModelSpec, name), *([f"runs: {listed(RUNS)}"] if runs else [])])


def adapter_folder(name: str | None) -> tuple[Path, RunFolder | None]:
    """The folder of an adapter: of a run, by default of the latest one, which is given too, or one that stands alone.

    UsageError where there is no such folder.
    """
    remedy = "name a run or an adapter's folder"
    path = user_path(name) if name else latest_run()
    if path is None:
        raise UsageError("no latest run under runs/", place="sdpo export", remedy=remedy)
    run = RunFolder(path if is_run(path) else path.resolve().parent)
    if is_run(run.path) and path.resolve() in (run.path.resolve(), run.adapter.resolve()):
        return run.adapter, run
    check_holds_no_runs(path)
    if not path.is_dir():
        raise UsageError("not a folder" if path.exists() else "no such folder", place=str(path), remedy=remedy)
    return path, None


def run_source(folder: RunFolder) -> Source:
    """A run's base model with the adapter it trained."""
    if not folder.adapter.is_dir():
        raise ArtifactError(
            "this run has no adapter yet",
            place=str(folder.path),
            remedy=f"train it: `sdpo train --out {quote(str(folder.path))} --resume`",
        )
    source = recipe_source(str(folder.recipe))
    return replace(source, label=folder.path.resolve().name, adapter=folder.adapter)


def recipe_source(recipe: str) -> Source:
    """A recipe's base model. Only its `model` is looked at: drawing needs none of its rewards."""
    read = read_recipe(recipe)
    section, faults = validate(ModelSection, read.raw.get("model"), f"{read.place}: model")
    if section is None:
        raise RecipeError(faults)
    model = load_registry().model(section.name, section.options, f"{read.place}: model", read.folder)
    return Source(str(read.raw["name"]), section.name, model, section.dtype, recipe=recipe)
