"""FLUX.1, such as schnell, through diffusers' own FluxPipeline."""

from typing import Any

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.tensors import Conditioning
from sdpo_model_flow.base import FlowModel, Layout
from sdpo_model_flow.packing import pack, unpack

SCHNELL_TEXT_LENGTH = 256
"""T5 tokens that schnell was distilled with; the pipeline's own default is dev's.

Source: the model card of black-forest-labs/FLUX.1-schnell.
"""


class Flux(FlowModel):
    """A FLUX.1 pipeline as a base model; `dev` is told its guidance, `schnell` has none."""

    pipeline_class = FluxPipeline
    transformer_class = FluxTransformer2DModel
    has_tiny_vae = True

    @classmethod
    def layout(cls, pipeline: Any) -> Layout:
        """One token is 2 latent positions wide and holds their channels."""
        cell = pipeline.vae_scale_factor
        return Layout(pipeline.transformer.config.in_channels // 4, cell, 2 * cell, pipeline.default_sample_size * cell)

    @classmethod
    def built_in_guidance(cls, pipeline: Any) -> float | None:
        """The pipeline's own for `dev`."""
        return float(cls.own_default("guidance_scale")) if pipeline.transformer.config.guidance_embeds else None

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """T5's states [B L D] and CLIP's pooled vector [B P]."""
        distilled = self.guidance is None
        length = SCHNELL_TEXT_LENGTH if distilled else self.own_default("max_sequence_length")
        embeds, pooled, _ = self.pipeline.encode_prompt(prompts, None, self.device, max_sequence_length=length)
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def velocity(
        self, x_t: Float[Tensor, "B C H W"], timestep: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The transformer's output, unpacked."""
        height, width = x_t.shape[-2:]
        states = conditioning["prompt_embeds"]
        places = self.pipeline._prepare_latent_image_ids(len(x_t), height // 2, width // 2, x_t.device, x_t.dtype)
        tokens = self.denoiser(
            hidden_states=pack(x_t),
            timestep=timestep.to(x_t.dtype) / 1000,
            guidance=self.guidance_of(len(x_t)),
            pooled_projections=conditioning["pooled_prompt_embeds"],
            encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3, device=x_t.device, dtype=x_t.dtype),
            img_ids=places,
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)
