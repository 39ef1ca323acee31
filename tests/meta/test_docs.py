"""The documentation that is made from code says what the code says. `python tests/meta/test_docs.py` writes it anew."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sdpo_cli.recipe.schema import Choice, Recipe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "recipe.md"
INTRODUCTION = """\
# Every field of a recipe

Made from the schema; a test keeps it so. Values are YAML 1.2: `1e-4` is a number, `no` is a text. Unknown and repeated
keys are errors. `--set FIELD=VALUE` overrides any field. Paths are meant from the recipe's folder, else from the
working folder. The options of `objective`, `reward` and `prompts` are the plug-ins' own; `sdpo plugins show NAME`.

| field | default | bounds | what |
|---|---|---|---|
"""


def fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field by its dotted path; choices of plug-ins are not entered."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, Choice):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def default(field: FieldInfo) -> str:
    """The default as a recipe would say it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return f"`{value.name if isinstance(value, Choice) else json.dumps(value)}`"


def bounds(field: FieldInfo) -> str:
    """`> 0, <= 1`, and the words that a field takes."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [
        f"{sign} {getattr(one, name)}" for one in field.metadata for name, sign in signs.items() if hasattr(one, name)
    ]
    return ", ".join([*found, *(f"`{word}`" for word in words(field.annotation))])


def words(kind: Any) -> list[str]:
    """The words among the values of a type."""
    if get_origin(kind) is Literal:
        return [one for one in get_args(kind) if isinstance(one, str)]
    return [word for part in get_args(kind) for word in words(part)]


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{name}` | {default(field)} | {bounds(field)} | {field.description} |" for name, field in fields(Recipe)
    ]
    return INTRODUCTION + "\n".join(rows) + "\n"


def test_the_page_of_recipe_fields_is_that_of_the_schema():
    assert PAGE.read_text(encoding="utf-8") == page()


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_reward_of_the_readme_is_a_reward():
    from sdpo_cli.api import LoadContext
    from sdpo_cli.testing import check_reward

    module: dict[str, Any] = {}
    code = next(block for block in blocks(ROOT / "README.md", "python") if "hookimpl" in block)
    exec(code, module)
    (spec,) = module["sdpo_rewards"]()
    check_reward(spec.load(spec.options(), LoadContext()))
    assert spec.name == "brightness"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
