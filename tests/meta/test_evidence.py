"""The arms that docs/evidence.md is made of are still recipes, and differ from each other."""

import importlib.util
import sys
from pathlib import Path

import pytest

from sdpo_cli.recipe import long_form
from sdpo_cli.registry import load_recipe

PLACE = Path(__file__).parents[2] / "docs" / "evidence" / "arms.py"


def arms_module():
    spec = importlib.util.spec_from_file_location("arms", PLACE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["arms"] = module
    spec.loader.exec_module(module)
    return module


ARMS = arms_module()
SEARCHED = {
    f"{name}.{number}": (method.objective, (*method.own, *settings))
    for name, method in ARMS.METHODS.items()
    for number, settings in enumerate(method.settings())
}


@pytest.mark.parametrize(
    "arms",
    [SEARCHED, ARMS.SMALL, ARMS.PARTS, ARMS.CHANGES, ARMS.PREDICTORS, ARMS.CREDIT, ARMS.SIXTEEN, ARMS.FIFTY],
    ids=["searched", "small", "parts", "changes", "predictors", "credit", "sixteen", "fifty"],
)
def test_every_arm_of_the_study_is_a_recipe_of_its_own(arms):
    made = [
        repr(long_form(load_recipe("quickstart", [f"objective={objective}", *own]).recipe))
        for objective, own in arms.values()
    ]
    assert len(set(made)) == len(made)


def test_every_method_is_searched_in_as_many_settings():
    assert {len(method.settings()) for method in ARMS.METHODS.values()} == {12}
