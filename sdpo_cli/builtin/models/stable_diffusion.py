"""Stable Diffusion UNets, through diffusers' own StableDiffusionPipeline."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from sdpo_cli.api import LoadContext
from sdpo_cli.api.lora import add_lora, first_line, load_lora, lora_parameters, save_lora, without_lora
from sdpo_cli.api.tensors import AdapterOptions, Conditioning, Sampler
from sdpo_cli.builtin.models.ddim import ddim_schedule
from sdpo_cli.errors import ArtifactError, UsageError
from sdpo_cli.maths import Kernel, Schedule, model_output_to_x0


class StableDiffusion:
    """A Stable Diffusion pipeline as a base model: sampled without guidance, as distilled models are.

    The networks run in the pipeline's dtype; latents, schedules and clean estimates are float32.
    """

    def __init__(self, pipeline: StableDiffusionPipeline, source: str) -> None:
        self.pipeline, self.source = pipeline, source
        self.unet, self.vae = pipeline.unet, pipeline.vae
        if self.unet.device.type == "cpu":
            self.vae.to(memory_format=torch.channels_last)  # a quarter less time to decode
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        size = self.unet.config.sample_size
        self.latent_shape = (self.unet.config.in_channels, size, size)
        self.sampler = Sampler(transition="ddim", eta=0.0)
        self.device = torch.device(self.unet.device)
        self.identity = weights_fingerprint(self.unet, self.vae, pipeline.text_encoder)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Text-encoder states [B L D]."""
        embeds, _ = self.pipeline.encode_prompt(list(prompts), self.device, 1, False)
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
        output = self.unet(x_t.to(states.dtype), at.timestep, encoder_hidden_states=states).sample
        return model_output_to_x0(output.float(), x_t, at.alpha, at.sigma, self.scheduler.config.prediction_type)

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 h w"]:
        """The VAE's pictures, clamped to 0..1."""
        latents = x0 / self.vae.config.scaling_factor
        pictures = self.vae.decode(latents.to(self.vae.dtype)).sample
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def add_adapter(self, options: AdapterOptions) -> None:
        """A fresh LoRA on the UNet."""
        add_lora(self.unet, options)

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The LoRA's weights."""
        return lora_parameters(self.unet)

    def without_adapter(self) -> AbstractContextManager[None]:
        """The bare UNet while entered."""
        return without_lora(self.unet)

    def save_adapter(self, folder: Path) -> None:
        """A file that `pipeline.load_lora_weights(folder)` loads."""
        save_lora(StableDiffusionPipeline, "unet", self.unet, folder)

    def load_adapter(self, folder: Path) -> None:
        """A LoRA written by `save_adapter`, or any LoRA file that the pipeline itself would load."""
        load_lora(StableDiffusionPipeline, "unet", self.unet, folder)


def load_stable_diffusion(path: str, revision: str | None, context: LoadContext) -> StableDiffusion:
    """The checkpoint at `path`, safetensors only, on the context's device and in its dtype, frozen."""
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            path,
            revision=revision,
            dtype=getattr(torch, context.dtype),
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
            local_files_only=Path(path).is_dir(),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(
            f"not a loadable Stable Diffusion checkpoint ({first_line(error)})",
            place=path,
            remedy="name a folder in diffusers layout with safetensors weights",
        ) from error
    if pipeline.scheduler.config.get("prediction_type") not in ("epsilon", "v_prediction", "sample"):
        raise ArtifactError("its scheduler names no known prediction type", place=path, remedy="see its model card")
    pipeline.set_progress_bar_config(disable=True)
    for component in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        component.requires_grad_(False).eval()
    return StableDiffusion(pipeline.to(context.device), path)


def weights_fingerprint(*modules: nn.Module) -> str:
    """SHA-256, 16 digits, of every parameter's name and shape and of up to 64 of its values, evenly spread."""
    digest = hashlib.sha256()
    for module in modules:
        for name, parameter in module.named_parameters():
            flat = parameter.detach().flatten()
            some = flat[:: max(1, len(flat) // 64)][:64].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)} {some.tolist()}".encode())
    return digest.hexdigest()[:16]
