"""The reward `imagereward`: how people would judge a picture for its prompt, learnt from 137,000 comparisons."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdpo_cli.api import Example, HubFiles, LoadContext, Options, RewardSpec, UserPath, hookimpl

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import Reward

SDPO_PLUGIN_API = 1

WEIGHTS = HubFiles("zai-org/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72", ("ImageReward.pt",))
WORDS = HubFiles("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594", ("vocab.txt",))

PUBLISHED = (0.5811622738838196, 0.2745276093482971, -1.4131819009780884, -2.029569625854492)
"""Scores of the four pictures in the authors' README."""


class ImageRewardOptions(Options):
    """Where the weights are and how the network runs."""

    path: UserPath | None = Field(
        default=None,
        description="Folder with vocab.txt and ImageReward.pt or ImageReward.safetensors; null takes the model hub's.",
    )
    scale: Literal["standard", "raw"] = Field(
        default="standard",
        description="standard: mean 0, deviation 1 on the authors' data, as their package; raw: the network's own.",
    )
    dtype: Literal["float32", "float16"] = Field(
        default="float32", description="Of the network; float16 is faster on a GPU, its head stays in float32."
    )
    batch: int = Field(default=32, ge=1, description="Pictures that go through the network at once.")


def needs(options: ImageRewardOptions) -> Sequence[HubFiles]:
    """The weights and the word list, unless a folder has them."""
    return () if options.path else (WEIGHTS, WORDS)


def load(options: ImageRewardOptions, context: LoadContext) -> "Reward":
    """The reward on the context's device."""
    from sdpo_reward_imagereward.reward import load_reward

    return load_reward(options, context.device)


def example(number: int, value: float) -> Example:
    """A picture of the authors' README and its score there, which differs a little from device to device."""
    return Example(
        picture=f"https://raw.githubusercontent.com/THUDM/ImageReward/main/assets/images/{number}.webp",
        prompt="a painting of an ocean with clouds and birds, day time, low depth field effect",
        value=value,
        tolerance=0.02,
        source="the README of github.com/THUDM/ImageReward",
    )


@hookimpl
def sdpo_rewards() -> Sequence[RewardSpec]:
    """One reward."""
    return [
        RewardSpec(
            name="imagereward",
            summary="human preference for picture and prompt: about -2 to 2, 0 is middling",
            version="1",
            source="Xu et al., ImageReward, arXiv 2304.05977; image-reward 1.5",
            options=ImageRewardOptions,
            load=load,
            needs=needs,
            examples=[example(number, value) for number, value in enumerate(PUBLISHED, 1)],
            facts={
                "licence": "Apache-2.0 (weights and word list)",
                "checkpoint": "ImageReward v1.0, 446 M parameters, 1.8 GB",
                "scale": "standard: (raw - 0.167) / 1.033",
                "gradients": "none",
            },
        )
    ]
