"""The reward `hpsv3`: human preference for picture and prompt, as a 7 B vision-language model has learnt it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdpo_cli.api import HubFiles, LoadContext, Options, RewardSpec, UserPath, hookimpl

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import Reward

SDPO_PLUGIN_API = 1

WEIGHTS = HubFiles("MizzenAI/HPSv3", "4f81e3e09edd82fe3c5f636444c721b592a735ca", ("HPSv3.safetensors",))
WORDS = HubFiles("Qwen/Qwen2-VL-7B-Instruct", "eed13092ef92e448dd6875b2a00151bd3f7db0ac", ("tokenizer.json",))


class Hpsv3Options(Options):
    """Where the weights are and how the network runs."""

    path: UserPath | None = Field(
        default=None, description="Folder with HPSv3.safetensors and tokenizer.json; null takes the model hub's."
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="Of the network, trained in bfloat16; its head stays in float32."
    )
    batch: int = Field(
        default=1,
        ge=1,
        description="Pictures at once; with more than 1, bfloat16 scores depend a little on the others in a batch.",
    )


def needs(options: Hpsv3Options) -> Sequence[HubFiles]:
    """The weights and the tokenizer, unless a folder has them."""
    return () if options.path else (WEIGHTS, WORDS)


def load(options: Hpsv3Options, context: LoadContext) -> "Reward":
    """The reward on the context's device."""
    from sdpo_reward_hpsv3.reward import load_reward

    return load_reward(options, context.device)


@hookimpl
def sdpo_rewards() -> Sequence[RewardSpec]:
    """One reward."""
    return [
        RewardSpec(
            name="hpsv3",
            summary="human preference by a 7 B model: about -2 to 12, good pictures 10",
            version="1",
            source="Ma et al., HPSv3, ICCV 2025, arXiv 2508.03789; hpsv3 1.0.0",
            options=Hpsv3Options,
            load=load,
            needs=needs,
            facts={
                "licence": "weights and tokenizer Apache-2.0, template MIT",
                "checkpoint": "HPSv3, 8 B parameters, 16.5 GB; wants a GPU with 24 GB",
                "scale": "the model's mean; its standard deviation is the detail sigma",
                "gradients": "none",
            },
        )
    ]
