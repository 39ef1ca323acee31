"""YAML as people expect it: 1.2 core scalars (`1e-4` a number, `no` a text), no key twice, no aliases, no tags."""

import re
from typing import Any, ClassVar

import yaml

from sdpo_cli.recipe.yaml_faults import YamlFault, readable

_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    yaml_constructors: ClassVar[dict[str | None, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise YamlFault(f"alias *{event.anchor}", "write the value out", event.start_mark)
        tag = self.peek_event().tag
        if tag is not None:
            short = tag.replace(_TAG, "!!")
            raise YamlFault(f"tag {short}", "write the value alone", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise YamlFault(f"key {key!r} is no text", "quote it", key_node.start_mark)
            if key in tree:
                raise YamlFault(f"key {key} is written twice", "keep one of them", key_node.start_mark)
            tree[key] = self.construct_object(value_node, deep=True)
        return tree

    def integer(self, node: yaml.ScalarNode) -> int:
        text = node.value
        try:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        except ValueError:
            raise YamlFault("a number too long to read", "write it with an exponent", node.start_mark) from None

    def floating(self, node: yaml.ScalarNode) -> float:
        return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))

    def text(self, node: yaml.ScalarNode) -> str:
        if any("\ud800" <= letter <= "\udfff" for letter in node.value):  # an escape; no file could hold it
            raise YamlFault("an escape of half a character", "write the character itself", node.start_mark)
        return node.value


class _Dumper(yaml.SafeDumper):
    """Quotes what readers of YAML 1.1 or 1.2 would take for something other than a text."""

    def text(self, value: str) -> yaml.ScalarNode:
        breaks = any(mark in value for mark in "\n\r\x85\u2028\u2029")  # PyYAML folds them unless they are escaped
        return self.represent_scalar(_TAG + "str", value, style='"' if breaks else None)


for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _TAG + _name, re.compile(f"(?:{_pattern})$"), [*_first, *([""] if _name == "null" else [])]
        )
_Dumper.add_representer(str, _Dumper.text)
_Loader.add_constructor(_TAG + "null", yaml.SafeLoader.construct_yaml_null)
_Loader.add_constructor(_TAG + "bool", yaml.SafeLoader.construct_yaml_bool)
_Loader.add_constructor(_TAG + "int", _Loader.integer)
_Loader.add_constructor(_TAG + "float", _Loader.floating)
_Loader.add_constructor(_TAG + "str", _Loader.text)
_Loader.add_constructor(_TAG + "seq", lambda loader, node: loader.construct_sequence(node, deep=True))
_Loader.add_constructor(_TAG + "map", _Loader.mapping)


def parse_yaml(text: str, place: str) -> Any:
    """The value of a YAML text. RecipeError, with `place`, line and column, where it cannot be read."""
    with readable(text, place):
        return yaml.load(text, _Loader)


def format_yaml(value: Any) -> str:
    """YAML text that `parse_yaml` reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def format_inline(value: Any) -> str:
    """The same in one line, such as `{weight: 1.0, normalise: null}`."""
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=float("inf")
    )
    return text.removesuffix("...\n").strip()
