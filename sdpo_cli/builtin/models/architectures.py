"""What the known checkpoints are made of, so that their speed can be measured without their weights. Imports no torch.

Source: the config.json files of the checkpoints in `known.py`, where they differ from the classes' own defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdpo_cli.builtin.models.known import Known

Settings = Mapping[str, Any]

DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
SD1_UNET: Settings = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN),
    "up_block_types": (UP, CROSS_UP, CROSS_UP, CROSS_UP),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SD2_UNET: Settings = {
    **SD1_UNET,
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
SDXL_UNET: Settings = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN),
    "up_block_types": (CROSS_UP, CROSS_UP, UP),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE: Settings = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
SDXL_VAE: Settings = {**VAE, "scaling_factor": 0.13025, "force_upcast": True, "sample_size": 1024}
CLIP_L: Settings = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_H: Settings = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "projection_dim": 512,
}
CLIP_BIG_G: Settings = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
NOISE: Settings = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@dataclass(frozen=True)
class Architecture:
    """The settings of a pipeline's parts: its UNet, VAE, text encoders and scheduler; SDXL has two encoders."""

    unet: Settings
    vae: Settings
    texts: tuple[Settings, ...]
    scheduler_class: str
    scheduler: Settings


def architecture(row: Known) -> Architecture:
    """What a known checkpoint is made of."""
    scheduler_class = "DDIMScheduler"
    if row.name.endswith("-turbo"):
        scheduler_class = "EulerAncestralDiscreteScheduler" if row.xl else "EulerDiscreteScheduler"
    elif row.schedule == "LCM":
        scheduler_class = "LCMScheduler"
    scheduler = {**NOISE, "timestep_spacing": "trailing" if row.name.endswith("-turbo") else "leading"}
    if scheduler_class in ("DDIMScheduler", "LCMScheduler"):
        scheduler |= {"clip_sample": False, "set_alpha_to_one": False}
    told = {"sample_size": row.size // 8, "time_cond_proj_dim": 256 if row.guidance.endswith("embedded") else None}
    if row.xl:
        return Architecture({**SDXL_UNET, **told}, SDXL_VAE, (CLIP_L, CLIP_BIG_G), scheduler_class, scheduler)
    second = row.name == "sd-turbo"
    unet, text = (SD2_UNET, CLIP_H) if second else (SD1_UNET, CLIP_L)
    return Architecture({**unet, **told}, VAE, (text,), scheduler_class, scheduler)
