"""Every shipped recipe says what it is for and resolves with the plug-ins of this repository."""

import itertools
import re

import pytest

from sdpo_cli.recipe import shipped_recipes
from sdpo_cli.registry import load_recipe, load_registry
from sdpo_cli.registry.offered import DISTRIBUTIONS

RECIPES = shipped_recipes()
PUBLISHED = [name for name in RECIPES if name.startswith("published/")]


@pytest.mark.parametrize("name", RECIPES)
def test_opens_with_what_it_reproduces_and_needs(name):
    lines = itertools.takewhile(lambda line: line.startswith("# "), RECIPES[name].read_text().splitlines())
    comment = " ".join(line.removeprefix("# ") for line in lines)
    assert "eproduces" in comment, "what it reproduces"
    assert re.search(r"(?<= )Needs (a GPU with \d+ GB|nothing but this package: no GPU)", comment), "what it needs"
    assert re.search(r"\b(minutes|hours?)\b", comment), "how long it takes"


@pytest.mark.parametrize("name", RECIPES)
def test_resolves(name):
    resolved = load_recipe(name)
    assert resolved.recipe.rollout.steps > 1
    assert max(resolved.recipe.eval.steps) >= 4 or "sprint" in name


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_are_published_to_the_letter(name):
    """Source: github ZiyiZhang27/sdpo, config/base_sdpo.py and config_sdpo.py; per GPU there, of 4 GPUs."""
    recipe = load_recipe(name).recipe
    epochs, rate, batch, accumulated = {
        "published/aesthetic": (100, 1e-4, 2, 8),
        "published/imagereward": (200, 5e-5, 1, 32),
        "published/hpsv2": (200, 5e-5, 1, 32),
        "published/pickscore": (200, 6e-5, 1, 16),
    }[name]
    assert (recipe.train.epochs, recipe.train.learning_rate) == (epochs, rate)
    assert (recipe.rollout.pairs, recipe.rollout.steps, recipe.rollout.eta) == (8 * 4 * 4, 50, 1.0)
    assert recipe.train.batch == batch * accumulated * 4
    assert recipe.objective.options["credit"] == "current"
    assert recipe.objective.options["antithetic"] is False
    assert recipe.objective.options["clip"] == 1e-4
    assert recipe.objective.options["dense"] == {"mode": "anchors", "anchor": "any", "predictor": "cosine"}
    assert recipe.model.lora.rank == 4


def test_every_plug_in_of_this_repository_says_how_to_install_it():
    theirs = {
        plugin.spec.name: plugin.distribution
        for plugin in load_registry().plugins
        if plugin.distribution.startswith(("sdpo-reward-", "sdpo-model-"))
    }
    assert len(set(theirs.values())) == 7
    assert theirs == DISTRIBUTIONS
