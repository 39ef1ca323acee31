"""A Stable Diffusion checkpoint as one file with LDM keys, the form in which most are shared."""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def renamed(key: str, names: dict[str, str]) -> str:
    """The key with the first of `names` that it has as its end, apart from weight or bias, put in its place."""
    module, _, kind = key.rpartition(".")
    for old, new in names.items():
        if module == old or module.endswith(f".{old}"):
            return f"{module.removesuffix(old)}{new}.{kind}"
    return key


def unet_key(key: str, unet: Any) -> str:
    """The LDM name of a UNet's tensor; one resnet, and an attention where there is one, is one numbered block."""
    stride = unet.config.layers_per_block + 1
    if middle := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", key):
        kind, number, rest = middle.groups()
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{renamed(rest, RESNET) if kind == 'resnets' else rest}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", key)
    if not found:
        return renamed(key, UNET_ENDS)
    way, block, kind, layer, rest = found.groups()
    if kind == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * stride}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        attends = hasattr(unet.up_blocks[int(block)], "attentions")
        return f"output_blocks.{int(block) * stride + stride - 1}.{1 + attends}.{rest}"
    number = int(block) * stride + int(layer) + (1 if way == "down" else 0)
    inner = f"0.{renamed(rest, RESNET)}" if kind == "resnets" else f"1.{rest}"
    return f"{'input' if way == 'down' else 'output'}_blocks.{number}.{inner}"


def vae_key(key: str, vae: Any) -> str:
    """The LDM name of a VAE's tensor; its decoder's blocks are counted from the other end."""
    last = len(vae.config.block_out_channels) - 1
    key = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{last - int(found[1])}", key)
    key = re.sub(r"down_blocks\.(\d)", r"down.\1", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    key = re.sub(r"(down|up)samplers\.0", r"\1sample", key)
    if "mid_block.attentions.0" in key:
        return renamed(key.replace("mid_block.attentions.0", "mid.attn_1"), ATTENTION)
    key = re.sub(r"\.resnets\.", ".block.", key)
    return renamed(key, {"conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out"})


def save_single_file(pipeline: Any, path: Path) -> Path:
    """Write the pipeline's networks as one LDM file."""
    tensors: dict[str, Tensor] = {}
    for key, value in pipeline.unet.state_dict().items():
        tensors[f"model.diffusion_model.{unet_key(key, pipeline.unet)}"] = value
    for key, value in pipeline.vae.state_dict().items():
        tensors[f"first_stage_model.{vae_key(key, pipeline.vae)}"] = value
    for key, value in pipeline.text_encoder.state_dict().items():
        tensors[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path
