"""FLUX.2 klein, through diffusers' own Flux2KleinPipeline."""

from typing import Any

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from sdpo_cli.api.tensors import Conditioning
from sdpo_model_flow.base import FlowModel, Layout


class Flux2Klein(FlowModel):
    """A FLUX.2 klein pipeline as a base model. A latent position is a token: 2 x 2 of the VAE's, normalised."""

    pipeline_class = Flux2KleinPipeline
    transformer_class = Flux2Transformer2DModel

    @classmethod
    def layout(cls, pipeline: Any) -> Layout:
        """One token is one latent position."""
        cell = 2 * pipeline.vae_scale_factor
        default = pipeline.default_sample_size * pipeline.vae_scale_factor
        return Layout(pipeline.transformer.config.in_channels, cell, cell, default)

    def mu(self, steps: int) -> float:
        """The pipeline's fit, which knows the number of steps too."""
        return compute_empirical_mu(self.tokens, steps)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Three layers of Qwen3's states, side by side [B L D]; padding is text to this model."""
        embeds, _ = self.pipeline.encode_prompt(prompts, device=self.device)
        return {"prompt_embeds": embeds}

    def velocity(
        self, x_t: Float[Tensor, "B C H W"], timestep: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The transformer's output."""
        states = conditioning["prompt_embeds"]
        tokens = self.denoiser(
            hidden_states=x_t.flatten(2).mT,
            timestep=timestep.to(x_t.dtype) / 1000,
            guidance=None,
            encoder_hidden_states=states,
            txt_ids=self.pipeline._prepare_text_ids(states[:1]).to(x_t.device),
            img_ids=self.pipeline._prepare_latent_ids(x_t[:1]).to(x_t.device),
            return_dict=False,
        )[0]
        velocity: Tensor = tokens.mT.unflatten(2, x_t.shape[-2:])
        return velocity

    def to_latents(self, x0: Float[Tensor, "B C H W"], vae: Any) -> Float[Tensor, "B C4 H2 W2"]:
        """The VAE's own latents: the normalisation of its batch norm undone, 2 x 2 positions unfolded."""
        norm = vae.bn
        std = torch.sqrt(norm.running_var.float() + vae.config.batch_norm_eps)
        return pixel_shuffle(x0 * std[:, None, None] + norm.running_mean.float()[:, None, None], 2)
