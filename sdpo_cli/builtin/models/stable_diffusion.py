"""Stable Diffusion 1 and 2, Turbo and LCM checkpoints, through diffusers' own StableDiffusionPipeline."""

from diffusers import StableDiffusionPipeline

from sdpo_cli.api.tensors import Conditioning
from sdpo_cli.builtin.models.unet import NEGATIVE, UNetModel


class StableDiffusion(UNetModel):
    """A Stable Diffusion pipeline as a base model; LatentConsistencyModelPipeline has the same components."""

    pipeline_class = StableDiffusionPipeline

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Text-encoder states [B L D], and with guidance those of the empty prompt."""
        embeds, negative = self.pipeline.encode_prompt(prompts, self.device, 1, self.guidance is not None)
        named = {"prompt_embeds": embeds, f"{NEGATIVE}prompt_embeds": negative}
        return {name: one for name, one in named.items() if one is not None}
