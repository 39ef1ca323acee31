"""The page of evidence says what the stored results say, and the arms that made them are still recipes."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from sdpo_cli.recipe import long_form
from sdpo_cli.registry import load_recipe

DOCS = Path(__file__).parents[2] / "docs"


def script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / "evidence" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # one script imports the other by this name
    spec.loader.exec_module(module)
    return module


ARMS, *_, TABLES = (script(name) for name in ("arms", "reading", "search", "tables"))
STUDIED = ("PARTS", "CHANGES", "PREDICTORS", "CREDIT", "ALIKE", "RATED", "SIXTEEN", "FIFTY")
SEARCHED = {
    f"{name}.{number}": (method.objective, (*method.own, *settings))
    for name, method in {**ARMS.METHODS, "gain": ARMS.GAIN}.items()
    for number, settings in enumerate(method.settings())
}


@pytest.mark.parametrize("arms", [getattr(ARMS, name) for name in STUDIED] + [SEARCHED], ids=[*STUDIED, "searched"])
def test_every_arm_of_the_study_is_a_recipe_of_its_own(arms):
    made = [
        repr(long_form(load_recipe("quickstart", [f"objective={objective}", *own]).recipe))
        for objective, own in arms.values()
    ]
    assert len(set(made)) == len(made)


def test_every_method_is_searched_in_as_many_settings():
    assert {len(method.settings()) for method in ARMS.METHODS.values()} == {24}


@pytest.mark.parametrize("name", TABLES.TABLES)
def test_the_page_has_the_table_that_the_results_make(name):
    assert "\n".join(TABLES.TABLES[name]()) in (DOCS / "evidence.md").read_text()


@pytest.mark.parametrize(
    ("file", "arms"),
    [
        *((reward, {*ARMS.METHODS, "sdpo-gain"}) for reward in ARMS.REWARDS),
        *((f"parts-{reward}", ARMS.PARTS) for reward in ARMS.REWARDS),
        *((f"rates-{reward}", ARMS.RATES[reward]) for reward in ARMS.REWARDS),
        ("changes", ARMS.CHANGES),
        ("credit-style", ARMS.CREDIT),
        ("alike", ARMS.ALIKE),
        ("steps-16", ARMS.SIXTEEN),
        ("steps-50", ARMS.FIFTY),
        ("small", ARMS.METHODS),
    ],
)
def test_the_results_are_of_the_study_s_arms(file, arms):
    runs = json.loads((DOCS / "evidence" / "results" / f"{file}.json").read_text())["runs"]
    assert {run["arm"] for run in runs} == set(arms)


@pytest.mark.parametrize("reward", ARMS.REWARDS)
def test_the_search_tried_every_setting(reward):
    found = json.loads((DOCS / "evidence" / "results" / f"search-{reward}.json").read_text())
    for name, method in {**ARMS.METHODS, "sdpo-gain": ARMS.GAIN}.items():
        assert set(found[name]) == {" ".join((*method.own, *settings)) for settings in method.settings()}
