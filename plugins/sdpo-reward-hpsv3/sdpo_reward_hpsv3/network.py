"""HPSv3's network: transformers' Qwen2-VL and a head, and its weights under their upstream names.

Sizes are read off the weights; what weights do not tell is fixed here.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Qwen2VLConfig, Qwen2VLModel

from sdpo_cli.api.checkpoints import Shapes, check_shapes

HEAD_WIDTH, PICTURE_HEAD_WIDTH = 128, 80
"""Widths of attention heads: 28 (4 for keys and values) share the 3584 of the text, 16 the 1280 of the pictures."""

UNUSED = "lm_head."
RENAMED = ((r"^visual\.", "body.visual."), (r"^model\.", "body.language_model."), (r"^rm_head\.", "head."))


class Network(nn.Module):
    """Qwen2-VL, and three linear layers on its last state."""

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__()
        width = config.text_config.hidden_size
        self.body = Qwen2VLModel(config)
        self.head = nn.Sequential(
            nn.Linear(width, 1024),
            nn.ReLU(),
            nn.Identity(),  # the place of upstream's dropout keeps its names
            nn.Linear(1024, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        )

    def forward(
        self,
        patches: Float[Tensor, "N P"],
        grid: Int[Tensor, "B 3"],
        before: Int[Tensor, " F"],
        after: Int[Tensor, "B L"],
        lengths: Int[Tensor, " B"],
    ) -> Float[Tensor, "B 2"]:
        """Mean and logarithm of the deviation, float32.

        Args:
            patches: of all pictures, one after another.
            grid: 1, rows and columns of each picture's patches, the same for all.
            before, after: tokens around the picture; `after` padded on the right, where nothing sees the padding.
            lengths: of `after` without padding; the answer is read at its last token.
        """
        text = self.body.language_model
        count = len(after)
        seen = self.body.visual(patches.to(text.embed_tokens.weight.dtype), grid_thw=grid).pooler_output
        first = text.embed_tokens(before).expand(count, -1, -1)
        row = torch.cat([first, seen.unflatten(0, (count, -1)), text.embed_tokens(after)], dim=1)
        places = positions(count, row.shape[1]).to(row.device)
        states = text(inputs_embeds=row, position_ids=places, use_cache=False).last_hidden_state
        last = row.shape[1] - after.shape[1] + lengths - 1
        return self.head(states[torch.arange(count, device=row.device), last].float())


def positions(count: int, length: int) -> Int[Tensor, "3 B L"]:
    """One after another on all three axes: HPSv3 was trained without Qwen2-VL's own positions by rows and columns."""
    return torch.arange(length).expand(3, count, length)


def configuration(shapes: Shapes) -> Qwen2VLConfig:
    """The configuration for weights of these shapes, by upstream names. KeyError where names are missing."""
    words, width = shapes["model.embed_tokens.weight"]
    layer = "model.layers.0.self_attn"
    text: dict[str, Any] = {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes["model.layers.0.mlp.gate_proj.weight"][0],
        "num_hidden_layers": _count(shapes, r"model\.layers\.\d+\.input_layernorm\.weight"),
        "num_attention_heads": shapes[f"{layer}.q_proj.weight"][0] // HEAD_WIDTH,
        "num_key_value_heads": shapes[f"{layer}.k_proj.weight"][0] // HEAD_WIDTH,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "bos_token_id": None,
        "eos_token_id": None,
    }
    seen, _, frames, _, patch = shapes["visual.patch_embed.proj.weight"]
    pictures: dict[str, Any] = {
        "depth": _count(shapes, r"visual\.blocks\.\d+\.norm1\.weight"),
        "embed_dim": seen,
        "hidden_size": width,
        "mlp_ratio": shapes["visual.blocks.0.mlp.fc1.weight"][0] // seen,
        "num_heads": seen // PICTURE_HEAD_WIDTH,
        "hidden_act": "quick_gelu",
        "patch_size": patch,
        "temporal_patch_size": frames,
        "spatial_merge_size": 2,
    }
    return Qwen2VLConfig(text_config=text, vision_config=pictures)


def renamed(key: str) -> str:
    """A weight's name in `Network`."""
    for pattern, new in RENAMED:
        key = re.sub(pattern, new, key)
    return key


def empty_network(shapes: Shapes) -> Network:
    """The network for weights of these shapes (upstream's names), without any; ValueError where it is no HPSv3."""
    used = {key: shape for key, shape in shapes.items() if not key.startswith(UNUSED)}
    try:
        with init_empty_weights():
            network = Network(configuration(used))
    except LookupError as error:
        raise ValueError(f"without {error}") from error
    except (ArithmeticError, ValueError) as error:
        raise ValueError("with weights of sizes that do not go together") from error
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    check_shapes(wanted, {renamed(key): shape for key, shape in used.items()})
    return network.requires_grad_(False).train(False)


def fill(network: Network, weights: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Give the network its weights (upstream's names): the body in `dtype`, the head in float32."""
    named = {renamed(key): value for key, value in weights.items() if not key.startswith(UNUSED)}
    cast = {name: value.to(torch.float32 if name.startswith("head.") else dtype) for name, value in named.items()}
    network.load_state_dict(cast, assign=True)


def _count(shapes: Shapes, pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in shapes)
