"""ImageReward's network, put together from transformers' BLIP classes, and its weights under their upstream names.

Sizes are read off the weights; what weights do not tell (heads, activation, epsilons) is fixed here, for transformers'
defaults differ from the trained network and load without a word.
"""

import re
from collections.abc import Mapping

import torch
from accelerate import init_empty_weights
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from sdpo_cli.api.checkpoints import Shapes, check_shapes

HEAD_WIDTH = 64
"""Width of an attention head: 16 heads for the 1024 of the pictures, 12 for the 768 of the text."""

UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\.|.*\.position_ids$")
"""Weights that the score does not depend on."""

RENAMED = (
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.layers\.", "head."),
    (r"^blip\.visual_encoder\.", "vision."),
    (r"^vision\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^vision\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^vision\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^vision\.norm\.", "vision.post_layernorm."),
    (r"^vision\.blocks\.", "vision.encoder.layers."),
    (r"^(vision\..*)\.attn\.proj\.", r"\1.self_attn.projection."),
    (r"^(vision\..*)\.attn\.", r"\1.self_attn."),
    (r"^(vision\..*)\.norm([12])\.", r"\1.layer_norm\2."),
)


class Network(nn.Module):
    """BLIP's picture and text towers, the text looking at the picture, and five linear layers on the first token."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = nn.Sequential(
            nn.Linear(text.hidden_size, 1024),
            nn.Identity(),  # the places of upstream's dropouts keep its names
            nn.Linear(1024, 128),
            nn.Identity(),
            nn.Linear(128, 64),
            nn.Identity(),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )
        self.side: int = vision.image_size

    def forward(
        self, pixels: Float[Tensor, "B 3 s s"], tokens: Int[Tensor, "B L"], mask: Int[Tensor, "B L"]
    ) -> Float[Tensor, " B"]:
        """Raw rewards, in the head's dtype."""
        seen = self.vision(pixel_values=pixels).last_hidden_state
        text = self.text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen)
        return self.head(text.last_hidden_state[:, 0].to(self.head[0].weight.dtype))[:, 0]


def configurations(shapes: Shapes) -> tuple[BlipVisionConfig, BlipTextConfig]:
    """The towers' configurations for weights of these shapes, by upstream names. KeyError where names are missing."""
    picture, text = "blip.visual_encoder", "blip.text_encoder"
    width, _, patch, _ = shapes[f"{picture}.patch_embed.proj.weight"]
    patches = shapes[f"{picture}.pos_embed"][1] - 1
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=shapes[f"{picture}.blocks.0.mlp.fc1.weight"][0],
        num_hidden_layers=_count(shapes, rf"{picture}\.blocks\.\d+\.norm1\.weight"),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=round(patches**0.5) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    words, text_width = shapes[f"{text}.embeddings.word_embeddings.weight"]
    reader = BlipTextConfig(
        vocab_size=words,
        hidden_size=text_width,
        encoder_hidden_size=width,
        intermediate_size=shapes[f"{text}.encoder.layer.0.intermediate.dense.weight"][0],
        num_hidden_layers=_count(shapes, rf"{text}\.encoder\.layer\.\d+\.attention\.self\.query\.weight"),
        num_attention_heads=text_width // HEAD_WIDTH,
        max_position_embeddings=shapes[f"{text}.embeddings.position_embeddings.weight"][0],
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        bos_token_id=None,  # a default that is no word of a short list gets a notice
        is_decoder=True,  # gives the layers their cross-attention; the mask stays that of an encoder
    )
    return vision, reader


def renamed(key: str) -> str:
    """A weight's name in `Network`."""
    for pattern, new in RENAMED:
        key = re.sub(pattern, new, key)
    return key


def build(weights: Mapping[str, Tensor], dtype: torch.dtype) -> Network:
    """The network with these weights (upstream's names); ValueError where they are not those of an ImageReward.

    The towers are in `dtype`, the head in float32.
    """
    used = {key: value for key, value in weights.items() if not UNUSED.match(key)}
    try:
        configured = configurations({key: value.shape for key, value in used.items()})
        with init_empty_weights():
            network = Network(*configured)
    except LookupError as error:
        raise ValueError(f"without {error}") from error
    except (ArithmeticError, ValueError) as error:
        raise ValueError("with weights of sizes that do not go together") from error
    given = {renamed(key): value for key, value in used.items()}
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    check_shapes(wanted, {name: value.shape for name, value in given.items()})
    cast = {name: value.to(torch.float32 if name.startswith("head.") else dtype) for name, value in given.items()}
    network.load_state_dict(cast, assign=True)
    return network.requires_grad_(False).train(False)


def _count(shapes: Shapes, pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in shapes)
