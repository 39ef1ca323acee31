"""Base models that are shipped: `emoji-turbo`, and any Stable Diffusion checkpoint in diffusers layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo_cli.api import BaseModelSpec, LoadContext, Options, hookimpl
from sdpo_cli.api.pipelines import PipelineOptions, silence

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import BaseModel

SDPO_PLUGIN_API = 1

EMOJI_TURBO = Path(__file__).parents[2] / "assets" / "emoji-turbo"


class NoOptions(Options):
    """This model has no options."""


def load_emoji_turbo(options: NoOptions, context: LoadContext) -> "BaseModel":
    """The embedded model."""
    return load_checkpoint(PipelineOptions(path=str(EMOJI_TURBO)), context)


def load_checkpoint(options: PipelineOptions, context: LoadContext) -> "BaseModel":
    """Any checkpoint of the family."""
    silence()
    from sdpo_cli.builtin.models.stable_diffusion import load_stable_diffusion

    return load_stable_diffusion(options, context)


@hookimpl
def sdpo_base_models() -> Sequence[BaseModelSpec]:
    """The shipped base models."""
    return [
        BaseModelSpec(
            name="emoji-turbo",
            summary="64 px emoji animals in 1 to 8 steps, 7 M parameters, inside the package: no download, CPU",
            version="1",
            source="shipped with sdpo; distilled from Fluent Emoji and Noto Emoji pictures (NOTICE)",
            options=NoOptions,
            load=load_emoji_turbo,
        ),
        BaseModelSpec(
            name="stable-diffusion",
            summary="any Stable Diffusion checkpoint with a DDIM schedule, by folder or hub id",
            version="1",
            source="diffusers StableDiffusionPipeline",
            options=PipelineOptions,
            load=load_checkpoint,
            families=("StableDiffusionPipeline",),
        ),
    ]
