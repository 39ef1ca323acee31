"""Every fault of a recipe or of a plug-in's options, one line each, with place and remedy."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import isqrt
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from sdpo_cli.errors import one_line
from sdpo_cli.recipe.schema import KeepBestSection, Recipe, StopRule
from sdpo_cli.recipe.shorthand import OptionsError, expand

M = TypeVar("M", bound=BaseModel)

_EXPECTED: dict[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "dict_type": "a mapping of fields",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "tuple_type": "a list",
    "list_type": "a list",
    "path_type": "a path",
    "none_required": "null",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "above {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "below {lt}",
    "string_too_short": "a text of at least {min_length} letters",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_pattern_mismatch": "a text that matches {pattern}",
}
_NEEDED = {
    "model": "name a base model, such as emoji-turbo",
    "prompts": "name a prompt source or file, such as simple-animals",
    "reward": "name one or several rewards, such as emoji-clip",
}
_STAND_IN = {"model": {"name": "-"}, "prompts": {"-": {}}, "reward": {"-": {}}}


def recipe_faults(raw: Mapping[str, Any], place: str) -> tuple[Recipe | None, list[str]]:
    """The recipe that `raw` (short forms allowed) says, or None and everything wrong with it, one line a fault.

    Only the recipe's own fields are looked at; whether plug-ins exist and take their options is the registry's to say.
    """
    tree = expand(raw)
    recipe, faults = validate(Recipe, tree, place)
    part, unsound = (recipe, set[str]()) if recipe else sound_part(tree)
    faults = faults + _cross_faults(part, place, unsound)
    return (None if faults else recipe), faults


def sound_part(raw: Mapping[str, Any]) -> tuple[Recipe, set[str]]:
    """The recipe with a stand-in for each top-level field that is missing or faulty, and those fields."""
    tree = expand(raw)
    unsound = {key for key, value in tree.items() if validate(Recipe, {**_STAND_IN, key: value}, "")[1]}
    part = {key: value for key, value in tree.items() if key not in unsound}
    return Recipe.model_validate_json(json.dumps(_STAND_IN | part)), unsound | (_STAND_IN.keys() - tree.keys())


def validate(
    schema: type[M], raw: Mapping[str, Any], place: str, also: Sequence[str] = ()
) -> tuple[M | None, list[str]]:
    """`raw` as an instance of `schema`, or None and its faults as lines `place.path: fault; remedy`, one a path.

    `raw` is what YAML can say, so it is read by the rules of JSON: a list will do for a tuple, a text for a path.
    `also` are words that may stand beside the schema's fields, and have been taken out of `raw`.
    """
    try:
        return schema.model_validate_json(json.dumps(raw)), []
    except ValidationError as error:
        return None, _lines(error, raw, schema, place, also)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean X?` for the nearest known word, else an empty text."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def _lines(error: ValidationError, raw: Any, schema: type[BaseModel], place: str, also: Sequence[str]) -> list[str]:
    expected: dict[tuple[str, ...], list[str]] = {}
    values: dict[tuple[str, ...], Any] = {}
    for fault in error.errors():
        path, value = _locate(raw, fault["loc"])
        if isinstance(wrong := fault.get("ctx", {}).get("error"), OptionsError):
            path, value = (*path, wrong.name), wrong.value
        values[path] = value
        expected.setdefault(path, []).append(_say(fault, path, schema, also))
    deepest = [path for path in expected if not any(other[: len(path)] == path != other for other in expected)]
    return [_line(place, path, values[path], expected[path]) for path in deepest]


def joined(place: str, path: Iterable[str]) -> str:
    """`place: a.b` for a file, `place.a.b` inside a field of one."""
    dotted = ".".join(path)
    if not dotted or not place:
        return dotted or place
    return f"{place}.{dotted}" if ": " in place else f"{place}: {dotted}"


def _locate(raw: Any, loc: Iterable[int | str]) -> tuple[tuple[str, ...], Any]:
    """The path of `loc` in the raw value, and what stands there; pydantic's own notes in `loc` are left out."""
    path: list[str] = []
    loc = tuple(loc)
    for index, part in enumerate(loc):
        if isinstance(part, int) and isinstance(raw, Mapping):  # a reward: pydantic counts, the recipe names
            part = list(raw)[part]
        if isinstance(raw, Mapping) and (part in raw or index == len(loc) - 1):
            raw = raw.get(part)
        elif isinstance(part, int) and isinstance(raw, list | tuple):
            raw = raw[part]
        else:
            continue
        path.append(str(part))
    return tuple(path), raw


def _say(fault: Any, path: tuple[str, ...], schema: type[BaseModel], also: Sequence[str]) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        known = [*_known_fields(schema, path[:-1]), *(also if len(path) == 1 else ())]
        remedy = did_you_mean(path[-1], known) or (f"known: {', '.join(known)}" if known else "there are none")
        return one_line("unknown field", remedy=remedy)
    if kind == "missing":
        needed = _NEEDED if schema is Recipe else {}  # an option of a plug-in may have the same name
        return one_line("missing", remedy=needed.get(".".join(path), "it has no default"))
    if kind == "value_error" and isinstance(context["error"], OptionsError):
        return f"should be {{option: value}}; a single one is {'.'.join(path)}.OPTION"
    if kind == "value_error":
        return str(context["error"])
    context = {
        key: int(bound) if isinstance(bound, float) and bound.is_integer() else bound for key, bound in context.items()
    }
    text = _EXPECTED[kind].format(**context) if kind in _EXPECTED else fault["msg"]
    return f"should be {text}" if kind in _EXPECTED else text


def _known_fields(schema: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """The names that may stand at `path`."""
    kind: Any = schema
    for part in path:
        if get_origin(kind) is tuple and part.isdecimal():
            kind = get_args(kind)[0]
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[part].annotation
        else:
            return []
    fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
    return [field.alias or name for name, field in fields.items()]


def _line(place: str, path: tuple[str, ...], value: Any, said: list[str]) -> str:
    """One line; the alternatives of a field that takes several kinds of value are joined by `or`."""
    wanted = [text.removeprefix("should be ") for text in dict.fromkeys(said) if text.startswith("should be ")]
    if len(wanted) != len(set(said)):
        return one_line(said[0], joined(place, path))
    field = joined(place, path).rpartition(": ")[2]
    return one_line(
        f"{_short(value)} should be {' or '.join(wanted)}", joined(place, path), _as_list(field, value, wanted)
    )


def _as_list(field: str, value: Any, wanted: Sequence[str]) -> str:
    """How a list's items are written that stand there without brackets; empty where they may not be meant as one."""
    text = value if isinstance(value, str) else _short(value)
    meant = "a list" in wanted and (len(wanted) == 1 or "," in text)
    if not meant or value is None or isinstance(value, Mapping):
        return ""
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items or not all(re.fullmatch(r"[\w./+-]+", item) for item in items):
        return "put it between [ and ]"
    numbered = any(part.isdecimal() for part in field.split("."))  # an item of a list, which --set does not reach
    return f"write {'' if numbered else f'{field}='}[{','.join(items)}]"


def _short(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _cross_faults(recipe: Recipe, place: str, bad: set[str]) -> list[str]:
    """Faults between fields, of the rules whose sections are all sound."""
    return [
        one_line(fault, joined(place, [field]), remedy)
        for sections, rule in _RULES
        if not sections & bad
        for field, fault, remedy in rule(recipe)
    ]


Fault = tuple[str, str, str]


def _batch_rule(recipe: Recipe) -> Iterable[Fault]:
    pairs, batch, micro = recipe.rollout.pairs, recipe.train.batch, recipe.train.micro_batch
    if batch != "all" and pairs % batch:
        yield "train.batch", f"{batch} does not divide rollout.pairs {pairs}", f"use {divisors(pairs)}"
        return
    whole, name = (pairs, "rollout.pairs") if batch == "all" else (batch, "train.batch")
    if micro != "auto" and whole % micro:
        yield "train.micro_batch", f"{micro} does not divide {name} {whole}", f"use {divisors(whole)}"


def _noise_rule(recipe: Recipe) -> Iterable[Fault]:
    if recipe.rollout.eta == 0 and recipe.rollout.transition != "renoise":
        fault = f"0 leaves {recipe.rollout.transition} without noise, so there is nothing to learn from"
        yield "rollout.eta", fault, "use an eta above 0, or rollout.transition renoise"


def _adapter_rule(recipe: Recipe) -> Iterable[Fault]:
    model, lora = recipe.model, recipe.model.lora
    named = [name for name, value in lora if value is not None]
    if model.train == "full" and named:
        yield (
            "model.lora",
            f"model.train full trains no LoRA, so no {' and '.join(named)}",
            "leave it out: model.lora={}",
        )
    elif lora.start and named != ["start"]:
        others = " and ".join(name for name in named if name != "start")
        yield "model.lora", f"start says {others} itself", "leave the rest out: model.lora={start: PATH}"
    if model.train == "full" and model.dtype == "float16":
        yield "model.dtype", "float16 is too coarse for the gradients of model.train full", "use bfloat16 or float32"


def _weight_rule(recipe: Recipe) -> Iterable[Fault]:
    if all(reward.weight == 0 for reward in recipe.reward):
        yield "reward", "every weight is 0", "give at least one reward another weight"


def _steps_rule(recipe: Recipe) -> Iterable[Fault]:
    steps = recipe.eval.steps
    if len(set(steps)) != len(steps):
        yield "eval.steps", "lists a step count twice", f"use {sorted(set(steps))}"


def _guard_rule(recipe: Recipe) -> Iterable[Fault]:
    guard, evaluation, epochs = recipe.guard, recipe.eval, recipe.train.epochs
    if guard.on and not evaluation.every:
        yield "guard", "acts on evaluations, and eval.every 0 makes none", "set eval.every, or leave guard out"
    elif guard.on and (over := epochs % evaluation.every):
        fault = f"{evaluation.every} does not divide train.epochs {epochs}: guard would miss the last {over}"
        yield "eval.every", fault, f"use {divisors(epochs)}"
    if guard.rollback.times and guard.keep_best.measure is None:
        yield "guard.rollback", "there is no kept epoch to go back to", "set guard.keep_best.measure"
    watched: dict[str, KeepBestSection | StopRule] = {"keep_best": guard.keep_best}
    for field, one in (watched | {f"stop_if.{number}": rule for number, rule in enumerate(guard.stop_if)}).items():
        unknown = sorted(set(one.steps or ()) - set(evaluation.steps))
        if unknown:
            drawn = ", ".join(map(str, evaluation.steps))
            yield f"guard.{field}.steps", f"{unknown[0]} is not in eval.steps", f"evaluated are {drawn}"
        if one.measure == "diversity" and evaluation.images_per_prompt < 2:
            fault = "diversity compares pictures of one prompt, and eval.images_per_prompt is 1"
            yield f"guard.{field}.measure", fault, "set eval.images_per_prompt to 2 or more"


_RULES: tuple[tuple[set[str], Callable[[Recipe], Iterable[Fault]]], ...] = (
    ({"rollout", "train"}, _batch_rule),
    ({"rollout"}, _noise_rule),
    ({"model"}, _adapter_rule),
    ({"reward"}, _weight_rule),
    ({"eval"}, _steps_rule),
    ({"eval", "guard", "train"}, _guard_rule),
)


def divisors(number: int) -> str:
    """`1, 2, 4 or 8` for 8; of a number with many, the eight largest."""
    small = [d for d in range(1, isqrt(number) + 1) if number % d == 0]
    found = [str(d) for d in sorted({*small, *(number // d for d in small)})][-8:]
    return found[0] if len(found) == 1 else f"{', '.join(found[:-1])} or {found[-1]}"
