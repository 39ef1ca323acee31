"""What a recipe may say: every field with its default, its bounds and what it means."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from sdpo_cli.api import Options
from sdpo_cli.recipe.shorthand import choice_fields, reward_fields

Dtype = Literal["float32", "bfloat16", "float16"]
Transition = Literal["ddim", "renoise", "cps"]
Count = Annotated[int, Field(ge=1)]


def matching(pattern: str, wanted: str) -> AfterValidator:
    """The rule that a text matches `pattern`, told to the user as `wanted`."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"should be {wanted}")
        return text

    return AfterValidator(check)


RunName = Annotated[
    str,
    matching(
        r"[^./\\\s\x00-\x1f\x7f-\x9f][^/\\\x00-\x1f\x7f-\x9f\u2028\u2029]{,99}",
        "a folder's name on one line, of at most 100 letters, not beginning with a dot or space",
    ),
]
Device = Annotated[str, matching(r"[a-z]+(:[0-9]+)?", "auto, or a device such as cpu, cuda or cuda:1")]


class Section(Options):
    """A part of a recipe: strict types, finite numbers, unknown keys are errors, frozen."""

    model_config = ConfigDict(allow_inf_nan=False)


class Choice(Section):
    """A plug-in and its options; in YAML `NAME` or `{NAME: {option: value}}`."""

    name: str = Field(min_length=1, description="Name of a plug-in, or what its kind takes in place of one.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of that plug-in.")


class RewardChoice(Choice):
    """A reward, its options and its weight; in YAML `NAME` or `{NAME: {option: value, weight: 1.0}}`."""

    weight: float = Field(default=1.0, description="Factor of this reward in the sum that is trained on.")


OneChoice = Annotated[Choice, BeforeValidator(choice_fields)]
RewardChoices = Annotated[tuple[RewardChoice, ...], BeforeValidator(reward_fields)]


class LoraSection(Section):
    """The adapter that is trained."""

    rank: int = Field(default=8, ge=1, le=1024, description="Rank of the LoRA matrices.")
    alpha: float | None = Field(default=None, gt=0, description="The LoRA is scaled by alpha / rank; null means rank.")
    targets: Literal["attention", "linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        default="attention",
        description="Layers that get a LoRA: `attention`, `linear` (all of the transformer blocks), or name endings.",
    )


class ModelSection(Section):
    """The base model; in YAML a name alone will do."""

    name: str = Field(min_length=1, description="Base model: name of a plug-in, folder in diffusers layout, or hub id.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the base model's plug-in.")
    dtype: Dtype = Field(default="float32", description="Number format of the networks; all else is float32.")
    lora: LoraSection = Field(default_factory=LoraSection, description="The adapter that is trained.")


class RolloutSection(Section):
    """How pictures are drawn to learn from."""

    pairs: int = Field(default=32, ge=1, description="Prompts drawn an epoch, each with the objective's rollouts.")
    steps: int = Field(default=4, ge=1, le=1000, description="Denoising steps of a rollout.")
    transition: Transition = Field(default="ddim", description="How a step goes from the clean estimate to less noise.")
    eta: float = Field(default=1.0, ge=0, le=1, description="Share of fresh noise in a ddim or cps step.")


class TrainSection(Section):
    """How the adapter learns from the scored rollouts."""

    epochs: int = Field(default=16, ge=1, description="Rounds of drawing, scoring and updating.")
    learning_rate: float = Field(default=3e-4, gt=0, description="Step size of AdamW.")
    batch: Count | Literal["all"] = Field(default="all", description="Pairs in one optimiser step.")
    micro_batch: Count | Literal["auto"] = Field(
        default="auto", description="Pairs in one forward and backward pass; it changes memory and speed alone."
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Longer gradients are scaled down to this norm.")
    weight_decay: float = Field(default=1e-4, ge=0, description="Weight decay of AdamW.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay of the mean gradient.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's decay of the mean squared gradient.")
    epsilon: float = Field(default=1e-8, gt=0, description="AdamW's term that keeps the division finite.")
    checkpoint_every: int = Field(default=1, ge=1, description="Epochs between checkpoints.")
    keep_last: int = Field(default=2, ge=1, description="Checkpoints kept; older ones are deleted.")
    samples_every: int = Field(default=4, ge=0, description="Epochs between picture grids; 0 means none.")
    device: Device = Field(
        default="auto",
        description="torch device, such as `cpu` or `cuda:1`; `auto` takes an accelerator where there is one.",
    )


class EvalSection(Section):
    """How the adapter is compared with the base model."""

    steps: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        default=(1, 2, 4, 8), description="Step counts to draw with."
    )
    every: int = Field(default=0, ge=0, description="Epochs between evaluations; 0 means one at the end alone.")
    images_per_prompt: int = Field(default=2, ge=1, description="Pictures drawn for each prompt and step count.")
    rewards: RewardChoices = Field(default=(), description="Scored beside the trained rewards, never trained on.")
    prompts: OneChoice | None = Field(default=None, description="Prompts to evaluate on; null means those of training.")
    batch: int = Field(default=64, ge=1, description="Pictures drawn at once.")


class Recipe(Section):
    """A whole training run."""

    name: RunName | None = Field(default=None, description="Name of the run; null means the recipe file's name.")
    model: ModelSection = Field(description="The base model and the adapter on it.")
    prompts: OneChoice = Field(description="Prompts to train on: a prompt source, or a text, JSONL or CSV file.")
    reward: RewardChoices = Field(min_length=1, description="One reward, or several with weights.")
    rollout: RolloutSection = Field(default_factory=RolloutSection, description="How pictures are drawn to learn from.")
    objective: OneChoice = Field(default=Choice(name="sdpo"), description="What is learnt from the scored rollouts.")
    train: TrainSection = Field(default_factory=TrainSection, description="How the adapter learns.")
    eval: EvalSection = Field(default_factory=EvalSection, description="How the adapter is compared with the base.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Everything random in the run follows from it.")
