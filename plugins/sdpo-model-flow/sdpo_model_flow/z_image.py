"""Z-Image, such as Z-Image-Turbo, through diffusers' own ZImagePipeline."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.tensors import Conditioning
from sdpo_model_flow.base import FlowModel, Layout, padded

DEFAULT_SIZE = 1024
"""Height and width in pixels that ZImagePipeline draws unless told otherwise."""


class ZImage(FlowModel):
    """A Z-Image pipeline as a base model."""

    pipeline_class = ZImagePipeline
    transformer_class = ZImageTransformer2DModel
    has_tiny_vae = True

    @classmethod
    def layout(cls, pipeline: Any) -> Layout:
        """One token is 2 latent positions wide."""
        cell = pipeline.vae_scale_factor
        return Layout(pipeline.transformer.config.in_channels, cell, 2 * cell, DEFAULT_SIZE)

    def sigmas(self, steps: int) -> Sequence[float] | None:
        """The pipeline's own, which it rounds to float32."""
        return get_default_z_image_sigmas(steps)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Qwen3's states of the prompt alone, zeros behind [B L D], and what of them is text [B L]."""
        rows, _ = self.pipeline.encode_prompt(prompts, self.device, do_classifier_free_guidance=False)
        embeds, mask = padded(rows, self.own_default("max_sequence_length"))
        return {"prompt_embeds": embeds, "prompt_mask": mask}

    def velocity(
        self, x_t: Float[Tensor, "B C H W"], timestep: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The transformer's output negated: it predicts x0 - ε and counts time from noise to picture."""
        rows = zip(conditioning["prompt_embeds"], conditioning["prompt_mask"], strict=True)
        outputs = self.denoiser(
            list(x_t.unsqueeze(2)),
            (1000 - timestep) / 1000,
            [states[mask] for states, mask in rows],
            return_dict=False,
        )[0]
        return -torch.stack(outputs).squeeze(2)
