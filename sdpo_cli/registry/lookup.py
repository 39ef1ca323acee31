"""Plug-ins by name, with clear answers where a name is unknown or has two owners, and options checked."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from sdpo_cli.api import (
    BaseModelSpec,
    HubFiles,
    LoadContext,
    ObjectiveSpec,
    Options,
    PromptSourceSpec,
    RewardSpec,
    Spec,
)
from sdpo_cli.api.specs import IS_PATH
from sdpo_cli.errors import PluginError, RecipeError, SdpoError, UsageError
from sdpo_cli.recipe import did_you_mean, joined, validate
from sdpo_cli.recipe.shorthand import RECIPE_WORDS
from sdpo_cli.registry.discovery import BrokenPlugin, Plugin, discover, said
from sdpo_cli.registry.families import existing, family_of, is_hub_id
from sdpo_cli.registry.functions import FunctionOptions, function_spec, is_function_name
from sdpo_cli.registry.offered import how_to_install

S = TypeVar("S", bound=Spec[Any])
NO_OPTIONS: Mapping[str, Any] = {}
FEW = 8
"""Names that an error lists; where there are more it says which command does."""


def place_of(plugin: Plugin) -> str:
    """How errors name a plug-in."""
    return f"{plugin.spec.kind} {plugin.full_name}"


@contextmanager
def blaming(plugin: Plugin, fault: str) -> Iterator[None]:
    """Turns whatever a plug-in's code raises inside, faults it tells itself and Ctrl-C apart, into a PluginError."""
    try:
        yield
    except SdpoError:
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{fault}: {said(error)}", place=place_of(plugin)) from error


@dataclass(frozen=True)
class Chosen(Generic[S]):
    """A plug-in found by name, with checked options, ready to load.

    Attributes:
        name: what a recipe calls it.
        plugin: its record and where it comes from.
        options: an instance of `plugin.spec.options`.
        folder: folder that relative paths in the options are meant from.
    """

    name: str
    plugin: Plugin
    options: Options
    folder: Path

    @property
    def spec(self) -> S:
        """The plug-in's record."""
        spec: S = self.plugin.spec
        return spec

    def load(self, context: LoadContext) -> Any:
        """The plug-in's object, its paths meant from `folder`. PluginError where the plug-in raises."""
        with blaming(self.plugin, "cannot be loaded"):
            return self.spec.load(self.options, replace(context, folder=self.folder))

    def needs(self) -> Sequence[HubFiles]:
        """What `load` takes from the model hub. PluginError where the plug-in does not say it."""
        with blaming(self.plugin, "does not say what it needs"):
            needed = list(self.spec.needs(self.options))
        if not all(isinstance(one, HubFiles) for one in needed):
            raise PluginError("needs other than HubFiles", place=place_of(self.plugin), remedy="update the plug-in")
        return needed

    def all_options(self) -> dict[str, Any]:
        """Every option, defaults included, as a recipe says it. PluginError where it cannot be said."""
        with blaming(self.plugin, "has options that cannot be written down"):
            return self.options.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True)
class Registry:
    """Everything installed: `plugins` work, `broken` were set aside."""

    plugins: Sequence[Plugin]
    broken: Sequence[BrokenPlugin]

    def of_kind(self, kind: type[S]) -> list[Plugin]:
        """The plug-ins of a kind."""
        return [plugin for plugin in self.plugins if isinstance(plugin.spec, kind)]

    def named(self, kind: type[S], name: str) -> list[Plugin]:
        """The plug-ins of a kind that answer to `name` or `dist:name`."""
        return [plugin for plugin in self.of_kind(kind) if name in (plugin.spec.name, plugin.full_name)]

    def find(self, kind: type[S], name: str, place: str = "", or_else: str = "") -> Plugin:
        """The one plug-in of a kind that answers to `name`. UsageError where there is none, or several.

        `or_else` says what else was looked for under that name.
        """
        found = self.named(kind, name)
        if not found:
            fault = f"no {kind.kind} {or_else}{' ' * bool(or_else)}named {name!r}"
            raise UsageError(fault, place=place, remedy=self.remedy(kind, name))
        if len(found) > 1:
            owners = " and ".join(plugin.distribution for plugin in found)
            remedy = f"write {' or '.join(plugin.full_name for plugin in found)}"
            raise UsageError(f"{kind.kind} {name} is offered by {owners}", place=place, remedy=remedy)
        return found[0]

    def remedy(self, kind: type[S], name: str) -> str:
        """What to do about an unknown name: the nearest one, where all are, and who may have meant to offer it."""
        names = sorted({plugin.spec.name for plugin in self.of_kind(kind)})
        guess = how_to_install(name) or did_you_mean(name.rpartition(":")[2], names)
        known = f"installed: {', '.join(names) or 'none'}" if len(names) <= FEW else "`sdpo plugins list` has all"
        broken = "; ".join(map(str, self.broken))
        return (f"{guess} {known}" + (f"; broken plug-ins that might offer it: {broken}" if broken else "")).strip()

    def reward(
        self, name: str, options: Mapping[str, Any] = NO_OPTIONS, place: str = "", folder: Path = Path()
    ) -> Chosen[RewardSpec]:
        """A reward by name, else the Python function that `module:function` names.

        UsageError where it is unknown, RecipeError where its options are wrong. `place` is what asked, for the
        errors; relative paths in the options are meant from `folder`.
        """
        field, distributions = joined(place, [name]), {one.distribution for one in (*self.plugins, *self.broken)}
        installed = self.named(RewardSpec, name) or name.partition(":")[0] in distributions
        if installed or not is_function_name(name):
            return self.choose(self.find(RewardSpec, name, place), options, field, folder, RECIPE_WORDS)
        return chosen_function(name, options, field, folder)

    def objective(
        self, name: str, options: Mapping[str, Any] = NO_OPTIONS, place: str = "", folder: Path = Path()
    ) -> Chosen[ObjectiveSpec]:
        """An objective by name. Errors as for `reward`."""
        return self.choose(self.find(ObjectiveSpec, name, place), options, joined(place, [name]), folder)

    def prompts(
        self, name: str, options: Mapping[str, Any] = NO_OPTIONS, place: str = "", folder: Path = Path()
    ) -> Chosen[PromptSourceSpec]:
        """A prompt source by name, else source `file` with the path `name`. Errors as for `reward`."""
        field = joined(place, [name])
        if self.named(PromptSourceSpec, name) or not existing(name, folder, place):
            return self.choose(self.find(PromptSourceSpec, name, place, "or file"), options, field, folder)
        return self.choose(self.find(PromptSourceSpec, "file", place), {"path": name, **options}, field, folder)

    def model(
        self, name: str, options: Mapping[str, Any] = NO_OPTIONS, place: str = "", folder: Path = Path()
    ) -> Chosen[BaseModelSpec]:
        """A base model by name; else what adapts the pipeline in the folder or file, or of the hub id, `name`.

        Errors as for `reward`. Of a hub id the small `model_index.json` is fetched; no weight is.
        """
        path = existing(name, folder, place)
        if self.named(BaseModelSpec, name) or (path is None and not is_hub_id(name)):
            plugin = self.find(BaseModelSpec, name, place, "or folder")
        else:
            family = family_of(name, path, options, folder, place)
            plugin, options = self._adapter(family, name, place), {"path": name, **options}
        return self.choose(plugin, options, joined(place, ["options"]), folder)

    def _adapter(self, family: str, name: str, place: str) -> Plugin:
        """The base-model plug-in for a pipeline class. UsageError where there is none, or several."""
        models = self.of_kind(BaseModelSpec)
        fits = [plugin for plugin in models if family in plugin.spec.families]
        if not fits:
            fault = f"{name} is a {family}, which no plug-in adapts"
            adapted = sorted({known for plugin in models for known in plugin.spec.families})
            raise UsageError(fault, place=place, remedy=f"adapted are: {', '.join(adapted)}")
        if len(fits) > 1:
            remedy = " or ".join(f"{{name: {plugin.full_name}, options: {{path: {name}}}}}" for plugin in fits)
            raise UsageError(f"{name} is a {family}, which several adapt", place=place, remedy=f"write {remedy}")
        return fits[0]

    def choose(
        self,
        plugin: Plugin,
        options: Mapping[str, Any] = NO_OPTIONS,
        place: str = "",
        folder: Path = Path(),
        also: Sequence[str] = (),
    ) -> Chosen[Any]:
        """The plug-in with its options checked; every `UserPath` that is there is made absolute.

        RecipeError, all faults; `also` are words that might stand beside the options.
        """
        found = {
            name: str(path)
            for name in path_options(plugin.spec.options)
            if isinstance(options.get(name), str) and (path := existing(options[name], folder, joined(place, [name])))
        }
        with blaming(plugin, "cannot check its options"):
            checked, faults = validate(plugin.spec.options, {**options, **found}, place, also)
        if checked is None:
            raise RecipeError(faults)
        return Chosen(self.plain_name(plugin), plugin, checked, folder)

    def plain_name(self, plugin: Plugin) -> str:
        """The plug-in's name where it alone has it, else `dist:name`."""
        only = len(self.named(type(plugin.spec), plugin.spec.name)) == 1
        return plugin.spec.name if only else plugin.full_name


def path_options(schema: type[Options]) -> list[str]:
    """The options that name a file or folder: those of type `UserPath`, `UserPath | None`, and the like."""

    def marks(annotation: Any) -> bool:
        return IS_PATH in getattr(annotation, "__metadata__", ()) or any(map(marks, get_args(annotation)))

    return [name for name, field in schema.model_fields.items() if IS_PATH in field.metadata or marks(field.annotation)]


def chosen_function(name: str, options: Mapping[str, Any], place: str, folder: Path) -> Chosen[RewardSpec]:
    """The reward `module:function`, its `folder` filled in with the one where the module was found."""
    told = options.get("folder")
    folders = [folder.absolute(), Path.cwd()]
    if isinstance(told, str):
        folders = [existing(told, folder, joined(place, ["folder"])) or folder.absolute() / told]
    checked, faults = validate(FunctionOptions, options, place, RECIPE_WORDS)
    if checked is None:
        raise RecipeError(faults)
    spec, where = function_spec(name, folders, place)
    recorded = FunctionOptions(folder=str(where) if where else None)
    return Chosen(name, Plugin(spec, name.partition(":")[0], spec.version), recorded, folder)


@functools.cache
def load_registry() -> Registry:
    """What is installed, looked for once a process."""
    return Registry(*map(tuple, discover()))
