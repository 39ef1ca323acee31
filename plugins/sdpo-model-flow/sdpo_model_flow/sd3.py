"""Stable Diffusion 3 and 3.5, such as 3.5-Large-Turbo, through diffusers' own StableDiffusion3Pipeline."""

from collections.abc import Sequence
from typing import Any

from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api import UsageError
from sdpo_cli.api.tensors import Conditioning
from sdpo_model_flow.base import FlowModel, Layout
from sdpo_model_flow.options import FlowOptions


class StableDiffusion3(FlowModel):
    """An SD3 pipeline as a base model."""

    pipeline_class = StableDiffusion3Pipeline
    transformer_class = SD3Transformer2DModel
    has_tiny_vae = True

    def __init__(self, pipeline: Any, source: str, options: FlowOptions) -> None:
        super().__init__(pipeline, source, options)
        longest = self.denoiser.config.pos_embed_max_size * self.layout(pipeline).multiple
        for name, positions in zip(("height", "width"), self.latent_shape[1:], strict=True):
            pixels = positions * pipeline.vae_scale_factor
            if pixels > longest:
                raise UsageError(
                    f"the transformer knows no places beyond {longest} pixels",
                    place=f"model.options.{name}",
                    remedy=f"use {longest} or less",
                )

    @classmethod
    def layout(cls, pipeline: Any) -> Layout:
        """One token is `patch_size` latent positions wide."""
        cell = pipeline.vae_scale_factor
        channels = pipeline.transformer.config.in_channels
        return Layout(channels, cell, cell * pipeline.patch_size, pipeline.default_sample_size * cell)

    def sigmas(self, steps: int) -> Sequence[float] | None:
        """The scheduler chooses."""
        return None

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """States of both CLIPs and T5 [B L D], and the CLIPs' pooled vectors [B P]."""
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def velocity(
        self, x_t: Float[Tensor, "B C H W"], timestep: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The transformer's output."""
        velocity: Tensor = self.denoiser(
            hidden_states=x_t,
            timestep=timestep,
            encoder_hidden_states=conditioning["prompt_embeds"],
            pooled_projections=conditioning["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return velocity
