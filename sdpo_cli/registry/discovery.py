"""Finds plug-ins by the entry points of the group `sdpo`, one by one, so that a broken one spoils no other."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

import pluggy
from pydantic import AliasChoices, AliasPath

from sdpo_cli.api import (
    PLUGIN_API,
    BaseModelSpec,
    ObjectiveSpec,
    Options,
    PromptSourceSpec,
    RewardSpec,
    Spec,
    hookspecs,
)
from sdpo_cli.api.specs import Example
from sdpo_cli.errors import one_line
from sdpo_cli.recipe import did_you_mean
from sdpo_cli.recipe.shorthand import RECIPE_WORDS

HOOKS: dict[str, type[Spec[Any]]] = {
    "sdpo_rewards": RewardSpec,
    "sdpo_base_models": BaseModelSpec,
    "sdpo_prompt_sources": PromptSourceSpec,
    "sdpo_objectives": ObjectiveSpec,
}
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Plugin:
    """A working plug-in record and the distribution that offers it."""

    spec: Spec[Any]
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}"

    @property
    def full_name(self) -> str:
        """The name no other distribution can have: `dist:name`."""
        return f"{self.distribution}:{self.spec.name}"


@dataclass(frozen=True)
class BrokenPlugin:
    """An entry point that was set aside, and why, in one line."""

    distribution: str
    version: str
    entry_point: str
    reason: str

    @property
    def origin(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}"

    def __str__(self) -> str:
        return f"{self.origin} ({self.entry_point}): {self.reason}"


class _BrokenError(Exception):
    """Why an entry point cannot be used."""


@contextmanager
def _blaming(fault: str) -> Iterator[None]:
    """Turns whatever a plug-in's code raises inside, Ctrl-C apart, into a _BrokenError."""
    try:
        yield
    except (KeyboardInterrupt, _BrokenError):
        raise
    except BaseException as error:
        raise _BrokenError(f"{fault} {said(error)}") from error


def discover() -> tuple[list[Plugin], list[BrokenPlugin]]:
    """Every plug-in installed, and every entry point that had to be set aside."""
    offers = [offer(distribution) for distribution in _distributions()]
    return [plugin for plugins, _ in offers for plugin in plugins], [one for _, broken in offers for one in broken]


def offer(distribution: Distribution) -> tuple[list[Plugin], list[BrokenPlugin]]:
    """The plug-ins of one distribution, and its entry points that had to be set aside."""
    offered: list[Spec[Any]] = []
    broken: list[BrokenPlugin] = []
    name, version = _identity(distribution)
    for entry_point in _entry_points(distribution, name, version, broken):
        try:
            with _blaming("cannot be examined:"):
                specs = _specs(entry_point)
                _refuse_duplicates([*offered, *specs])
        except _BrokenError as error:
            broken.append(BrokenPlugin(name, version, entry_point.name, one_line(str(error))))
            continue
        offered += specs
    return [Plugin(spec, name, version) for spec in offered], broken


def _distributions() -> list[Distribution]:
    """The distributions on the path that speak of plug-ins; of equal names the first, which is the one that imports.

    The metadata of all others, a hundred files and more, are left unread.
    """
    found: dict[str, Distribution] = {}
    for distribution in distributions():
        if hookspecs.GROUP in (distribution.read_text("entry_points.txt") or ""):
            name, _ = _identity(distribution)
            found.setdefault(name, next(iter(distributions(name=name)), distribution))
    return [found[name] for name in sorted(found)]


def _identity(distribution: Distribution) -> tuple[str, str]:
    """Normalised name and version; stand-ins for a folder whose metadata is gone, as a failed uninstall leaves it."""
    try:
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
    except Exception:
        name = version = None
    return re.sub(r"[-_.]+", "-", name or "unnamed").lower(), version or "?"


def _entry_points(distribution: Distribution, name: str, version: str, broken: list[BrokenPlugin]) -> list[EntryPoint]:
    try:
        return [entry_point for entry_point in distribution.entry_points if entry_point.group == hookspecs.GROUP]
    except Exception as error:
        if hookspecs.GROUP in (distribution.read_text("entry_points.txt") or ""):
            broken.append(BrokenPlugin(name, version, "entry_points.txt", f"cannot be read: {said(error)}"))
        return []


def _specs(entry_point: EntryPoint) -> list[Spec[Any]]:
    """The records of one entry point, asked through a plug-in manager of its own. _BrokenError where any is bad."""
    with _blaming("cannot be imported:"):
        module = entry_point.load()
    _check_api(getattr(module, "SDPO_PLUGIN_API", None))
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(module)
    except pluggy.PluginValidationError as error:
        raise _BrokenError(f"a hook has a wrong signature: {str(error).splitlines()[-1]}") from error
    callers = manager.get_hookcallers(module) or []
    if not callers:
        raise _BrokenError(f"no function is marked @hookimpl; implement one of {', '.join(HOOKS)}")
    return [spec for caller in callers for spec in _ask(caller)]


def _check_api(version: Any) -> None:
    if version is None:
        raise _BrokenError(f"SDPO_PLUGIN_API is missing; set SDPO_PLUGIN_API = {PLUGIN_API} in the module")
    if not isinstance(version, int) or version != PLUGIN_API:
        raise _BrokenError(f"it is made for plug-in API {version!r}, this program has {PLUGIN_API}; update one of them")


def _ask(caller: Any) -> Sequence[Spec[Any]]:
    """Call one hook and check what it returns."""
    hook = caller.name
    if hook not in HOOKS:
        raise _BrokenError(
            one_line(f"unknown hook {hook}", remedy=did_you_mean(hook, HOOKS) or f"use {', '.join(HOOKS)}")
        )
    with _blaming(f"{hook} raised"):
        answers = caller()
    specs = answers[0] if answers else None
    if not isinstance(specs, list | tuple):
        raise _BrokenError(f"{hook} returned {type(specs).__name__}, not a list of {HOOKS[hook].__name__}")
    for spec in specs:
        _check_spec(spec, hook)
    _refuse_duplicates(specs)
    return specs


def _check_spec(spec: Any, hook: str) -> None:
    wanted = HOOKS[hook]
    if not isinstance(spec, wanted):
        raise _BrokenError(f"{hook} returned a {type(spec).__name__} among its {wanted.__name__}s")
    if not isinstance(spec.name, str) or not _NAME.fullmatch(spec.name):
        raise _BrokenError(f"{spec.kind} {spec.name!r}: a name is lower-case words and digits joined by hyphens")
    for field in ("summary", "version", "source"):
        value = getattr(spec, field)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise _BrokenError(f"{spec.kind} {spec.name}: {field} should be one line of text, not {value!r}")
    if not inspect.isclass(spec.options) or not issubclass(spec.options, Options):
        raise _BrokenError(f"{spec.kind} {spec.name}: options should be a subclass of sdpo_cli.api.Options")
    if not callable(spec.load):
        raise _BrokenError(f"{spec.kind} {spec.name}: load should be a function of (options, context)")
    _check_extras(spec)
    if spec.options.model_config.get("extra") != "forbid":
        raise _BrokenError(f"{spec.kind} {spec.name}: options must refuse unknown names; keep extra='forbid'")
    taken = _names(spec.options) & {*RECIPE_WORDS} if isinstance(spec, RewardSpec) else set()
    for word in sorted(taken):
        raise _BrokenError(f"reward {spec.name}: an option cannot be named {word}; recipes weigh rewards by that word")


def _check_extras(spec: Spec[Any]) -> None:
    """What a record may say beyond what it must: of the right kinds, or it would break those who ask for it."""
    who = f"{spec.kind} {spec.name}"
    if not callable(spec.needs):
        raise _BrokenError(f"{who}: needs should be a function of the options")
    if not isinstance(spec.facts, Mapping) or not all(map(_is_text, [*spec.facts, *spec.facts.values()])):
        raise _BrokenError(f"{who}: facts should be texts by name, not {spec.facts!r}")
    if isinstance(spec, BaseModelSpec) and not _all(spec.families, str):
        raise _BrokenError(f"{who}: families should be a tuple of class names, not {spec.families!r}")
    if isinstance(spec, RewardSpec) and not _all(spec.examples, Example):
        raise _BrokenError(f"{who}: examples should be a list of Example, not {spec.examples!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)


def _names(options: type[Options]) -> set[str]:
    """Every word that may stand for an option: fields' names and their aliases."""
    fields = options.model_fields.values()
    aliases = [alias for field in fields for alias in (field.validation_alias, field.serialization_alias)]
    single = [one for alias in aliases for one in (alias.choices if isinstance(alias, AliasChoices) else [alias])]
    return {*options.model_fields, *(str(one.path[0] if isinstance(one, AliasPath) else one) for one in single)}


def _refuse_duplicates(specs: Sequence[Spec[Any]]) -> None:
    seen: set[tuple[str, str]] = set()
    for spec in specs:
        if (spec.kind, spec.name) in seen:
            raise _BrokenError(f"{spec.kind} {spec.name} is offered twice by one distribution")
        seen.add((spec.kind, spec.name))


def said(error: BaseException) -> str:
    """`ValueError: text` in one line; the kind alone where there is no text, or none can be had."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return one_line(f"{type(error).__name__}: {text}" if text else type(error).__name__)
