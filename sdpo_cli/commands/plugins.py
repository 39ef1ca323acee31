"""`sdpo plugins`: what is installed, what its options are, whether it keeps the contract, and how to begin one."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from sdpo_cli.commands.check_plugin import check, named
from sdpo_cli.commands.completion import complete_plugin
from sdpo_cli.commands.new_plugin import new
from sdpo_cli.commands.tables import columns, paragraph

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

    from sdpo_cli.api import Options
    from sdpo_cli.registry import Plugin, Registry

app = typer.Typer(
    rich_markup_mode=None,
    help="List, describe, check and begin plug-ins.\n\nThey are rewards, base models, prompt sources and objectives.",
)


@app.command("list")
def list_plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """What is installed, and what of it is broken, and why."""
    from sdpo_cli.registry import HOOKS, load_registry

    registry = load_registry()
    if as_json:
        print(json.dumps(_as_json(registry), indent=2, ensure_ascii=False))
        return
    groups = {
        f"{kind.kind}s": sorted(
            (registry.plain_name(plugin), f"{plugin.spec.summary} (version {plugin.spec.version}, {plugin.origin})")
            for plugin in registry.of_kind(kind)
        )
        for kind in HOOKS.values()
    }
    groups["broken"] = [(plugin.origin, f"{plugin.entry_point}: {plugin.reason}") for plugin in registry.broken]
    print("\n\n".join(f"{head}\n{columns(rows)}" for head, rows in groups.items() if rows))


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="NAME or DIST:NAME.", autocompletion=complete_plugin)],
) -> None:
    """What a plug-in does, its source, options and defaults."""
    for index, plugin in enumerate(named(name)):
        spec = plugin.spec
        print("\n" * bool(index) + f"{spec.name}: {spec.kind}, version {spec.version}, from {plugin.origin}")
        facts = [f"{fact[:1].upper()}{fact[1:]}: {said}" for fact, said in spec.facts.items()]
        downloads = [f"Downloads: {line}" for line in _downloads(plugin)]
        for line in (spec.summary, f"Source: {spec.source}", *facts, *downloads):
            print(paragraph(line, hanging="  "))
        options = list(_options(spec.options))
        print("\nOptions:" if options else "It has no options.")
        for name, kind, default, description in options:
            print(paragraph(f"{name}: {kind}, {default}", indent="  ", hanging="      "))
            if description:
                print(paragraph(description, indent="      "))


app.command("check")(check)
app.command("new")(new)


def _downloads(plugin: Plugin) -> list[str]:
    """What `load` takes from the model hub with the default options; nothing where an option has no default."""
    from sdpo_cli.registry import load_registry

    if any(field.is_required() for field in plugin.spec.options.model_fields.values()):
        return []
    return [
        f"{files.repo} at {files.revision or 'its newest revision'}: {', '.join(files.files)}"
        for files in load_registry().choose(plugin).needs()
    ]


def _options(schema: type[Options], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and description of every option; those of a group as `group.option`."""
    from sdpo_cli.api import Options

    for key, field in schema.model_fields.items():
        name, kind = f"{prefix}{field.alias or key}", field.annotation
        if isinstance(kind, type) and issubclass(kind, Options):
            yield from _options(kind, f"{name}.")
        else:
            default = (
                "required"
                if field.is_required()
                else f"default {json.dumps(field.get_default(call_default_factory=True), default=str)}"
            )
            yield name, _type_text(field), default, field.description or ""


def _type_text(field: FieldInfo) -> str:
    """The type as a reader says it, with its bounds: `float >= 0 <= 1`, `'next' | 'current'`, `path | null`."""
    from sdpo_cli.api.specs import IS_PATH

    bounds = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [
        f"{sign} {getattr(note, key)}" for note in field.metadata for key, sign in bounds.items() if hasattr(note, key)
    ]
    text = "path" if IS_PATH in field.metadata else _kind_text(field.annotation)
    return " ".join([text, *limits])


def _kind_text(kind: Any) -> str:
    """A type as recipes know it: `path`, `null`, `str | null`, `dict[str, float]`."""
    from sdpo_cli.api.specs import IS_PATH

    origin, inner = get_origin(kind), get_args(kind)
    if kind is NoneType:
        return "null"
    if origin is Annotated:
        return "path" if IS_PATH in inner else _kind_text(inner[0])
    if origin is Literal:
        return " | ".join(map(repr, inner))
    if origin in (Union, UnionType):
        return " | ".join(map(_kind_text, inner))
    return kind.__name__ if isinstance(kind, type) and not inner else str(kind)


def _as_json(registry: Registry) -> dict[str, Any]:
    """What `list` says, for programs. A name with a colon is one that two distributions offer."""
    plugins = [
        {
            "kind": plugin.spec.kind,
            "name": registry.plain_name(plugin),
            "summary": plugin.spec.summary,
            "version": plugin.spec.version,
            "source": plugin.spec.source,
            "distribution": plugin.distribution,
            "distribution_version": plugin.version,
        }
        for plugin in registry.plugins
    ]
    return {"plugins": plugins, "broken": [asdict(plugin) for plugin in registry.broken]}
