"""The reward `vlm`: a vision-language model, served elsewhere, rates each picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdpo_cli.api import LoadContext, Options, RewardSpec, hookimpl

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import Reward

SDPO_PLUGIN_API = 1


class VlmOptions(Options):
    """Which model judges, what it is asked, and how its answer becomes a number."""

    model: str = Field(min_length=1, description="the judge's name, as the server knows it")
    url: str = Field(
        default="http://127.0.0.1:8000/v1",
        pattern=r"^https?://[^\s/@]+(/\S*)?$",
        description="where the server's OpenAI-compatible paths begin",
    )
    api_key_variable: str = Field(
        default="", description="name of the environment variable that holds the server's key; empty: no key"
    )
    preset: Literal["rating", "unifiedreward", "vqascore"] = Field(
        default="rating", description="what is asked and how it is read, unless the next six say otherwise"
    )
    template: str | None = Field(default=None, description="the question; {prompt} stands for the picture's prompt")
    mode: Literal["logprobs", "text"] | None = Field(
        default=None, description="read the probabilities of the rating's token, or the written answer"
    )
    tokens: dict[str, float] | None = Field(
        default=None, min_length=1, description="logprobs: what each rating token is worth, case and blanks aside"
    )
    pattern: str | None = Field(
        default=None, description="text: regular expression whose first group is the rating; its last match counts"
    )
    low: float | None = Field(default=None, description="lowest rating; a written one below is unreadable")
    high: float | None = Field(default=None, description="highest rating; a written one above is unreadable")
    scale: Literal["raw", "unit"] = Field(default="unit", description="the rating as it is, or low..high as 0..1")
    on_unreadable: Literal["error", "min"] = Field(
        default="error", description="an answer without a rating: stop, or count the lowest"
    )
    max_side: int = Field(default=512, ge=16, le=4096, description="larger pictures are sent this large, pixels")
    max_tokens: int | None = Field(default=None, ge=1, le=8192, description="longest answer; default: the preset's")
    seed: int = Field(default=0, ge=0, description="sent to the server, with temperature 0")
    concurrency: int = Field(default=8, ge=1, le=256, description="questions asked at a time")
    timeout: float = Field(default=60.0, gt=0, le=3600, description="seconds to wait for an answer, all of it")
    retries: int = Field(default=3, ge=0, le=10, description="further tries when the server is busy or unreachable")
    backoff: float = Field(default=0.5, ge=0, le=60, description="seconds before the second try; doubles, at most 30")


def load(options: VlmOptions, context: LoadContext) -> "Reward":
    """The reward; the server is first asked when pictures come. UsageError where the options do not fit."""
    from sdpo_reward_vlm.judge import Judge

    return Judge(options)


@hookimpl
def sdpo_rewards() -> Sequence[RewardSpec]:
    """One reward."""
    return [
        RewardSpec(
            name="vlm",
            summary="the rating of a vision-language model behind an OpenAI-compatible server",
            version="1",
            source="VQAScore, arXiv 2404.01291; UnifiedReward, arXiv 2503.05236; expected ratings as in G-Eval, "
            "arXiv 2303.16634",
            options=VlmOptions,
            load=load,
            facts={
                "scale": "unit: 0..1, the preset's lowest..highest rating; raw: the rating",
                "licence": "Apache-2.0; the judge has its own",
                "server": "any, such as vLLM or SGLang, with a vision-language model",
            },
        )
    ]
