"""From a resolved recipe to loaded objects, the cheapest first, so that faults come early."""

import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sdpo_cli.api import LoadContext, Prompt
from sdpo_cli.api.hub import check_downloads
from sdpo_cli.api.tensors import AdapterOptions, BaseModel, Objective
from sdpo_cli.engine.disk.artifacts import adapter_place
from sdpo_cli.engine.evaluating.evaluate import Plan
from sdpo_cli.engine.events import Event, StageStarted
from sdpo_cli.engine.learning.optimizer import check_optimizer
from sdpo_cli.engine.learning.rollout import action_steps, first_rewarded_step
from sdpo_cli.engine.number_formats import check_dtype
from sdpo_cli.engine.rewards.scoring import LoadedReward, full_version
from sdpo_cli.engine.sources import Source
from sdpo_cli.errors import PluginError, RecipeError, UsageError, one_line
from sdpo_cli.maths import Kernel, Schedule, StepStatistics, kernel_for, with_floor
from sdpo_cli.recipe import ModelSection, Recipe, RewardChoice
from sdpo_cli.registry import Chosen, ResolvedRecipe, distinct_rewards

CPU_MICRO_BATCH = 32
"""Rollouts in a forward pass on a CPU: larger ones are no faster there and take memory."""


@dataclass(frozen=True)
class Setup:
    """Everything a run works with.

    Attributes:
        recipe: all its fields.
        model: without an adapter yet.
        rewards, eval_rewards: what is trained on; what is scored beside it.
        prompts, eval_prompts: what is trained on; what is evaluated on.
        objective: what is learnt.
        kernel: the Gaussians of a rollout's steps.
        batch: pairs in an optimiser step.
        micro_batch: pairs in a forward pass.
        versions: of the plug-ins that decide the numbers, beside the rewards', by what they are.
        bases: the folder where runs keep for each other what the base model drew; None where they share nothing.
    """

    recipe: Recipe
    model: BaseModel
    rewards: tuple[LoadedReward, ...]
    eval_rewards: tuple[LoadedReward, ...]
    prompts: tuple[Prompt, ...]
    eval_prompts: tuple[Prompt, ...]
    objective: Objective
    kernel: Kernel
    batch: int
    micro_batch: int
    versions: Mapping[str, str] = field(default_factory=dict)
    bases: Path | None = None

    @cached_property
    def actions(self) -> list[int]:
        """The steps of a rollout that carry a policy gradient."""
        return action_steps(self.kernel, self.objective.plan)

    def decoded_at_once(self, pairs: int) -> int:
        """Pictures to decode at once where so many pairs are sampled at once."""
        wanted = self.recipe.train.decode_batch
        return self.objective.plan.rollouts * pairs if wanted == "auto" else wanted

    @property
    def about(self) -> dict[str, str]:
        """What a checkpoint must be continued with."""
        texts = json.dumps([prompt.text for prompt in self.prompts])
        return {
            "base model": self.model.identity,
            "list of prompts": hashlib.sha256(texts.encode()).hexdigest()[:16],
            **{f"version of the {what}": version for what, version in self.versions.items()},
            **{f"version of reward {reward.name}": reward.version for reward in self.rewards},
        }


def load_setup(resolved: ResolvedRecipe, device_name: str = "") -> Generator[Event, None, Setup]:
    """Load what the recipe names, and say what takes time. SdpoError, with the recipe's place, at the first fault.

    `device_name` stands for the recipe's device where it is given.
    """
    recipe = resolved.recipe
    check_optimizer(recipe.train)
    device = pick_device(device_name or recipe.train.device)
    check_dtype(device, recipe.model.dtype)
    context = LoadContext(device=str(device), dtype=recipe.model.dtype, compile=recipe.model.compile)
    check_downloads([files for chosen in resolved.all_chosen for files in chosen.needs()])
    prompts = load_prompts(resolved.prompts, context)
    eval_prompts = load_prompts(resolved.eval_prompts, context) if resolved.eval_prompts else prompts
    objective = resolved.objective.load(context)
    check_steps(objective, recipe.rollout.steps, resolved.place)
    named = distinct_rewards([*resolved.rewards, *resolved.eval_rewards])
    yield StageStarted("load", 0, 0, listed("reward", list(named)))
    loaded = load_rewards(
        named, {choice.name: choice for choice in recipe.reward}, context, recipe.train.reward_timeout
    )
    rewards, eval_rewards = loaded[: len(resolved.rewards)], loaded[len(resolved.rewards) :]
    yield StageStarted("load", 0, 0, f"model {recipe.model.name}")
    model = resolved.model.load(context)
    schedule = with_floor(schedule_for(model, recipe.rollout.steps, f"{resolved.place}: rollout.steps"))
    kernel = kernel_for(schedule, recipe.rollout.transition, recipe.rollout.eta).to(model.device)
    check_noise(kernel, objective, resolved.place)
    for steps in recipe.eval.steps:
        schedule_for(model, steps, f"{resolved.place}: eval.steps")
    batch = recipe.rollout.pairs if recipe.train.batch == "all" else recipe.train.batch
    automatic = min(batch, max(1, CPU_MICRO_BATCH // objective.plan.rollouts)) if device.type == "cpu" else batch
    micro_batch = automatic if recipe.train.micro_batch == "auto" else recipe.train.micro_batch
    versions = {"base model": full_name(resolved.model), "objective": full_name(resolved.objective)}
    return Setup(
        recipe, model, rewards, eval_rewards, prompts, eval_prompts, objective, kernel, batch, micro_batch, versions
    )


def schedule_for(model: BaseModel, steps: int, asked: str) -> Schedule:
    """The levels that the model visits in so many steps. UsageError, naming what asked for them, where it cannot."""
    try:
        return model.schedule(steps)
    except UsageError as error:
        raise error.within(asked) from None


def listed(what: str, names: Sequence[str]) -> str:
    """`reward a`, `rewards a, b`."""
    return f"{what}{'s' if len(names) > 1 else ''} {', '.join(names)}"


def fresh_statistics(setup: Setup) -> StepStatistics:
    """No returns seen yet."""
    plan = setup.objective.plan
    return StepStatistics(plan.statistics_size, plan.statistics_min_count)


def full_name(chosen: Chosen[Any]) -> str:
    """A plug-in's name that no other has, and its version: other numbers, other text."""
    return f"{chosen.plugin.full_name} {chosen.spec.version}"


def check_steps(objective: Objective, steps: int, place: str) -> None:
    """RecipeError where the rollouts are too short to learn from.

    But with credit `current` the last action earns nothing; rollouts that share their noise share their first
    estimate too.
    """
    if steps == 1 and (first_rewarded_step(objective.plan) > 0 or objective.plan.shared_noise):
        fault = "no action of a 1-step rollout earns a reward of its own"
        raise RecipeError([one_line(fault, f"{place}: rollout.steps", "use 2 or more steps")])


def check_noise(kernel: Kernel, objective: Objective, place: str) -> None:
    """RecipeError where no action that earns a reward draws noise: there is no density to learn by."""
    if not action_steps(kernel, objective.plan):
        fault = f"none of the {len(kernel)} steps draws noise that earns a reward, so there is nothing to learn from"
        raise RecipeError(
            [one_line(fault, f"{place}: rollout", "use more steps, another transition or an eta above 0")]
        )


def pick_device(name: str) -> torch.device:
    """`auto`: CUDA, else Apple's MPS, else the CPU; any other name if this machine has it. UsageError if not.

    Turns TF32 off: with it, float32 log-probabilities replayed in another batch differ by more than they may. Turns
    cuDNN's attention off: its backward pass gave NaN or failed on FLUX (H200, torch 2.11); the other kernels do not.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UsageError("this machine has no such device", place=f"device {name}", remedy="use auto or cpu") from None
    return device


def load_prompts(chosen: Chosen[Any], context: LoadContext) -> tuple[Prompt, ...]:
    """The source's prompts. PluginError where it has none."""
    prompts: Sequence[Prompt] = chosen.load(context)
    if not prompts:
        raise PluginError(
            "gave no prompts", place=f"prompt source {chosen.spec.name}", remedy="choose a source that has some"
        )
    return tuple(prompts)


def load_rewards(
    named: Mapping[str, Chosen[Any]],
    choices: Mapping[str, RewardChoice],
    context: LoadContext,
    timeout: float,
) -> tuple[LoadedReward, ...]:
    """The rewards with their part in the sum, weight 1 and raw where `choices` has none of that name.

    They compute in float32 whatever the model's dtype.
    """
    exact = replace(context, dtype="float32")

    def loaded(name: str, one: Chosen[Any]) -> LoadedReward:
        said = choices.get(name) or RewardChoice(name=name)
        reward = one.load(exact)
        version = f"{one.plugin.full_name} {full_version(one.spec.version, reward)}"
        return LoadedReward(name, version, said.weight, reward, said.normalise, timeout)

    return tuple(loaded(name, one) for name, one in named.items())


def adapter_options(section: ModelSection, seed: int) -> AdapterOptions:
    """What the recipe trains on the base model."""
    lora, usual = section.lora, AdapterOptions()
    rank = lora.rank or usual.rank
    return AdapterOptions(
        rank=rank,
        alpha=float(lora.alpha or rank),
        targets=lora.targets or usual.targets,
        seed=seed,
        kind=section.train,
        start=adapter_place(Path(lora.start)) if lora.start else None,
    )


def evaluation_plan(setup: Setup) -> Plan:
    """The recipe's evaluation, drawn as the model's own pipeline draws."""
    section = setup.recipe.eval
    return Plan(
        prompts=setup.eval_prompts,
        steps=section.steps,
        images_per_prompt=section.images_per_prompt,
        seed=setup.recipe.seed,
        sampler=setup.model.sampler,
        batch=section.batch,
        model=setup.recipe.model.name,
    )


def load_model(source: Source, device: str) -> BaseModel:
    """The model, with the source's adapter on it."""
    model: BaseModel = source.model.load(LoadContext(device=str(pick_device(device)), dtype=source.dtype))
    if source.adapter:
        model.load_adapter(source.adapter)
    return model
