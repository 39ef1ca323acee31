"""Recipes out of rubbish: a resolved recipe, or all faults, one line each."""

from pathlib import Path
from typing import Any

from hostile_cases import cases, edited, edits, junk, numbers, outcome, texts
from hypothesis import strategies as st

from sdpo_cli.errors import RecipeError
from sdpo_cli.recipe import dump_recipe, read_recipe
from sdpo_cli.recipe.shorthand import expand
from sdpo_cli.recipe.source import overridden
from sdpo_cli.recipe.text import parse_yaml
from sdpo_cli.registry import ResolvedRecipe, resolve

WHOLE: dict[str, Any] = {
    "name": "x",
    "model": {"name": "emoji-turbo", "options": {}, "dtype": "float32", "train": "lora",
              "lora": {"rank": 4, "alpha": None, "targets": None, "start": None}},
    "prompts": {"simple-animals": {}},
    "reward": {"colorfulness": {}, "emoji-clip": {"weight": 2, "normalise": "raw"}},
    "rollout": {"pairs": 8, "steps": 3, "transition": "ddim", "eta": 1.0},
    "objective": {"sdpo": {"gamma": 0.9}},
    "train": {"epochs": 1, "optimizer": "adamw", "learning_rate": 1e-3, "batch": "all", "micro_batch": "auto",
              "max_grad_norm": 1.0, "device": "cpu"},
    "eval": {"steps": [1, 2], "every": 0, "rewards": {}, "prompts": None, "batch": 2},
    "seed": 0,
}  # fmt: skip
TEXT = b"# mine\nmodel: {name: emoji-turbo, lora: {rank: 4}}\nprompts: simple-animals\nreward:\n  - colorfulness\n"

MARKS = [
    ": ", "\n", "  ", "- ", "{", "}", "[", "]", ",", "&a ", "*a", "!!python/object/apply:os.system ", "!x ", "'", '"',
    "|", "> ", ">-\n", "? ", "---\n", "...\n", "%YAML 1.1\n", "%TAG ! x\n", "0x", "9" * 50, ".nan", ".inf", "\t",
    '"\\U0011FFFF"', '"\\ud800"', "#", "<<: ", "@", "`", "%", "!", "&", "*", "|9", "0o8", "model", "prompts", "reward",
]  # fmt: skip


def paths(tree: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Where anything stands in a tree."""
    inner = [paths(value, (*above, key)) if isinstance(value, dict) else [] for key, value in tree.items()]
    return [(*above, key) for key in tree] + [path for found in inner for path in found]


def put(tree: Any, path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of the tree with another value there."""
    inner = tree if isinstance(tree, dict) else {}
    return {**inner, path[0]: put(inner.get(path[0]), path[1:], value) if path[1:] else value}


fields = st.sampled_from(paths(WHOLE))
yaml_texts = st.lists(st.sampled_from(MARKS) | texts, max_size=8).map("".join)


@cases("yaml", yaml_texts)
def test_any_text_is_read_as_data_or_refused_with_its_place(place: Path, text: str) -> None:
    found = outcome(lambda: parse_yaml(text, "x.yaml"))
    assert not isinstance(found, RecipeError) or (str(found).startswith("x.yaml: ") and "; " in str(found))


@cases("recipe bytes", edits)
def test_any_bytes_are_a_recipe_or_refused(place: Path, changes: list[Any]) -> None:
    (place / "x.yaml").write_bytes(edited(TEXT, changes))
    read = outcome(lambda: read_recipe(place / "x.yaml"))
    if not isinstance(read, RecipeError):
        outcome(lambda: resolve(read.raw, "x.yaml", place))


@cases("recipe", st.lists(st.tuples(fields, st.none() | texts, junk | numbers), min_size=1, max_size=3))
def test_any_mutation_of_a_recipe_resolves_or_is_told(place: Path, changes: list[Any]) -> None:
    tree: Any = WHOLE
    for path, name, value in changes:
        tree = put(tree, path if name is None else (*path[:-1], name), value)
    found = outcome(lambda: resolve(tree, "x.yaml", place))
    if isinstance(found, ResolvedRecipe):
        text = dump_recipe(found.recipe)
        assert resolve(parse_yaml(text, "again"), "again", place).recipe == found.recipe


names = fields.map(".".join) | st.sampled_from(["", ".", "a.", ".a", "train..epochs", "reward.http.urls"]) | texts
settings = st.tuples(names, st.sampled_from(["=", "", "=="]), yaml_texts).map("".join)


@cases("set", st.lists(settings, min_size=1, max_size=3))
def test_any_override_is_applied_or_told_beside_the_recipes_own_faults(place: Path, overrides: list[str]) -> None:
    tree, faults = overridden(expand({**WHOLE, "seed": -1}), overrides)
    found = outcome(lambda: resolve(tree, "x.yaml", place, faults=faults))
    if isinstance(found, RecipeError):
        assert found.faults[: len(faults)] == faults
    if tree.get("seed") == -1:
        assert any(line.startswith("x.yaml: seed: -1 ") for line in found.faults)
