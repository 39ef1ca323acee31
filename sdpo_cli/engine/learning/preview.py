"""Cheap decoding of what is rewarded in training, and how far it is off."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api import Prompt
from sdpo_cli.api.tensors import BaseModel, Previewer, ScoreRequest
from sdpo_cli.engine.learning.rollout import Rollouts
from sdpo_cli.engine.memory import fitting
from sdpo_cli.engine.rewards.scorer import Scorer
from sdpo_cli.engine.rewards.scoring import columns

COMPARED = 8
"""Pictures an epoch that are decoded both ways."""

Decoder = Callable[[Tensor], Tensor]


def rewarded_decoder(model: BaseModel) -> Decoder:
    """What decodes the pictures that are rewarded in training."""
    return model.decode_preview if isinstance(model, Previewer) and model.previews else model.decode


def decode(decoder: Decoder, x0: Float[Tensor, "B C H W"], batch: int) -> Float[Tensor, "B 3 H2 W2"]:
    """The pictures, `batch` at a time."""
    return torch.cat([decoder(part) for part in x0.split(batch)])


def preview_gap(model: BaseModel, scorer: Scorer, rollouts: Rollouts) -> dict[str, float]:
    """How far previews are off, in an epoch's first pictures; empty where the model makes none.

    `preview_gap/pictures` is the mean |preview - picture| in levels of 255, `preview_gap/NAME` the mean of preview
    less picture in a reward's own units: it grows when training exploits the cheap decoder.
    """
    if not (isinstance(model, Previewer) and model.previews):
        return {}
    x0, prompts = rollouts.x0[0, :COMPARED, -1].to(model.device), rollouts.draw.prompts[:COMPARED]
    shown = [fitting(partial(decode, way, x0), len(x0), "picture")[0] for way in (model.decode_preview, model.decode)]
    preview, whole = (scores(scorer, images, prompts) for images in shown)
    levels = 255 * float((shown[0] - shown[1]).abs().mean())
    gaps = {f"preview_gap/{name}": float((preview[name] - whole[name]).mean()) for name in whole}
    return {"preview_gap/pictures": levels, **gaps}


def scores(scorer: Scorer, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Each reward's values by its name."""
    request = ScoreRequest(images, [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts])
    found = columns(scorer.rewards, scorer.result(scorer.submit(request)))
    return {loaded.name: found[loaded.name] for loaded in scorer.rewards}
