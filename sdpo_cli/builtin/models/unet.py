"""What Stable Diffusion and SDXL have in common: a UNet, noise levels by a table of betas, guidance."""

import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.diffusers_model import DiffusersModel
from sdpo_cli.api.tensors import Conditioning
from sdpo_cli.builtin.models.noise import noise_of
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.errors import UsageError
from sdpo_cli.maths import Kernel, Schedule, model_output_to_x0

EMBEDDED_GUIDANCE = 8.0
"""Of a network that takes its guidance as an input: what the cards of the LCM checkpoints advise."""
NEGATIVE = "negative_"


class UNetModel(DiffusersModel):
    """A UNet pipeline as a base model. A family adds `encode_prompts`, and `added` where its UNet wants more.

    Attributes:
        guidance: scale of classifier-free guidance; None where each picture takes one pass through the network.
        guidance_embedding: what the network is told of guidance [1, D]; None where it takes no such input.
    """

    component = "unet"

    def __init__(self, pipeline: object, source: str, options: UNetOptions) -> None:
        super().__init__(pipeline, source, options)
        if self.device.type == "cpu":  # on an H100 it made everything a tenth slower
            self.vae.to(memory_format=torch.channels_last)  # a quarter less time to decode
        self.noise = noise_of(self.pipeline.scheduler, options)
        if {options.scheduler, options.timestep_spacing, options.prediction} != {"own"}:
            self.pipeline.scheduler = self.noise.scheduler  # a merged pipeline then draws as it was trained to
        self.sampler = self.noise.rule.sampler
        self.latent_shape = latent_shape(self.pipeline, options)
        width = self.denoiser.config.time_cond_proj_dim
        scale = options.guidance if options.guidance is not None else EMBEDDED_GUIDANCE
        self.guidance_embedding = None if width is None else self.embed_guidance(scale, width)
        guided = width is None and (options.guidance or 0) > 1
        self.guidance = options.guidance if guided else None

    def embed_guidance(self, scale: float, width: int) -> Float[Tensor, "1 D"]:
        """The embedding of a guidance scale, as the pipeline makes it: of the scale less 1."""
        embedded: Tensor = self.pipeline.get_guidance_scale_embedding(torch.tensor([scale - 1]), width)
        return embedded.to(self.device, self.dtype)

    def schedule(self, steps: int) -> Schedule:
        """The levels of the checkpoint's scheduler, or of the one that the options name."""
        return self.noise.schedule(steps)

    def denoise(
        self, x_t: Float[Tensor, "B C H W"], at: Kernel, conditioning: Conditioning
    ) -> Float[Tensor, "B C H W"]:
        """The clean estimate from the UNet's epsilon, v or sample."""
        output = self.guided(x_t.to(self.dtype), at.timestep, conditioning).float()
        x0 = model_output_to_x0(output, x_t, at.alpha, at.sigma, self.noise.prediction)
        return self.noise.finished(x0, x_t, at.timestep)

    def guided(self, x_t: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's output; with guidance the one without the prompt, moved away from: one doubled batch.

        Source: arXiv 2207.12598, with the scale written as 1 + w.
        """
        if self.guidance is None:
            return self.predict(x_t, timestep, conditioning)
        both = self.predict(torch.cat([x_t, x_t]), torch.cat([timestep, timestep]), with_negatives(conditioning))
        without, within = both.chunk(2)
        return without + self.guidance * (within - without)

    def predict(self, x_t: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """One pass through the UNet."""
        embedding = self.guidance_embedding
        output: Tensor = self.denoiser(
            x_t,
            timestep,
            encoder_hidden_states=conditioning["prompt_embeds"],
            timestep_cond=None if embedding is None else embedding.expand(len(x_t), -1),
            added_cond_kwargs=self.added(conditioning),
        ).sample
        return output

    def added(self, conditioning: Conditioning) -> dict[str, Tensor] | None:
        """What else the UNet is told."""
        return None


def with_negatives(conditioning: Conditioning) -> Conditioning:
    """The conditioning of the empty prompts, then that of the prompts; what has no negative stands for both."""
    named = {name: one for name, one in conditioning.items() if not name.startswith(NEGATIVE)}
    return {name: torch.cat([conditioning.get(NEGATIVE + name, one), one]) for name, one in named.items()}


def latent_shape(pipeline: object, options: UNetOptions) -> tuple[int, int, int]:
    """(C, H, W) of a latent: of the size that the options say, else of the UNet's own. UsageError where none fits."""
    factor, settings = pipeline.vae_scale_factor, pipeline.unet.config
    own = settings.sample_size
    height, width = (own, own) if isinstance(own, int) else own
    for name in ("height", "width"):
        pixels = getattr(options, name)
        if pixels is not None and pixels % factor:
            raise UsageError(
                f"{pixels} is no multiple of {factor}",
                place=f"model.options.{name}",
                remedy=f"use {max(factor, pixels // factor * factor)}",
            )
    height = options.height // factor if options.height else height
    width = options.width // factor if options.width else width
    return (settings.in_channels, height, width)
