"""The short forms of a recipe and their one long form, `{plug-in: {option: value}}`."""

from collections.abc import Callable, Mapping
from typing import Any

Tree = dict[str, Any]

RECIPE_WORDS = ("weight", "normalise")
"""What a recipe says of a reward among its options; no reward has options of these names."""


class OptionsError(ValueError):
    """What should be the options of the plug-in `name` is some other `value`."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value
        super().__init__(f"should be {{{name}: {{option: value}}}}")


def expand(raw: Mapping[str, Any]) -> Tree:
    """The recipe with every short form written out; expanding twice changes nothing. What is no short form stays."""
    tree = _expanded(raw, {"model": _model, "prompts": _choice, "objective": _choice, "reward": _rewards})
    if isinstance(tree.get("eval"), Mapping):
        tree["eval"] = _expanded(tree["eval"], {"prompts": _choice, "rewards": _rewards})
    return tree


def _expanded(raw: Mapping[str, Any], forms: Mapping[str, Callable[[Any], Any]]) -> Tree:
    return {key: forms[key](value) if key in forms else value for key, value in raw.items()}


def _model(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _choice(value: Any) -> Any:
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, Mapping):
        return {name: {} if options is None else options for name, options in value.items()}
    return value


def _rewards(value: Any) -> Any:
    if not isinstance(value, list):
        return _choice(value)
    single = [_choice(item) for item in value]
    names = [name for item in single if isinstance(item, Mapping) for name in item]
    if len(names) != len(set(names)) or not all(isinstance(item, Mapping) for item in single):
        return value
    return {name: options for item in single for name, options in item.items()}


def choice_fields(value: Any) -> Any:
    """The long form as fields of a `Choice`. ValueError where it does not name one plug-in."""
    if not isinstance(value, Mapping):
        return value if hasattr(value, "options") else _refuse("should be NAME or {NAME: {option: value}}")
    if len(value) != 1:
        names = ", ".join(map(str, value)) or "none"
        _refuse(f"should name one plug-in, not {names}")
    ((name, options),) = value.items()
    return {"name": name, "options": _options(name, options)}


def reward_fields(value: Any) -> Any:
    """The long form as fields of `RewardChoice`s. ValueError where it is none."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, list):
        return _refuse("should list NAME or {NAME: {option: value}}, each name once")
    if not isinstance(value, Mapping):
        return _refuse("should be NAME, {NAME: {option: value}} or a list of them")
    return tuple(_reward(name, _options(name, options)) for name, options in value.items())


def _reward(name: Any, options: Mapping[str, Any]) -> Tree:
    own = {key: value for key, value in options.items() if key in RECIPE_WORDS}
    return {"name": name, "options": {key: value for key, value in options.items() if key not in own}, **own}


def _options(name: Any, options: Any) -> Mapping[str, Any]:
    if not name:
        _refuse("should name a plug-in")
    if not isinstance(options, Mapping):
        raise OptionsError(str(name), options)
    return options


def _refuse(text: str) -> Any:
    raise ValueError(text)
