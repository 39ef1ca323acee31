"""Finds plug-ins, keeps broken ones apart, resolves names and whole recipes. Imports no torch."""

from sdpo_cli.registry.discovery import HOOKS, BrokenPlugin, Plugin, discover
from sdpo_cli.registry.lookup import Chosen, Registry, load_registry
from sdpo_cli.registry.measures import DIVERGENCE, DIVERSITY, distinct_rewards
from sdpo_cli.registry.resolve import ResolvedRecipe, chosen_rewards, load_recipe, resolve

__all__ = [
    "DIVERGENCE",
    "DIVERSITY",
    "HOOKS",
    "BrokenPlugin",
    "Chosen",
    "Plugin",
    "Registry",
    "ResolvedRecipe",
    "chosen_rewards",
    "discover",
    "distinct_rewards",
    "load_recipe",
    "load_registry",
    "resolve",
]
