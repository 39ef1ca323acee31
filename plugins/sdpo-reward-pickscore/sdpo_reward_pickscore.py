"""PickScore v1: a CLIP ViT-H/14 taught on which of two pictures people picked for a prompt.

Source: Kirstain et al., Pick-a-Pic, arXiv 2305.01569.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdpo_cli.api import HubFiles, LoadContext, Options, RewardSpec, UserPath, hookimpl

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import Reward

SDPO_PLUGIN_API = 1

WEIGHTS = HubFiles("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800", ("model.safetensors",))
UNIT = 26.0


class PickScoreOptions(Options):
    """Which weights, how they compute, and the scale."""

    path: UserPath | None = Field(
        default=None, description="file or folder of PickScore's weights; the authors' from the model hub where null"
    )
    dtype: Literal["float32", "float16"] = Field(
        default="float32", description="float16 is faster; scores move by about 3 % of their spread"
    )
    scale: Literal["cos", "logit", "unit"] = Field(
        default="cos", description="cos; logit: exp(logit_scale) cos, as published, about 18 to 24; unit: logit / 26"
    )


def load(options: PickScoreOptions, context: LoadContext) -> "Reward":
    """The cosine of picture and prompt, in the chosen scale."""
    from sdpo_cli.api.clip import CLIP_H, ClipReward, ClipSource, image_tower, text_tower
    from sdpo_cli.api.hub import fetch

    path = Path(options.path) if options.path else fetch(WEIGHTS)
    source = ClipSource(path, CLIP_H, context.device, options.dtype)
    text = text_tower(source)
    factor = {"cos": 1.0, "logit": text.logit_scale, "unit": text.logit_scale / UNIT}[options.scale]
    return ClipReward(image_tower(source), text, lambda cosines: factor * cosines)


def needs(options: PickScoreOptions) -> Sequence[HubFiles]:
    """The weights, where they are not given."""
    return [] if options.path else [WEIGHTS]


@hookimpl
def sdpo_rewards() -> Sequence[RewardSpec]:
    """PickScore."""
    return [
        RewardSpec(
            name="pickscore",
            summary="PickScore v1: which picture people would pick for a prompt; cosine, about 0.2",
            version="1",
            source="Kirstain et al., Pick-a-Pic, arXiv 2305.01569",
            options=PickScoreOptions,
            load=load,
            needs=needs,
            facts={
                "licence": "code MIT; of the weights none is stated",
                "scale": "cos; the option `scale` names others; the detail `cos` is the cosine in any case",
                "preprocessing": "as CLIP's with Pillow, exactly",
            },
        )
    ]
