"""From a path, a shipped recipe's name and `--set` overrides to the raw recipe, and back to text."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sdpo_cli
from sdpo_cli.errors import RecipeError, encodable, one_line
from sdpo_cli.recipe.faults import did_you_mean
from sdpo_cli.recipe.paths import user_path
from sdpo_cli.recipe.schema import Choice, Recipe, RewardChoice
from sdpo_cli.recipe.shorthand import RECIPE_WORDS, Tree, expand
from sdpo_cli.recipe.text import format_yaml, parse_yaml

_LARGEST = 1_000_000
"""Bytes of the largest recipe that is read: a weight file given by mistake is refused, not parsed."""


@dataclass(frozen=True)
class RawRecipe:
    """A recipe as read, overrides applied, short forms written out, not yet checked.

    Attributes:
        raw: the mapping; `name` is filled in from the file's name where the recipe has none.
        place: how faults name the recipe: as the user wrote it.
        path: the file it came from.
        folder: folder that relative paths in it are meant from.
        faults: overrides that fit nowhere and are left out, a line each: to be told with the recipe's own faults.
    """

    raw: Mapping[str, Any]
    place: str
    path: Path
    folder: Path
    faults: Sequence[str] = ()


def shipped_recipes() -> dict[str, Path]:
    """The recipes that came with the program, by name; those in a folder as `FOLDER/NAME`."""
    package = Path(sdpo_cli.__file__).parent
    folder = next((folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir()), package)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def read_recipe(source: str | Path, overrides: Sequence[str] = ()) -> RawRecipe:
    """The recipe at a path or of a shipped recipe's name, with `path.to.field=VALUE` overrides (VALUE is YAML).

    RecipeError where it cannot be read.
    """
    path, place = find_recipe(source), str(source)
    tree = parse_yaml(_text(path, place), place)
    if not isinstance(tree, dict):
        fault = "empty" if tree is None else "not a mapping of fields"
        raise RecipeError([one_line(fault, place, "a recipe starts like `model: emoji-turbo`")])
    tree, faults = overridden(expand(tree), overrides)
    return RawRecipe({"name": path.stem, **tree}, place, path, path.parent, faults)


def find_recipe(source: str | Path) -> Path:
    """The file of a path, of a shipped recipe's name, or of `recipes/NAME.yaml` for a shipped one.

    RecipeError where there is none, UsageError where `~NAME` is nobody.
    """
    path, shipped = user_path(source), shipped_recipes()
    if path.is_file():
        return path
    name = path.as_posix().removeprefix("recipes/").removesuffix(".yaml")
    if name in shipped and path.suffix in ("", ".yaml"):
        return shipped[name]
    if path.exists():
        raise RecipeError([one_line("not a file", str(source), "name a recipe file; a run goes on with --resume")])
    remedy = did_you_mean(path.stem, shipped) or f"shipped recipes: {', '.join(shipped) or 'none'}"
    raise RecipeError([one_line("no such recipe", str(source), remedy)])


def override(tree: Tree, overrides: Sequence[str]) -> Tree:
    """A long-form recipe with the overrides put in. RecipeError with every override that fits nowhere."""
    tree, faults = overridden(tree, overrides)
    if faults:
        raise RecipeError(faults)
    return tree


def overridden(tree: Tree, overrides: Sequence[str]) -> tuple[Tree, list[str]]:
    """A long-form recipe with those overrides put in that fit, and a line for each that does not."""
    faults: list[str] = []
    for text in overrides:
        field, equals, value = text.partition("=")
        place = f"--set {field}"
        try:
            if not encodable(text):
                raise RecipeError([one_line("not UTF-8", place, "write it in UTF-8")])
            if not equals or not field:
                raise RecipeError([one_line("no field and value", place, "write --set train.epochs=4")])
            tree = expand(_put(tree, field.split("."), parse_yaml(value, place), place))
        except RecipeError as error:
            faults += error.faults
    return tree, faults


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML that reads back as an equal one."""
    return format_yaml(long_form(recipe))


def long_form(recipe: Recipe) -> Tree:
    """Every field as a recipe says it, no short form used."""
    tree = recipe.model_dump()
    for field in ("prompts", "objective"):
        tree[field] = _long_form([getattr(recipe, field)])
    tree["reward"] = _long_form(recipe.reward)
    tree["eval"]["rewards"] = _long_form(recipe.eval.rewards)
    tree["eval"]["prompts"] = recipe.eval.prompts and _long_form([recipe.eval.prompts])
    return {key: _lists(value) for key, value in tree.items()}


def _text(path: Path, place: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise RecipeError([one_line(f"cannot be read: {os.strerror(error.errno or 0)}", place)]) from error
    if len(data) > _LARGEST:
        raise RecipeError([one_line("larger than 1 MB", place, "a recipe is a short YAML text")])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError([one_line("not a text in UTF-8", place, "a recipe is a short YAML text")]) from error


def _put(tree: Mapping[str, Any], keys: Sequence[str], value: Any, place: str) -> Tree:
    """A copy of `tree` with `value` at the dotted `keys`; a key of the tree that holds dots itself is found too."""
    whole = next((n for n in range(len(keys), 1, -1) if ".".join(keys[:n]) in tree), 1)
    key, rest = ".".join(keys[:whole]), keys[whole:]
    if not rest:
        return {**tree, key: value}
    inner = tree.get(key)
    if not isinstance(inner, Mapping | None):
        fault = f"{key} is a value and has no field {rest[0]}"
        raise RecipeError([one_line(fault, place, f"write --set {key}=VALUE")])
    return {**tree, key: _put(inner or {}, rest, value, place)}


def _long_form(choices: Sequence[Choice]) -> Tree:
    def words(choice: Choice) -> Tree:
        return {word: getattr(choice, word) for word in RECIPE_WORDS} if isinstance(choice, RewardChoice) else {}

    return {choice.name: {**choice.options, **words(choice)} for choice in choices}


def _lists(value: Any) -> Any:
    """The same with tuples as lists, which YAML knows."""
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value
