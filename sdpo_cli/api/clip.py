"""CLIP image and text towers for authors of rewards: loaded once, shared by all rewards, each prompt encoded once.

source = ClipSource(Path("clip-vit-large-patch14"), CLIP_L, context.device, "float32")
reward = ClipReward(image_tower(source), text_tower(source))
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from sdpo_cli.api.clip_text import VOCABULARY, Clean, clean_plain, token_ids
from sdpo_cli.api.clip_weights import (
    CLIP_H,
    CLIP_L,
    FILES,
    ClipKind,
    check_config,
    image_network,
    text_network,
    weights_file,
)
from sdpo_cli.api.images import clip_pixels
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.errors import ArtifactError

__all__ = [
    "CLIP_H",
    "CLIP_L",
    "ClipDtype",
    "ClipKind",
    "ClipReward",
    "ClipSource",
    "ImageTower",
    "Prepare",
    "TextTower",
    "clean_plain",
    "image_tower",
    "text_tower",
    "text_vectors",
]

AT_ONCE = 64
"""Pictures or prompts in one pass through a tower."""
PROMPTS_KEPT = 4096
TOWERS_KEPT = 8

ClipDtype = Literal["float32", "float16"]
Prepare = Callable[[Tensor, int], Tensor]
"""Pictures 0..1 and a side as the network's pixels, [B 3 side side], such as `clip_pixels`."""


@dataclass(frozen=True)
class ClipSource:
    """Weights of a CLIP and how they are to be used; equal sources share their towers.

    Attributes:
        path: a file of weights, or a folder that holds one; a `config.json` beside it must not contradict `kind`.
            safetensors or plain-tensor pickles, names as in transformers or open_clip.
        kind: what the weights do not say themselves.
        device: torch device name.
        dtype: of the networks; embeddings and scores are float32 in any case.
    """

    path: Path
    kind: ClipKind
    device: str = "cpu"
    dtype: ClipDtype = "float32"


class ImageTower:
    """Pictures as unit vectors.

    The last pictures' vectors are kept, so several rewards that share a tower encode a request once.

    Attributes:
        network: transformers' `CLIPVisionModelWithProjection`.
        size: side in pixels of the square that it sees.
        width: of the vectors.
    """

    def __init__(self, source: ClipSource) -> None:
        network: Any = image_network(source.kind, source.path)
        self.network = network.to(device=source.device, dtype=getattr(torch, source.dtype))
        self.size: int = network.config.image_size
        self.width: int = network.config.projection_dim
        self._last: tuple[weakref.ref[Tensor], int, Prepare, Tensor] | None = None

    def embed(self, images: Float[Tensor, "B 3 H W"], prepare: Prepare = clip_pixels) -> Float[Tensor, "B D"]:
        """Unit vectors, float32, without gradients, on the tower's device.

        Args:
            images: 0..1, of any size, on any device.
            prepare: `(images, size)` as the network's pixels, each picture on its own.
        """
        if images.is_inference():  # such tensors do not tell whether they were changed since
            return self._embed(images, prepare)
        if self._last and self._last[0]() is images and self._last[1:3] == (images._version, prepare):
            return self._last[3]
        vectors = self._embed(images, prepare)
        self._last = (weakref.ref(images), images._version, prepare, vectors)
        return vectors

    @torch.no_grad()
    def _embed(self, images: Tensor, prepare: Prepare) -> Tensor:
        if not len(images):
            return torch.zeros(0, self.width, device=self.network.device)
        vectors = [
            self.network(prepare(some.to(self.network.device), self.size).to(self.network.dtype)).image_embeds
            for some in torch.split(images, AT_ONCE)
        ]
        return normalize(torch.cat(vectors).float(), dim=-1)


class TextTower:
    """Prompts as unit vectors, each worked out once; the last PROMPTS_KEPT are kept.

    Attributes:
        network: transformers' `CLIPTextModelWithProjection`.
        logit_scale: what the model's logits are cosines times, about 100.
        width: of the vectors.
    """

    def __init__(self, source: ClipSource, clean: Clean = clean_plain) -> None:
        network: Any
        network, self.logit_scale = text_network(source.kind, source.path)
        if network.config.vocab_size != VOCABULARY:
            fault = f"its vocabulary has {network.config.vocab_size} tokens, not {VOCABULARY}"
            raise ArtifactError(fault, place=str(source.path), remedy=f"name weights of {source.kind.name}")
        self.network = network.to(device=source.device, dtype=getattr(torch, source.dtype))
        self.clean = clean
        self.width: int = network.config.projection_dim
        self._kept: dict[str, Tensor] = {}

    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "B D"]:
        """Unit vectors, float32, on the tower's device."""
        if not prompts:
            return torch.zeros(0, self.width, device=self.network.device)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        for start in range(0, len(new), AT_ONCE):
            some = new[start : start + AT_ONCE]
            ids = [torch.tensor(one) for one in token_ids(some, self.clean)]
            padded = pad_sequence(ids, batch_first=True, padding_value=VOCABULARY - 1)
            self._kept.update(zip(some, text_vectors(self.network, padded), strict=True))
        vectors = torch.stack([self._kept[prompt] for prompt in prompts])
        for oldest in list(islice(self._kept, max(len(self._kept) - PROMPTS_KEPT, 0))):
            del self._kept[oldest]
        return vectors


@torch.no_grad()
def text_vectors(network: torch.nn.Module, ids: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
    """Unit vectors of token sequences, float32; what follows a sequence's first end token is no matter."""
    device = next(network.parameters()).device
    return normalize(network(input_ids=ids.to(device)).text_embeds.float(), dim=-1)


def image_tower(source: ClipSource) -> ImageTower:
    """The image tower of `source`, loaded by its first user. ArtifactError where the weights do not fit."""
    return _image_tower(_found(source))


def text_tower(source: ClipSource, clean: Clean = clean_plain) -> TextTower:
    """The text tower of `source`, loaded by its first user; `clean` is done to prompts first. Errors as above."""
    return _text_tower(_found(source), clean)


class ClipReward:
    """scale(cos(image, prompt)), the cosine beside it as the detail `cos`.

    Args:
        images, text: towers of one CLIP.
        scale: maps cosines to scores; keeps their order.
        prepare: pictures as the image tower's pixels.
    """

    def __init__(
        self,
        images: ImageTower,
        text: TextTower,
        scale: Callable[[Tensor], Tensor] = torch.clone,
        prepare: Prepare = clip_pixels,
    ) -> None:
        self.images, self.text, self.scale, self.prepare = images, text, scale, prepare

    def score(self, request: ScoreRequest) -> ScoreResult:
        """One score a picture."""
        cosines = (self.embed(request.images) * self.text.embed(request.prompts)).sum(dim=-1)
        return ScoreResult(self.scale(cosines), {"cos": cosines})

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """The pictures' unit vectors."""
        return self.images.embed(images, self.prepare)


def _found(source: ClipSource) -> ClipSource:
    """The source by its file of weights, once the `config.json` beside it was heard."""
    file = weights_file(source.path).absolute()  # never resolved: the hub's cache links to names without an ending
    if file.name in FILES:
        check_config(file.parent, source.kind)
    return replace(source, path=file)


@lru_cache(maxsize=TOWERS_KEPT)
def _image_tower(source: ClipSource) -> ImageTower:
    return ImageTower(source)


@lru_cache(maxsize=TOWERS_KEPT)
def _text_tower(source: ClipSource, clean: Clean) -> TextTower:
    return TextTower(source, clean)
