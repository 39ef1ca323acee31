"""Stable Diffusion UNets, through diffusers' own StableDiffusionPipeline."""

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api import LoadContext
from sdpo_cli.api.diffusers_model import DiffusersModel, load_pipeline
from sdpo_cli.api.pipelines import PipelineOptions
from sdpo_cli.api.tensors import Conditioning, Sampler
from sdpo_cli.builtin.models.ddim import ddim_schedule
from sdpo_cli.errors import ArtifactError, UsageError
from sdpo_cli.maths import Kernel, Schedule, model_output_to_x0


class StableDiffusion(DiffusersModel):
    """A Stable Diffusion pipeline as a base model: sampled without guidance, as distilled models are."""

    pipeline_class = StableDiffusionPipeline
    component = "unet"

    def __init__(self, pipeline: StableDiffusionPipeline, source: str, options: PipelineOptions) -> None:
        super().__init__(pipeline, source, options)
        if self.device.type == "cpu":
            self.vae.to(memory_format=torch.channels_last)  # a quarter less time to decode
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        size = self.denoiser.config.sample_size
        self.latent_shape = (self.denoiser.config.in_channels, size, size)
        self.sampler = Sampler(transition="ddim", eta=0.0)

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Text-encoder states [B L D]."""
        embeds, _ = self.pipeline.encode_prompt(prompts, self.device, 1, False)
        return {"prompt_embeds": embeds}

    def schedule(self, steps: int) -> Schedule:
        """DDIM levels, spaced as the checkpoint's scheduler says."""
        longest = self.scheduler.config.num_train_timesteps
        if not 1 <= steps <= longest:
            raise UsageError(f"{steps} steps cannot be sampled", place=self.source, remedy=f"use 1 to {longest} steps")
        return ddim_schedule(self.scheduler, steps)

    def denoise(
        self, x_t: Float[Tensor, "B C H W"], at: Kernel, conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The clean estimate from the UNet's epsilon, v or sample."""
        states = conditioning["prompt_embeds"]
        output = self.denoiser(x_t.to(states.dtype), at.timestep, encoder_hidden_states=states).sample
        return model_output_to_x0(output.float(), x_t, at.alpha, at.sigma, self.scheduler.config.prediction_type)


def load_stable_diffusion(options: PipelineOptions, context: LoadContext) -> StableDiffusion:
    """The checkpoint, on the context's device and in its dtype, frozen."""
    pipeline = load_pipeline(StableDiffusionPipeline, "unet", options, context)
    if pipeline.scheduler.config.get("prediction_type") not in ("epsilon", "v_prediction", "sample"):
        raise ArtifactError(
            "its scheduler names no known prediction type", place=options.path, remedy="see its model card"
        )
    return StableDiffusion(pipeline, options.path, options)
