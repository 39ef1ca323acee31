"""`sdpo plugins check`: a conformance report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdpo_cli.commands.completion import complete_plugin
from sdpo_cli.errors import PluginError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sdpo_cli.registry import BrokenPlugin, Plugin
    from sdpo_cli.testing import Verdict


@dataclass(frozen=True)
class Checked:
    """A plug-in and the verdict on each law."""

    plugin: Plugin
    verdicts: Sequence[Verdict]

    @property
    def result(self) -> str:
        """`failed` where a law is broken, `skipped` where none but its loading could be tried, else `ok`."""
        results = [verdict.result for verdict in self.verdicts]
        if "failed" in results:
            return "failed"
        return "ok" if results.count("ok") > 1 else "skipped"


def check(
    target: Annotated[
        str, typer.Argument(help="A plug-in, or a distribution for all it offers.", autocompletion=complete_plugin)
    ],
    options: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of the plug-in; repeatable.")
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="Also compare real weights with published scores; may download them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Load plug-ins and try them against the contract, law by law. Exit code 3 when one fails."""
    from sdpo_cli.recipe.source import override
    from sdpo_cli.registry import load_registry

    registry = load_registry()
    broken = [plugin for plugin in registry.broken if plugin.distribution == target]
    plugins = [plugin for plugin in registry.plugins if plugin.distribution == target]
    if not plugins and not broken:
        plugins = named(target)
    told = override({"options": {}}, [f"options.{text}" for text in options or []])["options"]
    checked = [Checked(plugin, list(verdicts(plugin, told, online))) for plugin in plugins]
    if as_json:
        print(json.dumps(report(checked, broken), indent=2, ensure_ascii=False))
    else:
        print_report(checked, broken)
    failed = len(broken) + sum(one.result == "failed" for one in checked)
    if failed:
        raise PluginError(f"{failed} of {len(broken) + len(checked)} plug-ins failed", place=target)


def named(name: str) -> list[Plugin]:
    """Every plug-in of that name, of whatever kind. UsageError where there is none."""
    from sdpo_cli.api import Spec
    from sdpo_cli.registry import load_registry

    registry = load_registry()
    return registry.named(Spec, name) or [registry.find(Spec, name)]


def verdicts(plugin: Plugin, options: Mapping[str, Any], online: bool) -> Iterable[Verdict]:
    """The verdict on every law of one plug-in. PluginError where published scores cannot be compared.

    What keeps it from loading is a failure where options were given: they should have done.
    """
    from sdpo_cli.registry import load_registry
    from sdpo_cli.testing import Verdict, compare, conformance

    missing = [name for name, field in plugin.spec.options.model_fields.items() if field.is_required()]
    if set(missing) - options.keys():
        yield Verdict("it loads", "skipped", f"give --set {missing[0]}=VALUE")
        return
    try:
        chosen = load_registry().choose(plugin, options, "--set")
    except RecipeError as error:
        yield Verdict("it loads", "failed", "; ".join(error.faults))
        return
    if online:
        yield from compare(plugin)
    loads, *laws = conformance(chosen)
    yield replace(loads, result="failed") if options and loads.result == "skipped" else loads
    yield from laws


def print_report(checked: Sequence[Checked], broken: Sequence[BrokenPlugin]) -> None:
    """A line for each plug-in, and below it one for each law."""
    for lost in broken:
        print(f"{lost.entry_point} broken: {lost.reason}")
    for one in checked:
        print(f"{one.plugin.spec.kind} {one.plugin.spec.name} {one.result}")
        for verdict in one.verdicts:
            print(f"  {verdict.result:<8} {verdict.law}{': ' * bool(verdict.why)}{verdict.why}")


def report(checked: Sequence[Checked], broken: Sequence[BrokenPlugin]) -> dict[str, Any]:
    """The same for programs."""
    plugins = [
        {
            "kind": one.plugin.spec.kind,
            "name": one.plugin.spec.name,
            "distribution": one.plugin.distribution,
            "result": one.result,
            "laws": [asdict(verdict) for verdict in one.verdicts],
        }
        for one in checked
    ]
    return {"plugins": plugins, "broken": [asdict(plugin) for plugin in broken]}
