"""SANA-Sprint, through diffusers' own SanaSprintPipeline.

Its TrigFlow has α = cos t, σ = sin t with t from π/2 to 0. The pipeline scales latents by the data's deviation
`sigma_data` and divides by it again wherever the network or the VAE reads them; here x_t is the quotient throughout.

Source: SANA-Sprint, arXiv 2503.09641; sCM, arXiv 2410.11081.
"""

from typing import Any

import torch
from diffusers import SanaSprintPipeline, SanaTransformer2DModel, SCMScheduler
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api import ArtifactError, UsageError
from sdpo_cli.api.pipelines import PipelineOptions
from sdpo_cli.api.tensors import Conditioning, Kernel, Sampler, Schedule
from sdpo_model_flow.base import Layout, TransformerModel


class SanaSprint(TransformerModel):
    """A SANA-Sprint pipeline as a base model: it predicts the clean picture and noises it again."""

    pipeline_class = SanaSprintPipeline
    transformer_class = SanaTransformer2DModel
    scheduler_class = SCMScheduler

    def __init__(self, pipeline: Any, source: str, options: PipelineOptions) -> None:
        super().__init__(pipeline, source, options)
        if not self.denoiser.config.guidance_embeds:
            raise ArtifactError(
                "its transformer is not told its guidance, so it is no Sprint model",
                place=source,
                remedy="use a SANA-Sprint checkpoint",
            )
        self.sampler = Sampler("renoise", 1.0)

    @classmethod
    def layout(cls, pipeline: Any) -> Layout:
        """One token is `patch_size` latent positions wide."""
        cell, config = pipeline.vae_scale_factor, pipeline.transformer.config
        return Layout(config.in_channels, cell, cell * config.patch_size, config.sample_size * cell)

    @classmethod
    def built_in_guidance(cls, pipeline: Any) -> float | None:
        """The pipeline's own."""
        return float(cls.own_default("guidance_scale"))

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Gemma's states of the prompt, behind the pipeline's instruction [B L D], and what of them is text [B L]."""
        embeds, mask = self.pipeline.encode_prompt(
            prompts,
            device=self.device,
            complex_human_instruction=self.own_default("complex_human_instruction"),
        )
        return {"prompt_embeds": embeds, "prompt_mask": mask}

    def schedule(self, steps: int) -> Schedule:
        """The angles of the pipeline's own scheduler; two steps go through the pipeline's own middle angle.

        There is no floor: the last step ends at the clean picture. Under credit `next` it earns nothing anyway.
        Source: diffusers `schedulers/scheduling_scm.py`.
        """
        own = SCMScheduler.from_config(self.pipeline.scheduler.config)
        longest = own.config.num_train_timesteps
        if not 1 <= steps <= longest:
            raise UsageError(f"{steps} steps cannot be sampled", place=self.source, remedy=f"use 1 to {longest} steps")
        middle = self.own_default("intermediate_timesteps") if steps == 2 else None
        own.set_timesteps(steps, max_timesteps=self.own_default("max_timesteps"), intermediate_timesteps=middle)
        angle = own.timesteps.double()
        alpha, sigma = angle.cos().clamp(min=0), angle.sin()  # the first angle is a little above π/2
        return Schedule(angle[:-1], alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])

    def denoise(
        self, x_t: Float[Tensor, "B C H W"], at: Kernel, conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The clean estimate x0 = cos(t) x_t - sin(t) F, from the network's flow-matching velocity.

        With s = sin t / (cos t + sin t) and n = √(s² + (1 - s)²), the network reads n x_t and gives v, and
        F = ((1 - 2 s) n x_t + (1 - 2 s + 2 s²) v) / n.
        Source: arXiv 2503.09641, section 3.1.
        """
        cos, sin = (one[:, None, None, None] for one in (at.timestep.cos(), at.timestep.sin()))
        share = sin / (cos + sin)
        norm = torch.sqrt(share**2 + (1 - share) ** 2)
        velocity = self.velocity(norm * x_t, share.flatten(), conditioning)
        flow = ((1 - 2 * share) * norm * x_t + (1 - 2 * share + 2 * share**2) * velocity) / norm
        x0: Tensor = cos * x_t - sin * flow
        return x0

    def velocity(
        self, x: Float[Tensor, "B C H W"], share: Float[Tensor, " B"], conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The transformer's output, float32."""
        guidance = self.guidance_of(len(x)).to(self.dtype) * self.denoiser.config.guidance_embeds_scale
        velocity: Tensor = self.denoiser(
            x.to(self.dtype),
            encoder_hidden_states=conditioning["prompt_embeds"],
            encoder_attention_mask=conditioning["prompt_mask"],
            guidance=guidance,
            timestep=share,
            return_dict=False,
        )[0]
        return velocity.float()
