"""A tiny CLIP for tests: the weights of a golden file, in the layout of OpenAI's on the model hub."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

from sdpo_cli.api.clip_weights import CLIP_L, from_open_clip, image_config, text_config

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def clip_l(tmp_path_factory) -> Path:
    """A folder with `model.safetensors` (the whole vocabulary, stale buffers as in the true file) and `config.json`."""
    folder = tmp_path_factory.mktemp("clip-l")
    golden = load_file(GOLDEN / "clip-l.safetensors")
    weights = from_open_clip(
        {name.removeprefix("weights."): one for name, one in golden.items() if name.startswith("weights.")}
    )
    tokens = torch.randn(49408, 24, generator=torch.Generator().manual_seed(0))
    weights["text_model.embeddings.token_embedding.weight"] = tokens
    weights["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file({name: one.contiguous() for name, one in weights.items()}, folder / "model.safetensors")
    CLIPConfig(
        text_config=text_config(CLIP_L, weights).to_dict(), vision_config=image_config(CLIP_L, weights).to_dict()
    ).save_pretrained(folder)
    return folder
