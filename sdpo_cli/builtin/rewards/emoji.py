"""Rewards by the embedded scorer `emoji-clip`, a small CLIP taught on the same pictures as `emoji-turbo`."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from sdpo_cli.api.images import centre_levels
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.builtin.rewards.captions import PutAttribute

FOLDER = Path(__file__).parents[2] / "assets" / "emoji-clip"
CAPTIONS_KEPT = 4096


class EmojiScorer:
    """The scorer's two towers, in float32: pictures and captions as unit vectors of one space.

    Attributes:
        scale: what the softmax over captions multiplies cosines by (the model's exp(logit_scale)).
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        config: Any = CLIPConfig.from_pretrained(FOLDER, local_files_only=True)
        with self.device:
            self.model = CLIPModel(config).requires_grad_(False).train(False)
        self.model.load_state_dict(load_file(FOLDER / "model.safetensors"))
        self.tokenizer = CLIPTokenizer.from_pretrained(FOLDER, local_files_only=True)
        self.size: int = config.vision_config.image_size
        self.max_tokens: int = config.text_config.max_position_embeddings
        self.width: int = config.projection_dim
        self.scale = float(self.model.logit_scale.exp())
        self.embed_captions = lru_cache(maxsize=CAPTIONS_KEPT)(self._embed_captions)

    @torch.no_grad()
    def embed_images(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Unit vectors of pictures 0..1 of any size; smaller or larger ones are resized as CLIP's processor does."""
        if not len(images):
            return self.no_vectors()
        levels = centre_levels(images.to(self.device), self.size)
        pooled = self.model.vision_model(pixel_values=levels.float() / 127.5 - 1).pooler_output
        return normalize(self.model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def _embed_captions(self, captions: tuple[str, ...]) -> Float[Tensor, "K D"]:
        # A caption that is too long loses words, never its end token.
        tokens = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        pooled = self.model.text_model(input_ids=tokens["input_ids"].to(self.device)).pooler_output
        return normalize(self.model.text_projection(pooled), dim=-1)

    def embed_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "B D"]:
        """Unit vectors of prompts, each worked out once."""
        if not prompts:
            return self.no_vectors()
        return torch.cat([self.embed_captions((prompt,)) for prompt in prompts])

    def no_vectors(self) -> Float[Tensor, "0 D"]:
        """The embedding of nothing."""
        return torch.zeros(0, self.width, device=self.device)


@lru_cache(maxsize=2)
def emoji_scorer(device: str) -> EmojiScorer:
    """The scorer on `device`, one for all rewards that use it."""
    return EmojiScorer(device)


class EmojiAlignment:
    """cos(image, prompt), -1..1; about 0.8 where a picture shows its prompt."""

    def __init__(self, scorer: EmojiScorer) -> None:
        self.scorer = scorer

    def score(self, request: ScoreRequest) -> ScoreResult:
        """One cosine a picture."""
        images = self.scorer.embed_images(request.images)
        return ScoreResult((images * self.scorer.embed_prompts(request.prompts)).sum(dim=-1))

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """The scorer's unit vectors."""
        return self.scorer.embed_images(images)


class EmojiAttribute:
    """The probability of a prompt with the wanted attribute among the same prompt with each attribute of its kind.

    p = softmax_k(scale cos(image, caption_k))[wanted], 0..1. The detail `alignment` is cos(image, prompt): where it
    falls while p rises, the picture is losing its subject.

    Args:
        wanted: one of `kind`.
        kind: the attributes that compete.
        put: puts an attribute into a prompt.
    """

    def __init__(self, scorer: EmojiScorer, wanted: str, kind: Sequence[str], put: PutAttribute) -> None:
        self.scorer, self.wanted, self.kind, self.put = scorer, wanted, kind, put

    def score(self, request: ScoreRequest) -> ScoreResult:
        """One probability a picture."""
        images = self.scorer.embed_images(request.images)
        prompts = self.scorer.embed_prompts(request.prompts)
        alignment = (images * prompts).sum(dim=-1)
        if not request.prompts:
            return ScoreResult(alignment, {"alignment": alignment})
        captions = torch.stack([self.scorer.embed_captions(self.captions(prompt)) for prompt in request.prompts])
        logits = self.scorer.scale * torch.einsum("bd,bkd->bk", images, captions)
        probability = logits.softmax(dim=-1)[:, self.kind.index(self.wanted)]
        return ScoreResult(probability, {"alignment": alignment})

    def captions(self, prompt: str) -> tuple[str, ...]:
        """The competing captions, in the order of `kind`."""
        return tuple(self.put(prompt, attribute) for attribute in self.kind)
