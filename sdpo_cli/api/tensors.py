"""What crosses the border between the engine and plug-ins at run time.

Axes: R rollouts of a prompt, B prompts or images, S steps (0 the noisiest), C H W a latent, H W a picture.
New needs become new optional fields of these records, never new arguments.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdpo_cli.maths import Kernel as Kernel
from sdpo_cli.maths import Schedule as Schedule
from sdpo_cli.maths.dense_reward import AnchorRule, Predictor
from sdpo_cli.maths.returns import Credit

Conditioning = Mapping[str, Tensor]
"""Everything a network needs to know about B prompts: named tensors whose axis 0 is the prompt."""


@dataclass(frozen=True)
class ScoreRequest:
    """Pictures to score.

    Attributes:
        images: RGB, 0..1, float32, on any device.
        prompts: the prompt of each picture; empty texts where there is none.
        metadata: what the prompt's source said about it, one mapping a picture.
    """

    images: Float[Tensor, "B 3 H W"]
    prompts: Sequence[str]
    metadata: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class ScoreResult:
    """The reward's answer.

    Attributes:
        values: float32, finite, higher is better.
        details: further numbers for the log, each [B].
    """

    values: Float[Tensor, " B"]
    details: Mapping[str, Float[Tensor, " B"]] = field(default_factory=dict)


@runtime_checkable
class Reward(Protocol):
    """Scores pictures. A picture's value must not depend on the others in the request."""

    def score(self, request: ScoreRequest) -> ScoreResult:
        """One value a picture. Called without gradients, one call at a time, in another thread than `load`."""
        ...


@runtime_checkable
class Identified(Protocol):
    """A reward whose numbers depend on something its record's version does not tell, such as what a server serves."""

    identity: str


@runtime_checkable
class ImageEmbedder(Protocol):
    """A reward that can also embed pictures; evaluation then measures diversity with it."""

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Unit vectors; similar pictures point the same way."""
        ...


@dataclass(frozen=True)
class Sampler:
    """How a model draws by default: a transition of `sdpo_cli.maths.TRANSITIONS` and its η in 0..1."""

    transition: str
    eta: float


@dataclass(frozen=True)
class AdapterOptions:
    """What to train: a LoRA, or all weights of the denoiser.

    Attributes:
        rank: rank of the LoRA.
        alpha: its scale is alpha / rank.
        targets: `attention` (q, k, v and output projections), `linear` (every linear layer of the transformer
            blocks), or module-name endings.
        seed: of its random initial weights.
        kind: `lora`, or `full`: the denoiser's own weights, in float32 whatever it computes in.
        start: file or folder of a LoRA to go on with; rank, alpha, targets and weights are its own.
    """

    rank: int = 8
    alpha: float = 8.0
    targets: Literal["attention", "linear"] | Sequence[str] = "attention"
    seed: int = 0
    kind: Literal["lora", "full"] = "lora"
    start: Path | None = None


@runtime_checkable
class BaseModel(Protocol):
    """A few-step text-to-image model.

    Attributes:
        latent_shape: (C, H, W) of one picture's latent.
        sampler: how it draws unless told otherwise.
        identity: changes whenever the weights do; a checkpoint refuses another one.
        source: what loads it in diffusers: a hub id or folder.
        device: where latents are wanted.
    """

    latent_shape: tuple[int, int, int]
    sampler: Sampler
    identity: str
    source: str
    device: torch.device

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of B prompts, on `device`, without gradients."""
        ...

    def schedule(self, steps: int) -> Schedule:
        """The levels this model visits in `steps` steps. UsageError where it cannot."""
        ...

    def denoise(
        self, x_t: Float[Tensor, "B C H W"], at: Kernel, conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The clean estimate x0, float32, whatever the network predicts. `at` holds each picture's level, [B]."""
        ...

    def decode(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 h w"]:
        """Pictures 0..1, float32, without gradients."""
        ...

    def add_adapter(self, options: AdapterOptions) -> None:
        """Make ready to train what `options` say; only a LoRA to go on with changes pictures before it is trained."""
        ...

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The adapter's weights by stable names, float32; empty without an adapter."""
        ...

    def without_adapter(self) -> AbstractContextManager[None]:
        """While entered, the base model draws alone."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter so that diffusers loads it: a LoRA with the pipeline's `load_lora_weights(folder)`, a fully
        trained denoiser with its class's `from_pretrained(folder)`.
        """
        ...

    def load_adapter(self, folder: Path) -> None:
        """Put a saved adapter on the network. ArtifactError where it does not fit."""
        ...


@runtime_checkable
class Mergeable(Protocol):
    """A base model that can be written with its adapter merged in; `sdpo export --format merged` needs it."""

    def save_merged(self, folder: Path, *, denoiser_only: bool = False) -> None:
        """Write the whole pipeline in diffusers layout, or its denoiser alone; afterwards there is no adapter."""
        ...


@runtime_checkable
class Compilable(Protocol):
    """A base model whose networks may be compiled: `denoise` is then given as many pictures every time."""

    compiled: bool


@runtime_checkable
class Offloader(Protocol):
    """A base model that may keep its text encoders off the device until prompts come: few visits are cheaper."""

    offloads_encoders: bool

    def encoders_at_hand(self) -> AbstractContextManager[None]:
        """While entered, also within itself, the text encoders are on the device."""
        ...


@runtime_checkable
class Previewer(Protocol):
    """A base model that can also decode cheaply. Training rewards such pictures and logs how far off they are.

    Attributes:
        previews: whether it is to be used so.
    """

    previews: bool

    def decode_preview(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 h w"]:
        """Pictures as `decode` gives them, nearly."""
        ...


@dataclass(frozen=True)
class LearningPlan:
    """What an objective needs the engine to do before its loss.

    Attributes:
        rollouts: R, rollouts of one prompt.
        shared_noise: whether the rollouts of a prompt start from the same noise.
        antithetic: whether every second rollout of a prompt takes, at every step, the negative of the noise that the
            one before it takes; each by itself is drawn as ever.
        branched: whether the rollouts of a prompt differ in the noise of one action alone, drawn for each prompt of an
            epoch, and are the same before it; only that action is learnt from.
        dense: `anchors`: reward at first, last and anchor step, the rest predicted; `exact`: queried at every step;
            `final`: the last clean estimate's reward stands for every step.
        anchor: rule for the anchor step.
        predictor: how the rewards between the queried ones are predicted; see `sdpo_cli.maths`.
        credit: which clean estimate's reward an action is credited with.
        gamma: discount of later rewards.
        advantage: what a return is compared with: `prompt`, the latest returns of its prompt at its step; `group`, the
            other rollouts of its prompt in this epoch.
        statistics_size, statistics_min_count: of the per-prompt return statistics.
        advantage_clip: limit of the advantages, in standard deviations.
        updates: `shuffled`: an optimiser step for one action of each prompt in the batch, every prompt's actions in an
            order of its own; `accumulated`: one optimiser step for all actions of a batch, each with its own loss;
            `trajectory`: one optimiser step for whole trajectories, whose actions the loss sees together.
        reference: whether the loss compares with the base model, the adapter left out.
    """

    rollouts: int = 2
    shared_noise: bool = True
    antithetic: bool = False
    branched: bool = False
    dense: Literal["anchors", "exact", "final"] = "anchors"
    anchor: AnchorRule = "interior"
    predictor: Predictor = "cosine"
    credit: Credit = "next"
    gamma: float = 0.99
    advantage: Literal["prompt", "group"] = "prompt"
    statistics_size: int = 32
    statistics_min_count: int = 16
    advantage_clip: float = 5.0
    updates: Literal["shuffled", "accumulated", "trajectory"] = "shuffled"
    reference: bool = False

    def __post_init__(self) -> None:
        """ValueError where branched rollouts would not be one up to the branch, or actions earn nothing."""
        if self.branched and not (self.shared_noise and self.credit != "current"):
            raise ValueError("branched rollouts need shared_noise and a credit other than current")
        if self.credit == "gain" and (self.dense == "final" or not self.shared_noise):
            raise ValueError("credit gain needs shared_noise and the rewards of more steps than the last")


@dataclass(frozen=True)
class LossBatch:
    """One action of each of B prompts, for all R rollouts. Log-probabilities are means over latent elements.

    With `LearningPlan.updates` `trajectory`, all actions of each prompt: every shape has a last axis, the actions.

    Attributes:
        log_prob_new: under the policy being trained; carries the gradient.
        log_prob_old: under the policy that sampled.
        advantage: clipped, in standard deviations.
        step: which step of its trajectory each action is; the same for a prompt's rollouts.
        log_prob_reference: under the base model; None unless `LearningPlan.reference` asks for it.
    """

    log_prob_new: Float[Tensor, "R B *actions"]
    log_prob_old: Float[Tensor, "R B *actions"]
    advantage: Float[Tensor, "R B *actions"]
    step: Int[Tensor, " B *actions"]
    log_prob_reference: Float[Tensor, "R B *actions"] | None = None


@dataclass(frozen=True)
class ObjectiveResult:
    """A loss, the mean over the B prompts, and further means over them for the log; each log entry detached."""

    loss: Float[Tensor, ""]
    metrics: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)


@runtime_checkable
class Objective(Protocol):
    """What is learnt from scored rollouts."""

    plan: LearningPlan

    def loss(self, batch: LossBatch) -> ObjectiveResult:
        """The loss to descend."""
        ...
