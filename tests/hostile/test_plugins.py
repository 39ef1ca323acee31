"""Plug-in records and entry points out of rubbish: a plug-in, or one that is set aside in one line."""

import sys
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path
from types import ModuleType
from typing import Any

from hostile_cases import cases, junk, outcome, texts
from hypothesis import strategies as st

from sdpo_cli.api import BaseModelSpec, Options, RewardSpec, hookimpl
from sdpo_cli.registry.discovery import HOOKS, offer
from sdpo_cli.registry.lookup import Registry


class Raises:
    """Something whose every use fails."""

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError(f"no\n{name}")

    def __repr__(self) -> str:
        raise ZeroDivisionError("no text")


FINE = {"name": "fine", "summary": "s", "version": "1", "source": "x", "options": Options, "load": print}
strange = junk | st.sampled_from([Options, dict, print, object(), Raises(), type("O", (Options,), {})])
fields = st.sampled_from([*FINE, "needs", "facts", "families", "examples"])


def distribution(place: Path, entry_points: str) -> Distribution:
    """One as pip would install it."""
    info = place / "strange-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (info / "entry_points.txt").write_bytes(entry_points.encode(errors="replace"))
    return PathDistribution(info)


def looked_at(place: Path, entry_points: str) -> None:
    """What is offered can be asked for; what is not is told in one line."""
    plugins, broken = offer(distribution(place, entry_points))
    for one in broken:
        assert len(one.reason.splitlines()) == 1
        assert "\x1b" not in one.reason
    registry = Registry(plugins, broken)
    outcome(lambda: registry.model("a/nobody", place="x", folder=place) if plugins else None)
    for plugin in plugins:
        chosen = outcome(lambda plugin=plugin: registry.choose(plugin, {}, "x"))
        outcome(lambda chosen=chosen: (chosen.needs(), chosen.all_options()) if hasattr(chosen, "needs") else None)


@cases("records", st.sampled_from([RewardSpec, BaseModelSpec]), st.dictionaries(fields, strange, max_size=2), strange)
def test_any_record_is_a_plug_in_or_set_aside(place: Path, kind: type, changed: dict[str, Any], other: Any) -> None:
    known = {key: value for key, value in changed.items() if key in kind.__dataclass_fields__}
    module = ModuleType("hostile_plugin")
    module.SDPO_PLUGIN_API = other if "name" in changed and "load" in changed else 1
    hook = "sdpo_rewards" if kind is RewardSpec else "sdpo_base_models"

    def answer() -> Any:
        return [kind(**{**FINE, **known})] if len(changed) < 2 or "version" in changed else other

    answer.__name__ = hook
    setattr(module, hook, hookimpl(answer))
    sys.modules[module.__name__] = module
    try:
        looked_at(place, "[sdpo]\nmain = hostile_plugin\n")
    finally:
        del sys.modules[module.__name__]


lines = st.lists(st.sampled_from(["[sdpo]", "a = json", "a = json:x.y", "a", "= b", "[", "]", "a = os [x]"]) | texts)


@cases("entry points", lines.map("\n".join))
def test_any_entry_points_are_looked_at_or_set_aside(place: Path, text: str) -> None:
    assert len(HOOKS) == 4
    looked_at(place, text)
