"""What a recipe may say, how it is read, and everything that can be wrong with one. Imports no torch."""

from sdpo_cli.recipe.faults import did_you_mean, joined, recipe_faults, sound_part, validate
from sdpo_cli.recipe.schema import (
    Choice,
    EvalSection,
    GuardSection,
    KeepBestSection,
    LoraSection,
    ModelSection,
    Recipe,
    RewardChoice,
    RollbackSection,
    RolloutSection,
    StopRule,
    TrainSection,
)
from sdpo_cli.recipe.source import RawRecipe, dump_recipe, find_recipe, long_form, read_recipe, shipped_recipes

__all__ = [
    "Choice",
    "EvalSection",
    "GuardSection",
    "KeepBestSection",
    "LoraSection",
    "ModelSection",
    "RawRecipe",
    "Recipe",
    "RewardChoice",
    "RollbackSection",
    "RolloutSection",
    "StopRule",
    "TrainSection",
    "did_you_mean",
    "dump_recipe",
    "find_recipe",
    "joined",
    "long_form",
    "read_recipe",
    "recipe_faults",
    "shipped_recipes",
    "sound_part",
    "validate",
]
