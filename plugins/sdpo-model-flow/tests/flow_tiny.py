"""A tiny random pipeline of every family, of the real diffusers and transformers classes, saved in diffusers layout."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from flow_texts import QWEN, WIDTH, clip, clip_tokenizer, gemma_tokenizer, qwen_tokenizer, t5
from torch import nn

CHANNELS = 4


@dataclass(frozen=True)
class Tiny:
    """How one family's tiny pipeline is made and drawn with.

    Attributes:
        make: the pipeline.
        options: of its plug-in, so that pictures are small.
        call: arguments with which the official pipeline draws as we do.
    """

    make: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)


def save(family: str, folder: Path) -> Path:
    """The family's tiny pipeline in diffusers layout."""
    torch.manual_seed(0)
    pipeline = TINY[family].make()
    for name, network in pipeline.components.items():
        if isinstance(network, nn.Module):
            spread(network, 0.5 if name == "transformer" else 0.2)
    pipeline.save_pretrained(folder)
    return folder


@torch.no_grad()
def spread(network: nn.Module, size: float) -> None:
    """Give every matrix a spread at which the prompt, the time and each position make a difference."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            scale = size / parameter[0].numel() ** 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def vae(**settings: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=1.5,
        shift_factor=0.06,
        **settings,
    )


def scheduler(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def sd3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    encoder, tokenizer = t5(2 * WIDTH)
    return diffusers.StableDiffusion3Pipeline(
        transformer,
        scheduler(shift=3.0),
        vae(),
        clip(True),
        clip_tokenizer(),
        clip(True),
        clip_tokenizer(),
        encoder,
        tokenizer,
    )


def flux(guided: bool = False) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=guided,
    )
    encoder, tokenizer = t5(WIDTH)
    levels = scheduler(use_dynamic_shifting=guided)
    return diffusers.FluxPipeline(levels, vae(), clip(False), clip_tokenizer(), encoder, tokenizer, transformer)


def flux2() -> Any:
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    decoder = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=16,
    )
    decoder.bn.running_mean += torch.linspace(-0.3, 0.3, 4 * CHANNELS)
    decoder.bn.running_var *= torch.linspace(0.5, 2, 4 * CHANNELS)
    encoder = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(num_hidden_layers=28, **QWEN))
    levels = scheduler(use_dynamic_shifting=True, shift=3.0)
    return diffusers.Flux2KleinPipeline(levels, decoder, encoder, qwen_tokenizer(), transformer, is_distilled=True)


def sana() -> Any:
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=16,
        guidance_embeds=True,
        qk_norm="rms_norm_across_heads",
        timestep_scale=1000.0,
    )
    decoder = diffusers.AutoencoderDC(
        latent_channels=CHANNELS,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    )
    config = transformers.Gemma2Config(num_hidden_layers=1, sliding_window=512, query_pre_attn_scalar=16, **QWEN)
    return diffusers.SanaSprintPipeline(
        gemma_tokenizer(), transformers.Gemma2Model(config), decoder, transformer, diffusers.SCMScheduler()
    )


def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=CHANNELS,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 32, 32],
    )
    encoder = transformers.Qwen3Model(transformers.Qwen3Config(num_hidden_layers=2, **QWEN))
    return diffusers.ZImagePipeline(scheduler(shift=3.0), vae(), encoder, qwen_tokenizer(), transformer)


def qwen_image(**levels: Any) -> Any:
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    decoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=CHANNELS,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[2.0, 1.5, 1.0, 0.5],
    )
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": WIDTH}
    rope = {"type": "mrope", "mrope_section": [2, 3, 3], "rope_type": "default"}
    text = {"num_hidden_layers": 2, "rope_parameters": rope, **QWEN}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return diffusers.QwenImagePipeline(
        scheduler(**{"use_dynamic_shifting": True, "shift_terminal": None, **levels}),
        decoder,
        transformers.Qwen2_5_VLForConditionalGeneration(config),
        qwen_tokenizer(),
        transformer,
    )


SMALL = {"height": 16, "width": 24}
NO_CFG = {"guidance_scale": 0.0}

TINY = {
    "sd3": Tiny(sd3, {"height": 16, "width": 12}, NO_CFG),
    "flux": Tiny(flux, SMALL, {"max_sequence_length": 256}),
    "flux-dev": Tiny(lambda: flux(guided=True), SMALL),
    "flux2-klein": Tiny(flux2, SMALL, {"guidance_scale": 1.0}),
    "sana-sprint": Tiny(sana, {"height": 32, "width": 64}, {"use_resolution_binning": False}),
    "z-image": Tiny(z_image, SMALL, NO_CFG),
    "qwen-image": Tiny(qwen_image, SMALL, {"true_cfg_scale": 1.0}),
}
