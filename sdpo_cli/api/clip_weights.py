"""CLIP weights from files of several layouts, as the networks of transformers, with nothing left to defaults.

Sizes are read off the tensors. What tensors do not show (activation, number of heads, ε of the norms) is pinned by a
`ClipKind`, for a wrong one loads without a word and scores wrong. Pickles are read as plain tensors only.
"""

import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from sdpo_cli.api.lora import first_line
from sdpo_cli.errors import ArtifactError, UsageError

FILES = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
EPSILON = 1e-5

BLOCK = (
    ("attn.out_proj.", "self_attn.out_proj."),
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)
"""open_clip's names inside a transformer block, and transformers'."""

OUTSIDE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
"""open_clip's names outside the blocks, and transformers'."""


@dataclass(frozen=True)
class ClipKind:
    """What a checkpoint's tensors do not show.

    Attributes:
        name: for messages.
        activation: of the MLPs: OpenAI's `quick_gelu`, or the exact `gelu` of most open_clip models.
        image_heads, text_heads: attention heads of the two towers.
    """

    name: str
    activation: Literal["quick_gelu", "gelu"]
    image_heads: int
    text_heads: int


CLIP_L = ClipKind("OpenAI's CLIP ViT-L/14", "quick_gelu", image_heads=16, text_heads=12)
CLIP_H = ClipKind("open_clip's ViT-H-14", "gelu", image_heads=16, text_heads=16)


def weights_file(path: Path) -> Path:
    """The file of weights that `path` is, or holds under a usual name or alone.

    UsageError where nothing is there, ArtifactError where it is no such folder.
    """
    if path.is_dir():
        usual = [path / name for name in FILES if (path / name).is_file()]
        found = usual[:1] or list(path.glob("*.safetensors"))
        if len(found) != 1:
            remedy = f"it must hold {FILES[0]}, or one safetensors file"
            raise ArtifactError(f"{len(found)} files of weights in this folder", place=str(path), remedy=remedy)
        return found[0]
    if not path.is_file():
        raise UsageError("no such file or folder", place=str(path), remedy="name a file of weights or its folder")
    return path


def read_tensors(file: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The wanted tensors of a safetensors file, or of a pickle by `weights_only`, on the CPU, by name.

    A pickle's `state_dict` is entered; the leading `module.` and `model.` of wrapped networks are dropped.
    ArtifactError where the file cannot be read.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                return {_plain(name): opened.get_tensor(name) for name in opened.keys() if wanted(_plain(name))}  # noqa: SIM118
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        items = [(_plain(name), one) for name, one in loaded.get("state_dict", loaded).items()]
        return {name: one for name, one in items if isinstance(one, Tensor) and wanted(name)}
    except (OSError, RuntimeError, SafetensorError, UnpicklingError, EOFError, AttributeError, ValueError) as error:
        # torch's own text would advise to load the pickle with code and all
        reason = "not plain tensors" if isinstance(error, UnpicklingError) else first_line(error)
        fault = f"cannot be read as weights ({reason})"
        raise ArtifactError(fault, place=str(file), remedy="download it again, or convert it to safetensors") from error


def from_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors as transformers has them: q, k, v apart, projections transposed. Others stay as they are."""
    return dict(pair for name, tensor in weights.items() for pair in _renamed(name, tensor))


def image_network(kind: ClipKind, file: Path) -> CLIPVisionModelWithProjection:
    """The image tower in `file`, on the CPU in the file's dtype. ArtifactError where it is none of this kind."""
    weights = from_open_clip(read_tensors(file, lambda name: part_of(name) == "image"))
    network: CLIPVisionModelWithProjection = _loaded(CLIPVisionModelWithProjection, image_config, kind, weights, file)
    return network


def text_network(kind: ClipKind, file: Path) -> tuple[CLIPTextModelWithProjection, float]:
    """The text tower in `file` and exp(logit_scale). ArtifactError where it is none of this kind."""
    weights = from_open_clip(read_tensors(file, lambda name: part_of(name) == "text"))
    scale = weights.pop("logit_scale", None)
    if scale is None:
        raise ArtifactError("has no logit_scale", place=str(file), remedy=f"name weights of {kind.name}")
    return _loaded(CLIPTextModelWithProjection, text_config, kind, weights, file), float(scale.float().exp())


def part_of(name: str) -> Literal["image", "text", ""]:
    """Which tower a tensor of either layout belongs to (the logit scale: text); empty for stale buffers."""
    if name.endswith("position_ids"):
        return ""
    return "image" if name.startswith(("vision_model.", "visual_projection.", "visual.")) else "text"


def image_config(kind: ClipKind, weights: Mapping[str, Tensor]) -> CLIPVisionConfig:
    """The image tower's configuration. KeyError where a tensor is missing."""
    patches = weights["vision_model.embeddings.patch_embedding.weight"]
    positions = weights["vision_model.embeddings.position_embedding.weight"]
    return CLIPVisionConfig(
        hidden_size=patches.shape[0],
        patch_size=patches.shape[-1],
        image_size=isqrt(len(positions) - 1) * patches.shape[-1],
        num_attention_heads=kind.image_heads,
        projection_dim=len(weights["visual_projection.weight"]),
        **_common("vision_model", kind, weights),
    )


def text_config(kind: ClipKind, weights: Mapping[str, Tensor]) -> CLIPTextConfig:
    """The text tower's configuration; the end token is the vocabulary's last. KeyError where a tensor is missing."""
    tokens = weights["text_model.embeddings.token_embedding.weight"]
    return CLIPTextConfig(
        vocab_size=tokens.shape[0],
        hidden_size=tokens.shape[1],
        max_position_embeddings=len(weights["text_model.embeddings.position_embedding.weight"]),
        bos_token_id=tokens.shape[0] - 2,
        eos_token_id=tokens.shape[0] - 1,
        pad_token_id=tokens.shape[0] - 1,
        num_attention_heads=kind.text_heads,
        projection_dim=len(weights["text_projection.weight"]),
        **_common("text_model", kind, weights),
    )


def check_config(folder: Path, kind: ClipKind) -> None:
    """ArtifactError where the folder's `config.json` contradicts `kind`: then the weights are of another network."""
    path = folder / "config.json"
    if not path.is_file():
        return
    try:
        config: Any = CLIPConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"cannot be read ({first_line(error)})", place=str(path), remedy="mend it") from error
    for tower, part, heads in (
        ("vision", config.vision_config, kind.image_heads),
        ("text", config.text_config, kind.text_heads),
    ):
        pinned = {"hidden_act": kind.activation, "num_attention_heads": heads, "layer_norm_eps": EPSILON}
        for key, value in pinned.items():
            if getattr(part, key) != value:
                fault = f"{tower}_config.{key} is {getattr(part, key)!r}, not {value!r}"
                raise ArtifactError(fault, place=str(path), remedy=f"name weights of {kind.name}")


def _common(tower: str, kind: ClipKind, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the configurations of both towers say alike."""
    first_norms = re.compile(rf"{tower}\.encoder\.layers\.\d+\.layer_norm1\.weight")
    return {
        "num_hidden_layers": sum(map(bool, map(first_norms.fullmatch, weights))),
        "intermediate_size": len(weights[f"{tower}.encoder.layers.0.mlp.fc1.weight"]),
        "hidden_act": kind.activation,
        "layer_norm_eps": EPSILON,
        "attention_dropout": 0.0,
    }


def _loaded(network: Any, config: Any, kind: ClipKind, weights: dict[str, Tensor], file: Path) -> Any:
    """A `network` with exactly these weights. ArtifactError where they do not fit."""
    try:
        with torch.device("meta"):
            empty = network(config(kind, weights))
        empty.load_state_dict(weights, assign=True)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        fault = f"these are no weights of {kind.name} ({reason[:200]})"
        raise ArtifactError(fault, place=str(file), remedy="name another file") from error
    _fill_positions(empty)
    return empty.requires_grad_(False).train(False)


def _fill_positions(network: nn.Module) -> None:
    """Position numbers are no weights, so a network made on the meta device lacks them."""
    for module in network.modules():
        if isinstance(ids := getattr(module, "position_ids", None), Tensor):
            module.position_ids = torch.arange(ids.shape[-1])[None]


def _plain(name: str) -> str:
    return name.removeprefix("module.").removeprefix("model.")


def _renamed(name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
    """A tensor of open_clip as one or three of transformers."""
    block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
    if block is None:
        turned = name in ("visual.proj", "text_projection")
        yield OUTSIDE.get(name, name), tensor.T.contiguous() if turned else tensor
        return
    layer = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}"
    joint = re.fullmatch(r"attn\.in_proj_(weight|bias)", block[3])
    if joint:
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            yield f"{layer}.self_attn.{letter}_proj.{joint[1]}", part
        return
    inner = block[3]
    for old, new in BLOCK:
        inner = inner.replace(old, new)
    yield f"{layer}.{inner}", tensor
