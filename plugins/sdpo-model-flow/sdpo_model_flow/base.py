"""What the transformer families share: picture sizes, guidance, and the flow-matching schedule and clean estimate.

One convention: x_t = α x0 + σ ε with α = 1 - t and σ = t, latents float32 [B C H W]; a family packs them inside
`velocity`. With ddim and η 0 a step is the Euler step of the pipeline's own scheduler.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from jaxtyping import Bool, Float
from torch import Tensor

from sdpo_cli.api import ArtifactError, UsageError
from sdpo_cli.api.diffusers_model import DiffusersModel
from sdpo_cli.api.pipelines import PipelineOptions
from sdpo_cli.api.tensors import Conditioning, Kernel, Sampler, Schedule
from sdpo_model_flow.options import FlowOptions


@dataclass(frozen=True)
class Layout:
    """How pictures become latents.

    Attributes:
        channels: of a latent.
        cell: side in pixels of one latent position.
        multiple: what height and width must be multiples of: the side in pixels of one token.
        default: height and width in pixels unless told otherwise.
    """

    channels: int
    cell: int
    multiple: int
    default: int


class TransformerModel(DiffusersModel):
    """Base of the families whose denoiser is a transformer.

    Attributes:
        transformer_class, scheduler_class: what the pipeline must hold.
        has_tiny_vae: whether diffusers' AutoencoderTiny exists for these latents.
        tokens: how many picture tokens the transformer sees.
        guidance: what the network is told, where guidance is built into it; else None.
    """

    component = "transformer"
    transformer_class: ClassVar[Any]
    scheduler_class: ClassVar[Any]
    has_tiny_vae: ClassVar[bool] = False

    def __init__(self, pipeline: Any, source: str, options: PipelineOptions) -> None:
        check_parts(type(self), pipeline, source)
        if options.tiny_vae and not self.has_tiny_vae:
            raise UsageError(
                f"no tiny VAE decodes the latents of {self.pipeline_class.__name__}",
                place="model.options.tiny_vae",
                remedy="leave it out",
            )
        super().__init__(pipeline, source, options)
        layout = self.layout(pipeline)
        height, width = picture_size(options, layout)
        self.latent_shape = (layout.channels, height // layout.cell, width // layout.cell)
        self.tokens = (height // layout.multiple) * (width // layout.multiple)
        self.guidance = accepted_guidance(options.guidance, self.built_in_guidance(pipeline))

    @classmethod
    def layout(cls, pipeline: Any) -> Layout:
        """How this pipeline's pictures become latents."""
        raise NotImplementedError

    @classmethod
    def built_in_guidance(cls, pipeline: Any) -> float | None:
        """The pipeline's own guidance scale where its network is told one; else None."""
        return None

    @classmethod
    def own_default(cls, name: str) -> Any:
        """What the pipeline itself takes for an argument that is not given."""
        return inspect.signature(cls.pipeline_class.__call__).parameters[name].default

    def guidance_of(self, pictures: int) -> Float[Tensor, " B"] | None:
        """The guidance scale of every picture, float32."""
        return None if self.guidance is None else torch.full([pictures], self.guidance, device=self.device)


class FlowModel(TransformerModel):
    """Base of the families that predict the velocity ε - x0."""

    scheduler_class = FlowMatchEulerDiscreteScheduler

    def __init__(self, pipeline: Any, source: str, options: FlowOptions) -> None:
        super().__init__(pipeline, source, options)
        if options.shift is not None:  # a merged pipeline then draws as it was trained to
            fixed = {"shift": options.shift, "use_dynamic_shifting": False, "shift_terminal": None}
            pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config, **fixed)
        self.scheduler = pipeline.scheduler
        noisy = self.scheduler.config.stochastic_sampling
        self.sampler = Sampler("renoise", 1.0) if noisy else Sampler("ddim", 0.0)

    def sigmas(self, steps: int) -> Sequence[float] | None:
        """The levels that the pipeline asks its scheduler for, before the shift; None where the scheduler chooses."""
        return np.linspace(1.0, 1 / steps, steps).tolist()

    def mu(self, steps: int) -> float:
        """The exponent of a shift that depends on the picture's size, as the pipeline computes it."""
        config = self.scheduler.config
        return calculate_shift(
            self.tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
        )

    def schedule(self, steps: int) -> Schedule:
        """The levels of the pipeline's own scheduler; the last step ends at the clean picture."""
        longest = self.scheduler.config.num_train_timesteps
        if not 1 <= steps <= longest:
            raise UsageError(f"{steps} steps cannot be sampled", place=self.source, remedy=f"use 1 to {longest} steps")
        schedule = flow_schedule(self.scheduler, steps, self.sigmas(steps), self.mu(steps))
        if not bool((schedule.sigma_next < schedule.sigma).all()):
            raise UsageError(
                f"its schedule has no {steps}-step form",
                place=self.source,
                remedy="use more steps, or a fixed shift (option shift)",
            )
        return schedule

    def denoise(
        self, x_t: Float[Tensor, "B C H W"], at: Kernel, conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The clean estimate x0 = x_t - σ v."""
        velocity = self.velocity(x_t.to(self.dtype), at.timestep, conditioning)
        x0: Tensor = x_t - at.sigma[:, None, None, None] * velocity.float()
        return x0

    def velocity(
        self, x_t: Float[Tensor, "B C H W"], timestep: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """ε - x0 by the network, in its dtype; `timestep` as the scheduler has it."""
        raise NotImplementedError


def flow_schedule(
    scheduler: FlowMatchEulerDiscreteScheduler, steps: int, sigmas: Sequence[float] | None, mu: float
) -> Schedule:
    """The S levels of a flow-matching scheduler, which is left as it was.

    There is no floor: σ falls to 0, so under cps and ddim the last step is deterministic. Nothing is lost: where an
    action is credited with the next estimate (credit `next`) the last one earns nothing.
    Source: diffusers `schedulers/scheduling_flow_match_euler_discrete.py`.
    """
    own = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
    with np.errstate(all="ignore"):  # what is not finite is refused by the caller
        own.set_timesteps(steps, sigmas=sigmas, mu=mu)
    sigma, sigma_next = own.sigmas[:-1].double(), own.sigmas[1:].double()
    return Schedule(own.timesteps.double(), 1 - sigma, sigma, 1 - sigma_next, sigma_next)


def check_parts(model_class: type[TransformerModel], pipeline: Any, source: str) -> None:
    """ArtifactError where the pipeline holds another transformer or scheduler than the family's."""
    wanted = {"transformer": model_class.transformer_class, "scheduler": model_class.scheduler_class}
    for name, kind in wanted.items():
        found = getattr(pipeline, name)
        if not isinstance(found, kind):
            raise ArtifactError(
                f"its {name} is a {type(found).__name__}, not a {kind.__name__}",
                place=source,
                remedy=f"name a {model_class.pipeline_class.__name__} as published",
            )


def picture_size(options: PipelineOptions, layout: Layout) -> tuple[int, int]:
    """Height and width in pixels. UsageError where they are no multiples of a token's side."""
    size = (options.height or layout.default, options.width or layout.default)
    for name, pixels in zip(("height", "width"), size, strict=True):
        if pixels % layout.multiple:
            raise UsageError(
                f"{pixels} is no multiple of {layout.multiple}",
                place=f"model.options.{name}",
                remedy=f"use {max(layout.multiple, pixels // layout.multiple * layout.multiple)}",
            )
    return size


def accepted_guidance(asked: float | None, built_in: float | None) -> float | None:
    """The guidance scale for the network. UsageError where more than 1 is asked for and the network takes none."""
    if built_in is None and (asked or 0) > 1:
        raise UsageError(
            f"{asked:g} cannot be had: the network takes no guidance, and few-step models draw without",
            place="model.options.guidance",
            remedy="leave it out",
        )
    return built_in if asked is None or built_in is None else asked


def padded(rows: Sequence[Float[Tensor, "_ D"]], length: int) -> tuple[Float[Tensor, "B L D"], Bool[Tensor, "B L"]]:
    """Texts of differing length as one tensor, zeros behind each, and the mask of what is text."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    full = torch.stack([torch.nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in rows])
    return full, torch.arange(length, device=full.device) < lengths[:, None]
