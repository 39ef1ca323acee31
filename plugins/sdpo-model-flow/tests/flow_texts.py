"""Tiny random text encoders of the families' own classes, and tokenizers made on the spot."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import sdpo_cli

CLIP_TOKENIZER = Path(sdpo_cli.__file__).parent / "assets" / "emoji-turbo" / "tokenizer"
TEXTS = ("a red cat", "a dog on the moon", "two owls on a hill")
WIDTH = 16


def clip(projection: bool) -> Any:
    config = transformers.CLIPTextConfig(
        hidden_size=WIDTH,
        intermediate_size=32,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=1186,
        max_position_embeddings=32,
        bos_token_id=1184,
        eos_token_id=1185,
        pad_token_id=1185,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config)


def clip_tokenizer() -> Any:
    return transformers.CLIPTokenizer.from_pretrained(CLIP_TOKENIZER)


def t5(width: int) -> tuple[Any, Any]:
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -1.0), ("▁", -2.0), *letters]
    config = transformers.T5Config(
        vocab_size=len(vocabulary), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, is_encoder_decoder=False
    )
    return transformers.T5EncoderModel(config), transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0)


def pieces(texts: Sequence[str], cut: Any, letters: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges that write these texts shortly."""
    text = Tokenizer(models.BPE())
    text.pre_tokenizer = cut
    text.train_from_iterator(texts, trainers.BpeTrainer(initial_alphabet=list(letters), show_progress=False))
    learnt = json.loads(text.to_str())["model"]
    return learnt["vocab"], [tuple(merge) for merge in learnt["merges"]]


def with_marks(vocabulary: dict[str, int], marks: Sequence[str]) -> dict[str, int]:
    """The vocabulary and special marks behind it."""
    return vocabulary | {mark: len(vocabulary) + place for place, mark in enumerate(marks)}


def qwen_tokenizer() -> Any:
    cut, letters = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.ByteLevel.alphabet()
    vocabulary, merges = pieces(TEXTS, cut, letters)
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=with_marks(vocabulary, marks), merges=merges, additional_special_tokens=marks[1:]
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
    )
    return tokenizer


def gemma_tokenizer() -> Any:
    call = inspect.signature(diffusers.SanaSprintPipeline.__call__).parameters
    texts = ["\n".join(call["complex_human_instruction"].default), *TEXTS]
    vocabulary, merges = pieces(texts, pre_tokenizers.Metaspace(prepend_scheme="never"), "abcdefghijklmnopqrstuvwxyz")
    vocabulary = with_marks(vocabulary, ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=merges)


QWEN = {
    "vocab_size": 1024,
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": WIDTH,
    "max_position_embeddings": 2048,
}
