"""SDXL, its Turbo, Lightning, Hyper and LCM checkpoints, through diffusers' own StableDiffusionXLPipeline."""

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from sdpo_cli.api.tensors import Conditioning
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.builtin.models.unet import NEGATIVE, UNetModel


class StableDiffusionXL(UNetModel):
    """An SDXL pipeline as a base model."""

    pipeline_class = StableDiffusionXLPipeline

    def __init__(self, pipeline: StableDiffusionXLPipeline, source: str, options: UNetOptions) -> None:
        super().__init__(pipeline, source, options)
        if self.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.to(torch.float32)  # its activations overflow in float16

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """States of both text encoders [B L D], the second one's pooled state [B P], the sizes told [B 6]."""
        embeds, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=self.guidance is not None
        )
        _, height, width = self.latent_shape
        pixels = [side * self.pipeline.vae_scale_factor for side in (height, width)]
        named = {
            "prompt_embeds": embeds,
            f"{NEGATIVE}prompt_embeds": negative,
            "text_embeds": pooled,
            f"{NEGATIVE}text_embeds": negative_pooled,
            "time_ids": torch.tensor([[*pixels, 0, 0, *pixels]], dtype=embeds.dtype).repeat(len(prompts), 1),
        }
        return {name: one.to(self.device) for name, one in named.items() if one is not None}

    def added(self, conditioning: Conditioning) -> dict[str, Tensor]:
        """The pooled state, and the picture's original size, crop and size."""
        return {name: conditioning[name] for name in ("text_embeds", "time_ids")}
