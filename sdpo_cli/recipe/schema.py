"""What a recipe may say: every field with its default, its bounds and what it means."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator

from sdpo_cli.api import Options, UserPath
from sdpo_cli.recipe.shorthand import choice_fields, reward_fields

Dtype = Literal["float32", "bfloat16", "float16"]
Transition = Literal["ddim", "renoise", "cps", "sde"]
Normalise = Literal["raw", "prompt"]

MANY = 1_000_000
"""More of anything is a mistake, or somebody's joke: it would fill the memory before it could fail."""

Count = Annotated[int, Field(ge=1, le=MANY)]

REWARD_TIMEOUT = 600.0
"""Seconds that a reward may take for one batch of pictures, unless a recipe says otherwise."""


def matching(pattern: str, wanted: str) -> AfterValidator:
    """The rule that a text matches `pattern`, told to the user as `wanted`."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"should be {wanted}")
        return text

    return AfterValidator(check)


def fitting_a_folder(name: str) -> str:
    """The name, if file systems take it with a number after it. ValueError where they do not."""
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"should be a name of at most {LONGEST_NAME} bytes in UTF-8")
    return name


LONGEST_NAME = 240
"""Bytes; a folder's name has 255, and a second run of the name gets `-2` after it."""

_UNFIT = r"/\\\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
RunName = Annotated[
    str,
    matching(
        rf"[^.\s{_UNFIT}][^{_UNFIT}]{{,99}}",
        "a folder's name on one line, of at most 100 letters, not beginning with a dot or space",
    ),
    AfterValidator(fitting_a_folder),
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
    """A reward, its options and its part in a sum; in YAML `NAME` or `{NAME: {option: value, weight: 1.0}}`."""

    weight: float = Field(default=1.0, description="Factor of this reward in the sum that is trained on.")
    normalise: Normalise = Field(
        default="raw",
        description="`raw`, or `prompt`: standardised over a prompt's pictures of the epoch, before it is weighed.",
    )


OneChoice = Annotated[Choice, BeforeValidator(choice_fields)]
RewardChoices = Annotated[tuple[RewardChoice, ...], BeforeValidator(reward_fields)]


class LoraSection(Section):
    """The LoRA that is trained, a fresh one or, with `start`, a saved one that brings its rank, alpha and targets."""

    rank: int | None = Field(default=None, ge=1, le=1024, description="Rank of the LoRA matrices; null means 8.")
    alpha: float | None = Field(default=None, gt=0, description="The LoRA is scaled by alpha / rank; null means rank.")
    targets: Literal["attention", "linear"] | Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="Layers that get a LoRA: `attention` (which null means), `linear` (all of the transformer blocks), "
        "or name endings.",
    )
    start: UserPath | None = Field(
        default=None,
        description="A saved LoRA to go on with: a run, an adapter's folder, or a .safetensors file in the form of "
        "diffusers or kohya. Rank, alpha and targets are its own.",
    )


class ModelSection(Section):
    """The base model; in YAML a name alone will do."""

    name: str = Field(min_length=1, description="Base model: name of a plug-in, folder in diffusers layout, or hub id.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the base model's plug-in.")
    dtype: Dtype = Field(default="float32", description="Number format of the networks; all else is float32.")
    train: Literal["lora", "full"] = Field(
        default="lora",
        description="`lora`, or `full`: all weights of the denoiser: 16 bytes each on the device, 12 in a checkpoint "
        "(4 more with train.ema_decay); use a learning_rate near 1e-5.",
    )
    lora: LoraSection = Field(default_factory=LoraSection, description="The LoRA that is trained.")
    compile: bool = Field(
        default=False,
        description="Compile the transformer blocks of the denoiser with torch.compile. On CUDA the other blocks of "
        "UNet and VAE are computed channels-last by Triton kernels, and whole passes of the denoiser are recorded as "
        "CUDA graphs, which keep the memory of an update: about 50 s of waiting in the first epoch, then faster "
        "epochs. On CPU and MPS the decoder's blocks are compiled too; on a CPU that was slower. It needs a C++ "
        "compiler, and on CUDA Triton.",
    )


class RolloutSection(Section):
    """How pictures are drawn to learn from."""

    pairs: int = Field(
        default=32, ge=1, le=MANY, description="Prompts drawn an epoch, each with the objective's rollouts."
    )
    steps: int = Field(default=4, ge=1, le=1000, description="Denoising steps of a rollout.")
    transition: Transition = Field(
        default="ddim",
        description="How a step goes from the clean estimate to less noise: `ddim` (with eta 1 DDPM's own), `renoise` "
        "as consistency models (LCM) draw, `cps` or `sde` for flow models. The first three learnt alike.",
    )
    eta: float = Field(default=1.0, ge=0, le=1, description="Share of fresh noise in a ddim, cps or sde step.")
    offload: bool = Field(
        default=False,
        description="Keep an epoch's states and clean estimates in the CPU's memory: for long rollouts of big latents.",
    )


class TrainSection(Section):
    """How the adapter learns from the scored rollouts."""

    epochs: int = Field(default=16, ge=1, le=MANY, description="Rounds of drawing, scoring and updating.")
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        default="adamw",
        description="`adamw`, or `adamw8bit`: its two moments take a byte each in place of four; "
        "`pip install 'sdpo-cli[adamw8bit]'`.",
    )
    learning_rate: float = Field(default=3e-4, gt=0, le=1000, description="Step size of AdamW.")
    batch: Count | Literal["all"] = Field(default="all", description="Pairs in one optimiser step: a number, or `all`.")
    micro_batch: Count | Literal["auto"] = Field(
        default="auto",
        description="Pairs in one pass forward and back, a number or `auto`; it changes memory and speed alone.",
    )
    decode_batch: Count | Literal["auto"] = Field(
        default="auto",
        description="Pictures decoded at once, a number or `auto`: those of `micro_batch` pairs. Fewer save memory.",
    )
    max_grad_norm: float = Field(default=1.0, gt=0, description="Longer gradients are scaled down to this norm.")
    kl: float = Field(
        default=0.0,
        ge=0,
        description="Weight in the loss of the KL divergence from the base model, nats per latent element; it costs a "
        "network evaluation an action.",
    )
    weight_decay: float = Field(default=1e-4, ge=0, description="Weight decay of AdamW.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay of the mean gradient.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's decay of the mean squared gradient.")
    epsilon: float = Field(default=1e-8, gt=0, description="AdamW's term that keeps the division finite.")
    ema_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Above 0, the adapter that is saved, shown and evaluated is an exponential moving average of the "
        "trained weights, which keeps so much of itself at every update (0.9: about the last 10 updates); rollouts and "
        "updates go on with the weights. It takes 4 more bytes a weight, on the device and in a checkpoint.",
    )
    checkpoint_every: int = Field(default=1, ge=1, le=MANY, description="Epochs between checkpoints.")
    keep_last: int = Field(default=2, ge=1, le=MANY, description="Checkpoints kept; older ones are deleted.")
    reward_timeout: float = Field(
        default=REWARD_TIMEOUT, gt=0, description="Seconds a reward may take for one batch of pictures."
    )
    samples_every: int = Field(default=4, ge=0, le=MANY, description="Epochs between picture grids; 0 means none.")
    device: Device = Field(
        default="auto",
        description="torch device, such as `cpu` or `cuda:1`; `auto` takes an accelerator where there is one.",
    )


class EvalSection(Section):
    """How the adapter is compared with the base model."""

    steps: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        default=(1, 2, 4, 8), description="Step counts to draw with."
    )
    every: int = Field(
        default=0, ge=0, le=MANY, description="Epochs between evaluations; 0 means one at the end alone."
    )
    images_per_prompt: int = Field(
        default=2, ge=1, le=MANY, description="Pictures drawn for each prompt and step count."
    )
    rewards: RewardChoices = Field(default=(), description="Scored beside the trained rewards, never trained on.")
    prompts: OneChoice | None = Field(default=None, description="Prompts to evaluate on; null means those of training.")
    batch: int = Field(default=64, ge=1, le=MANY, description="Pictures drawn at once.")


class KeepBestSection(Section):
    """Which evaluated epoch's weights become the run's adapter."""

    measure: str | None = Field(
        default=None,
        description="The adapter kept is that of the evaluated epoch where this is highest among those that break no "
        "rule of `guard.stop_if`: a reward's name, `diversity`, or `kl_base`; null means the last epoch's is kept.",
    )
    steps: Annotated[tuple[Count, ...], Field(min_length=1)] | None = Field(
        default=None, description="Step counts it is averaged over; null means all of `eval.steps`."
    )
    goal: Literal["highest", "lowest"] = Field(default="highest", description="`highest`, or `lowest`.")


class StopRule(Section):
    """A limit that an evaluation must keep: one of `below`, `above` and `drop`, in the measure's units."""

    measure: str = Field(description="A reward's name, `diversity`, or `kl_base`.")
    steps: Annotated[tuple[Count, ...], Field(min_length=1)] | None = Field(
        default=None, description="Step counts it is averaged over; null means all of `eval.steps`."
    )
    below: float | None = Field(default=None, description="Broken where the measure is below this.")
    above: float | None = Field(default=None, description="Broken where the measure is above this.")
    drop: float | None = Field(default=None, gt=0, description="Broken where it fell by more than this.")
    since: Literal["base", "best"] = Field(
        default="base", description="What `drop` counts from: the base model, or the highest value so far."
    )
    patience: int = Field(
        default=1, ge=1, le=MANY, description="Evaluations in a row that must break it before the guard acts."
    )

    @model_validator(mode="after")
    def one_limit(self) -> "StopRule":
        """ValueError unless there is exactly one limit."""
        if sum(limit is not None for limit in (self.below, self.above, self.drop)) != 1:
            raise ValueError("needs one of below, above and drop")
        return self


class RollbackSection(Section):
    """What happens when a rule is broken, in place of stopping."""

    times: int = Field(
        default=0,
        ge=0,
        le=MANY,
        description="How often the guard goes back to the kept epoch's weights and trains on, before it stops.",
    )
    lr_factor: float = Field(default=0.5, gt=0, le=1, description="Factor of the learning rate at each going back.")


class GuardSection(Section):
    """Rules that act on the evaluations of a run."""

    keep_best: KeepBestSection = Field(default_factory=KeepBestSection, description="Which epoch is kept.")
    stop_if: tuple[StopRule, ...] = Field(
        default=(),
        description="Rules that end training: `{measure, steps, below or above or drop, since, patience}`; "
        "see docs/guard.md.",
    )
    rollback: RollbackSection = Field(default_factory=RollbackSection, description="Going back in place of stopping.")

    @property
    def on(self) -> bool:
        """Whether there is anything to watch."""
        return self.keep_best.measure is not None or bool(self.stop_if)


class Recipe(Section):
    """A whole training run."""

    name: RunName | None = Field(default=None, description="Name of the run; null means the recipe file's name.")
    model: ModelSection = Field(description="The base model and the adapter on it.")
    prompts: OneChoice = Field(description="Prompts to train on: a prompt source, or a text, JSONL or CSV file.")
    reward: RewardChoices = Field(
        min_length=1,
        description="One reward, or several. `weight` (1.0) and `normalise` (`raw`; or `prompt`: standardised over a "
        "prompt's pictures of the epoch before it is weighed) stand among the options of each.",
    )
    rollout: RolloutSection = Field(default_factory=RolloutSection, description="How pictures are drawn to learn from.")
    objective: OneChoice = Field(default=Choice(name="sdpo"), description="What is learnt from the scored rollouts.")
    train: TrainSection = Field(default_factory=TrainSection, description="How the adapter learns.")
    eval: EvalSection = Field(default_factory=EvalSection, description="How the adapter is compared with the base.")
    guard: GuardSection = Field(default_factory=GuardSection, description="Rules that act on the evaluations.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Everything random in the run follows from it.")
