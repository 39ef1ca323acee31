"""A recipe with every field checked and every plug-in found, or all its faults at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_cli.api import BaseModelSpec, ObjectiveSpec, PromptSourceSpec, RewardSpec
from sdpo_cli.errors import RecipeError, SdpoError, UsageError, one_line
from sdpo_cli.recipe import LoraSection, Recipe, read_recipe, recipe_faults, sound_part
from sdpo_cli.recipe.shorthand import expand, reward_fields
from sdpo_cli.recipe.text import parse_yaml
from sdpo_cli.registry.families import existing
from sdpo_cli.registry.lookup import Chosen, Registry, load_registry
from sdpo_cli.registry.measures import guard_faults


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe whose every field is checked and whose every plug-in is found; nothing is loaded yet.

    Attributes:
        recipe: with all options written out and files by their absolute path, so it means the same from anywhere.
        place: how faults name it.
        model, prompts, objective: what it chooses.
        rewards: in the order of `recipe.reward`, which holds their weights.
        eval_rewards: in the order of `recipe.eval.rewards`.
        eval_prompts: None where evaluation uses the training prompts.
    """

    recipe: Recipe
    place: str
    model: Chosen[BaseModelSpec]
    prompts: Chosen[PromptSourceSpec]
    rewards: tuple[Chosen[RewardSpec], ...]
    objective: Chosen[ObjectiveSpec]
    eval_rewards: tuple[Chosen[RewardSpec], ...]
    eval_prompts: Chosen[PromptSourceSpec] | None

    @property
    def all_chosen(self) -> list[Chosen[Any]]:
        """Every plug-in the run loads."""
        optional = [self.eval_prompts] if self.eval_prompts else []
        return [self.model, *self.rewards, *self.eval_rewards, self.prompts, self.objective, *optional]


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> ResolvedRecipe:
    """The recipe at a path, or of a shipped recipe's name, with `path.to.field=VALUE` overrides, resolved.

    RecipeError with every fault. No weight is loaded.
    """
    read = read_recipe(source, overrides)
    return resolve(read.raw, read.place, read.folder, faults=read.faults)


def chosen_rewards(texts: Sequence[str], place: str) -> list[Chosen[RewardSpec]]:
    """The rewards that command-line texts name in a recipe's grammar: `NAME` or `{NAME: {option: value}}`.

    A weight is checked and ignored. UsageError where a text is in no such form; else errors as for a recipe.
    """
    fields: list[Mapping[str, Any]] = []
    for text in texts:
        try:
            fields += reward_fields(expand({"reward": parse_yaml(text, place)})["reward"])
        except ValueError as error:
            raise UsageError(f"{text!r} {error}", place=place) from None
    return [load_registry().reward(one["name"], one["options"], place) for one in fields]


def resolve(
    raw: Mapping[str, Any],
    place: str,
    folder: Path = Path(),
    registry: Registry | None = None,
    faults: Sequence[str] = (),
) -> ResolvedRecipe:
    """The recipe that `raw` says (short forms allowed). RecipeError with every fault.

    Args:
        raw: as YAML says it.
        place: how faults name the recipe.
        folder: folder that its relative paths are meant from.
        registry: the plug-ins; those installed where None.
        faults: what was found wrong before, a line each.
    """
    recipe, own = recipe_faults(raw, place)
    every = [*faults, *own]
    part, unsound = sound_part(raw)
    found = _look_up(part, unsound, place, folder, registry or load_registry(), every)
    rewards = [*found["reward"], *found["eval.rewards"]]
    if not unsound & {"reward", "eval", "guard", "model", "train"} and len(rewards) == len(
        [*part.reward, *part.eval.rewards]
    ):
        every += guard_faults(part, rewards, place)
    if recipe is None or every:
        raise RecipeError(every)
    return ResolvedRecipe(
        recipe=_written_out(recipe, found),
        place=place,
        model=found["model"][0],
        prompts=found["prompts"][0],
        rewards=tuple(found["reward"]),
        objective=found["objective"][0],
        eval_rewards=tuple(found["eval.rewards"]),
        eval_prompts=next(iter(found["eval.prompts"]), None),
    )


def _look_up(
    part: Recipe, unsound: set[str], place: str, folder: Path, registry: Registry, faults: list[str]
) -> dict[str, list[Chosen[Any]]]:
    """What the choices of the sound sections mean; what cannot be found or has wrong options adds to `faults`."""
    looks = {
        "model": (registry.model, (part.model,)),
        "prompts": (registry.prompts, (part.prompts,)),
        "reward": (registry.reward, part.reward),
        "objective": (registry.objective, (part.objective,)),
        "eval.rewards": (registry.reward, part.eval.rewards),
        "eval.prompts": (registry.prompts, (part.eval.prompts,) if part.eval.prompts else ()),
    }
    found: dict[str, list[Chosen[Any]]] = {field: [] for field in looks}
    for field, (look, choices) in looks.items():
        for choice in choices if field.partition(".")[0] not in unsound else ():
            try:
                found[field].append(look(choice.name, choice.options, f"{place}: {field}", folder))
            except RecipeError as error:
                faults += error.faults
            except SdpoError as error:
                faults.append(str(error))
        names = [one.name for one in found[field]]
        twice = sorted({name for name in names if names.count(name) > 1})
        faults += [one_line(f"{name} is named twice", f"{place}: {field}", "name it once") for name in twice]
    return found


def _written_out(recipe: Recipe, found: Mapping[str, Sequence[Chosen[Any]]]) -> Recipe:
    """The recipe with the plug-ins' own names and all their options."""

    def full(choice: Any, chosen: Chosen[Any], **more: Any) -> Any:
        return choice.model_copy(update={"name": chosen.name, "options": chosen.all_options(), **more})

    def each(choices: Sequence[Any], field: str) -> tuple[Any, ...]:
        return tuple(full(choice, chosen) for choice, chosen in zip(choices, found[field], strict=True))

    evaluation = {"rewards": each(recipe.eval.rewards, "eval.rewards")}
    if recipe.eval.prompts:
        evaluation["prompts"] = full(recipe.eval.prompts, found["eval.prompts"][0])
    return recipe.model_copy(
        update={
            "model": full(recipe.model, found["model"][0], lora=_absolute(recipe.model.lora, found["model"][0].folder)),
            "prompts": full(recipe.prompts, found["prompts"][0]),
            "reward": each(recipe.reward, "reward"),
            "objective": full(recipe.objective, found["objective"][0]),
            "eval": recipe.eval.model_copy(update=evaluation),
        }
    )


def _absolute(lora: LoraSection, folder: Path) -> LoraSection:
    """The section with a `start` that is there by its absolute path."""
    start = lora.start and existing(lora.start, folder, "model.lora.start")
    return lora.model_copy(update={"start": str(start)}) if start else lora
