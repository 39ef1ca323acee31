"""A known checkpoint's pipeline with random weights: as fast and as large as the real one; it draws noise."""

from typing import Any, TypeVar

import diffusers
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdpo_cli.api import LoadContext
from sdpo_cli.api.diffusers_load import as_model, frozen
from sdpo_cli.builtin.models import EMOJI_TURBO
from sdpo_cli.builtin.models.architectures import Architecture, Settings
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.builtin.models.unet import UNetModel

TOKENS = 77
"""Of a prompt, whatever its length: these encoders always see as many."""
M = TypeVar("M", bound=UNetModel)


def random_model(family: type[M], made_of: Architecture, options: UNetOptions, context: LoadContext) -> M:
    """A family's base model of that architecture; which weights the options name plays no part."""
    parts = random_parts(made_of, context)
    pipeline = family.pipeline_class(**parts, **left_out(family.pipeline_class))
    pipeline = frozen(pipeline, family.component, options, context)
    return as_model(family, pipeline, options, context)


def left_out(pipeline_class: Any) -> dict[str, Any]:
    """What a pipeline must be told of the parts that drawing does not need."""
    checked = "safety_checker" in pipeline_class._optional_components
    return (
        {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        if checked
        else {"add_watermarker": False}
    )


def random_parts(made_of: Architecture, context: LoadContext) -> dict[str, Any]:
    """The pipeline's components by name, made on the context's device and in its number format."""
    dtype, tokenizer = getattr(torch, context.dtype), embedded_tokenizer()
    kind = CLIPTextModel if len(made_of.texts) == 1 else CLIPTextModelWithProjection
    classes = (CLIPTextModel, kind)
    with torch.device(context.device):
        networks: dict[str, Any] = {
            "unet": UNet2DConditionModel(**made_of.unet),
            "vae": AutoencoderKL(**made_of.vae),
            **{
                f"text_encoder{'_2' * number}": classes[number](text_config(settings, tokenizer))
                for number, settings in enumerate(made_of.texts)
            },
        }
    tokenizers = {f"tokenizer{'_2' * number}": tokenizer for number in range(len(made_of.texts))}
    scheduler = getattr(diffusers, made_of.scheduler_class)(**made_of.scheduler)
    return {name: one.to(dtype) for name, one in networks.items()} | tokenizers | {"scheduler": scheduler}


def embedded_tokenizer() -> Any:
    """The embedded model's tokenizer: its words are few, and each prompt is filled up to as many tokens as any."""
    return CLIPTokenizer.from_pretrained(EMOJI_TURBO / "tokenizer", model_max_length=TOKENS)


def text_config(settings: Settings, tokenizer: Any) -> CLIPTextConfig:
    """The settings of a text encoder that knows where that tokenizer ends a prompt."""
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return CLIPTextConfig(vocab_size=49408, max_position_embeddings=TOKENS, **settings, **ends)
