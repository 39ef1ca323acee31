"""Every way for a plug-in to be broken: it is set aside with its reason, and spoils no other."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sdpo_cli.api import RewardSpec
from sdpo_cli.errors import PluginError, UsageError
from sdpo_cli.registry import Registry, discover

HEAD = "from sdpo_cli.api import *\nfrom sdpo_cli.api import hookimpl\nSDPO_PLUGIN_API = 1\n"
SPEC = "name='{name}', summary='s', version='1', source='x', options=Options, load=print"
Install = Callable[..., Registry]


def rewards(body: str) -> str:
    return f"{HEAD}@hookimpl\ndef sdpo_rewards():\n    {body}\n"


def reward(name: str = "fine", **fields: str) -> str:
    said = {"summary": "'s'", "version": "'1'", "source": "'x'", "options": "Options", "load": "print"} | fields
    return f"RewardSpec(name={name!r}, {', '.join(f'{key}={value}' for key, value in said.items())})"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Writes a distribution onto the path, as pip would, and gives the registry that then is found."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str, dist: str = "strange", entry_points: str | None = None, version: str = "1.0") -> Registry:
        module = f"{dist.replace('-', '_')}_plugin"
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{dist}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points or f"[sdpo]\nmain = {module}\n")
        sys.modules.pop(module, None)  # that of the test before
        importlib.invalidate_caches()
        plugins, broken = discover()
        return Registry(plugins, broken)

    return write


BROKEN = {
    "no module": ("import nowhere", "cannot be imported: ModuleNotFoundError: No module named 'nowhere'"),
    "a syntax error": ("def (", "cannot be imported: SyntaxError: invalid syntax (strange_plugin.py, line 1)"),
    "it raises": ("raise RuntimeError('no\\nGPU')", "cannot be imported: RuntimeError: no GPU"),
    "it exits": ("import sys; sys.exit(3)", "cannot be imported: SystemExit: 3"),
    "no API": ("x = 1", "SDPO_PLUGIN_API is missing; set SDPO_PLUGIN_API = 1 in the module"),
    "another API": ("SDPO_PLUGIN_API = 2", "it is made for plug-in API 2, this program has 1; update one of them"),
    "no hook": (HEAD, "no function is marked @hookimpl; implement one of sdpo_rewards, sdpo_base_models, "
                "sdpo_prompt_sources, sdpo_objectives"),
    "an unknown hook": (f"{HEAD}@hookimpl\ndef sdpo_reward(): return []",
                        "unknown hook sdpo_reward; did you mean sdpo_rewards?"),
    "a hook far from any": (f"{HEAD}@hookimpl\ndef zzz(): return []", "unknown hook zzz; use sdpo_rewards, "
                            "sdpo_base_models, sdpo_prompt_sources, sdpo_objectives"),
    "an argument": (f"{HEAD}@hookimpl\ndef sdpo_rewards(config): return []",
                    "a hook has a wrong signature: Argument(s) {'config'} are declared in the "
                    "hookimpl but can not be found in the hookspec"),
    "the hook raises": (rewards("1 / 0"), "sdpo_rewards raised ZeroDivisionError: division by zero"),
    "the hook exits": (rewards("raise SystemExit"), "sdpo_rewards raised SystemExit"),
    "nothing": (rewards("pass"), "sdpo_rewards returned NoneType, not a list of RewardSpec"),
    "a lone record": (rewards(f"return {reward()}"), "sdpo_rewards returned RewardSpec, not a list of RewardSpec"),
    "a generator": (rewards("yield 1"), "sdpo_rewards returned generator, not a list of RewardSpec"),
    "a record of another kind": (rewards(f"return [ObjectiveSpec({SPEC.format(name='o')})]"),
                                 "sdpo_rewards returned a ObjectiveSpec among its RewardSpecs"),
    "a bad name": (rewards(f"return [{reward('My Reward')}]"),
                   "reward 'My Reward': a name is lower-case words and digits joined by hyphens"),
    "no summary": (rewards(f"return [{reward(summary='1')}]"),
                   "reward fine: summary should be one line of text, not 1"),
    "a long source": (rewards("return [" + reward(source=r"'a\nb'") + "]"),
                      r"reward fine: source should be one line of text, not 'a\nb'"),
    "loose options": (rewards(f"return [{reward(options='dict')}]"),
                      "reward fine: options should be a subclass of sdpo_cli.api.Options"),
    "nothing to load": (rewards(f"return [{reward(load='None')}]"),
                        "reward fine: load should be a function of (options, context)"),
    "a weight": (f"{HEAD}class O(Options):\n    weight: int = 1\n" + rewards(f"return [{reward(options='O')}]"),
                 "reward fine: an option cannot be named weight; recipes weigh rewards by that word"),
    "an alias weight": (f"{HEAD}from pydantic import Field\nclass O(Options):\n    w: int = Field(1, alias='weight')\n"
                        + rewards(f"return [{reward(options='O')}]"),
                        "reward fine: an option cannot be named weight; recipes weigh rewards by that word"),
    "a second alias weight": (
        f"{HEAD}from pydantic import AliasChoices, Field\nclass O(Options):\n"
        "    w: int = Field(1, validation_alias=AliasChoices('w', 'weight'))\n"
        + rewards(f"return [{reward(options='O')}]"),
        "reward fine: an option cannot be named weight; recipes weigh rewards by that word"),
    "options that take anything": (f"{HEAD}class O(Options, extra='allow'): pass\n"
                                   + rewards(f"return [{reward(options='O')}]"),
                                   "reward fine: options must refuse unknown names; keep extra='forbid'"),
    "a module that answers for every name": ("def __getattr__(name): raise RuntimeError(f'no {name}')",
                                             "cannot be examined: RuntimeError: no SDPO_PLUGIN_API"),
    "an error that cannot be told": ("class E(Exception):\n    def __str__(self): raise self\nraise E",
                                     "cannot be imported: E"),
    "an error of the highest class": ("class E(BaseException): pass\nraise E('far up')",
                                      "cannot be imported: E: far up"),
    "an array for an API": ("import numpy\nSDPO_PLUGIN_API = numpy.array([1, 1])",
                            "it is made for plug-in API array([1, 1]), this program has 1; update one of them"),
    "a summary that clears the screen": (rewards("return [" + reward(summary=r"'\x1b[2J'") + "]"),
                                         r"reward fine: summary should be one line of text, not '\x1b[2J'"),
    "needs that cannot be asked": (rewards("return [" + reward(needs="()") + "]"),
                                   "reward fine: needs should be a function of the options"),
    "facts that are none": (rewards("return [" + reward(facts="{'licence': 3}") + "]"),
                            "reward fine: facts should be texts by name, not {'licence': 3}"),
    "examples that are none": (rewards("return [" + reward(examples="[3]") + "]"),
                               "reward fine: examples should be a list of Example, not [3]"),
    "a lone family": (f"{HEAD}@hookimpl\ndef sdpo_base_models():\n"
                      f"    return [BaseModelSpec({SPEC.format(name='m')}, families='Pipe')]",
                      "base model m: families should be a tuple of class names, not 'Pipe'"),
    "twice the same": (rewards(f"return [{reward()}, {reward()}]"), "reward fine is offered twice by one distribution"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plug_in_is_set_aside_with_its_reason(install: Install, source: str, reason: str) -> None:
    registry = install(source)
    assert [str(plugin) for plugin in registry.broken] == [f"strange 1.0 (main): {reason}"]
    assert registry.find(RewardSpec, "colorfulness").distribution == "sdpo-cli"
    assert not [plugin for plugin in registry.plugins if plugin.distribution == "strange"]


def test_a_missing_attribute_and_a_missing_module_are_told_apart(install: Install) -> None:
    registry = install(HEAD, entry_points="[sdpo]\na = strange_plugin:nothing\nb = gone_plugin\n")
    assert [str(plugin) for plugin in registry.broken] == [
        "strange 1.0 (a): cannot be imported: AttributeError: module 'strange_plugin' has no attribute 'nothing'",
        "strange 1.0 (b): cannot be imported: ModuleNotFoundError: No module named 'gone_plugin'",
    ]


def test_unreadable_entry_points_are_told_and_spoil_no_other(install: Install) -> None:
    registry = install(HEAD, entry_points="[sdpo]\nno equals sign\n")
    (broken,) = registry.broken
    assert (broken.distribution, broken.entry_point) == ("strange", "entry_points.txt")
    assert broken.reason.startswith("cannot be read: ")
    assert registry.find(RewardSpec, "colorfulness")


def test_a_distribution_whose_metadata_is_gone_spoils_nothing(install: Install, tmp_path: Path) -> None:
    (tmp_path / "half-1.0.dist-info").mkdir()
    registry = install(rewards(f"return [{reward('bright')}]"))
    assert not registry.broken
    assert registry.find(RewardSpec, "bright")


def test_one_broken_entry_point_leaves_the_others_of_its_distribution(install: Install) -> None:
    registry = install(
        rewards(f"return [{reward('bright')}]"), entry_points="[sdpo]\nbad = gone_plugin\ngood = strange_plugin\n"
    )
    assert [plugin.entry_point for plugin in registry.broken] == ["bad"]
    assert registry.find(RewardSpec, "bright").full_name == "strange:bright"


def test_one_name_offered_by_two_entry_points_is_kept_from_the_first(install: Install) -> None:
    registry = install(
        rewards(f"return [{reward('bright')}]"), entry_points="[sdpo]\na = strange_plugin\nb = strange_plugin\n"
    )
    assert [str(plugin) for plugin in registry.broken] == [
        "strange 1.0 (b): reward bright is offered twice by one distribution"
    ]
    assert registry.find(RewardSpec, "bright")


def test_entry_points_of_other_groups_are_not_loaded(install: Install) -> None:
    registry = install("raise AssertionError", entry_points="[console_scripts]\nx = strange_plugin:f\n")
    assert not registry.broken


def test_two_owners_of_a_name_are_an_error_for_that_name_alone(install: Install) -> None:
    registry = install(rewards(f"return [{reward('colorfulness')}, {reward('bright')}]"))
    with pytest.raises(UsageError) as caught:
        registry.find(RewardSpec, "colorfulness", "r.yaml: reward")
    assert str(caught.value) == (
        "r.yaml: reward: reward colorfulness is offered by sdpo-cli and strange; "
        "write sdpo-cli:colorfulness or strange:colorfulness"
    )
    assert registry.find(RewardSpec, "strange:colorfulness").distribution == "strange"
    assert registry.find(RewardSpec, "sdpo-cli:colorfulness").distribution == "sdpo-cli"
    assert registry.reward("strange:colorfulness").name == "strange:colorfulness"
    assert registry.reward("strange:bright").name == "bright"


def test_an_unknown_name_says_who_may_have_meant_to_offer_it(install: Install) -> None:
    registry = install("import nowhere")
    with pytest.raises(UsageError) as caught:
        registry.reward("nothing-near")
    assert str(caught.value) == (
        "no reward named 'nothing-near'; `sdpo plugins list` has all; broken plug-ins that might offer it: "
        "strange 1.0 (main): cannot be imported: ModuleNotFoundError: No module named 'nowhere'"
    )


def test_a_plug_in_that_cannot_load_is_named(install: Install) -> None:
    from sdpo_cli.api import LoadContext

    source = HEAD + "def load(options, context): raise OSError('weights are gone')\n"
    registry = install(source + rewards(f"return [{reward('bright', load='load')}]"))
    with pytest.raises(PluginError) as caught:
        registry.reward("bright").load(LoadContext())
    assert str(caught.value) == "reward strange:bright: cannot be loaded: OSError: weights are gone"


def test_a_plug_in_that_exits_while_loading_is_named(install: Install) -> None:
    from sdpo_cli.api import LoadContext

    source = HEAD + "import sys\ndef load(options, context): sys.exit('no licence')\n"
    registry = install(source + rewards(f"return [{reward('bright', load='load')}]"))
    with pytest.raises(PluginError) as caught:
        registry.reward("bright").load(LoadContext())
    assert str(caught.value) == "reward strange:bright: cannot be loaded: SystemExit: no licence"


def test_an_interrupt_while_plug_ins_are_looked_for_ends_the_search(install: Install) -> None:
    with pytest.raises(KeyboardInterrupt):
        install("raise KeyboardInterrupt")


CODE = {
    "needs that raise": ("def needs(options): raise OSError('gone')\n", {"needs": "needs"},
                         lambda chosen: chosen.needs(), "does not say what it needs: OSError: gone"),
    "needs that are none": ("def needs(options): return ['a/b']\n", {"needs": "needs"},
                            lambda chosen: chosen.needs(), "needs other than HubFiles; update the plug-in"),
    "options that cannot be written": (
        "from typing import Any\nclass O(Options):\n    x: Any = object()\n", {"options": "O"},
        lambda chosen: chosen.all_options(), "has options that cannot be written down: PydanticSerializationError: "),
}  # fmt: skip


@pytest.mark.parametrize(("source", "fields", "ask", "fault"), CODE.values(), ids=CODE)
def test_what_a_plug_in_does_wrong_when_asked_is_its_fault(install: Install, source, fields, ask, fault) -> None:
    registry = install(HEAD + source + rewards(f"return [{reward('bright', **fields)}]"))
    with pytest.raises(PluginError) as caught:
        ask(registry.reward("bright"))
    assert str(caught.value).startswith(f"reward strange:bright: {fault}")


def test_options_whose_check_raises_are_the_plug_ins_fault(install: Install) -> None:
    source = (
        "from pydantic import field_validator\nclass O(Options):\n    x: int = 1\n"
        "    @field_validator('x')\n    @classmethod\n    def check(cls, x): return 1 / x\n"
    )
    registry = install(HEAD + source + rewards(f"return [{reward('bright', options='O')}]"))
    with pytest.raises(PluginError) as caught:
        registry.reward("bright", {"x": 0})
    assert str(caught.value) == ("reward strange:bright: cannot check its options: ZeroDivisionError: division by zero")
