"""Qwen-Image with a Lightning LoRA merged into it, through diffusers' own QwenImagePipeline."""

from typing import Any

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.tensors import Conditioning
from sdpo_model_flow.base import FlowModel, Layout, padded
from sdpo_model_flow.packing import pack, unpack


class QwenImage(FlowModel):
    """A Qwen-Image pipeline as a base model. Its VAE is a film's: a picture is a film of one frame."""

    pipeline_class = QwenImagePipeline
    transformer_class = QwenImageTransformer2DModel

    @classmethod
    def layout(cls, pipeline: Any) -> Layout:
        """One token is 2 latent positions wide and holds their channels."""
        cell = pipeline.vae_scale_factor
        return Layout(pipeline.transformer.config.in_channels // 4, cell, 2 * cell, pipeline.default_sample_size * cell)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Qwen2.5-VL's states of the prompt, zeros behind [B L D], and what of them is text [B L]."""
        length = self.own_default("max_sequence_length")
        embeds, mask = self.pipeline.encode_prompt(prompts, self.device, max_sequence_length=length)
        rows = list(embeds) if mask is None else [row[own.bool()] for row, own in zip(embeds, mask, strict=True)]
        embeds, mask = padded(rows, length)
        return {"prompt_embeds": embeds, "prompt_mask": mask}

    def velocity(
        self, x_t: Float[Tensor, "B C H W"], timestep: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The transformer's output, unpacked; it reads as much text as the longest prompt has."""
        height, width = x_t.shape[-2:]
        longest = int(conditioning["prompt_mask"].sum(1).max())
        mask = conditioning["prompt_mask"][:, :longest]
        tokens = self.denoiser(
            hidden_states=pack(x_t),
            timestep=timestep.to(x_t.dtype) / 1000,
            guidance=None,
            encoder_hidden_states=conditioning["prompt_embeds"][:, :longest],
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            img_shapes=[[(1, height // 2, width // 2)]] * len(x_t),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    def to_latents(self, x0: Float[Tensor, "B C H W"], vae: Any) -> Float[Tensor, "B C 1 H W"]:
        """One frame, with the mean and spread of each channel that the VAE's settings name."""
        mean, std = (torch.tensor(numbers, device=x0.device)[:, None, None] for numbers in spread(vae))
        return (x0 * std + mean)[:, :, None]

    @torch.no_grad()
    def decode_with(self, vae: Any, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 h w"]:
        """The one frame."""
        film = vae.decode(self.to_latents(x0, vae).to(vae.dtype)).sample
        clamped: Tensor = (film[:, :, 0].float() / 2 + 0.5).clamp(0, 1)
        return clamped


def spread(vae: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel."""
    return vae.config.latents_mean, vae.config.latents_std
