"""Base models that are shipped: `emoji-turbo`, and any Stable Diffusion checkpoint in diffusers layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from sdpo_cli.api import BaseModelSpec, LoadContext, Options, hookimpl

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import BaseModel

SDPO_PLUGIN_API = 1

EMOJI_TURBO = Path(__file__).parents[2] / "assets" / "emoji-turbo"


class NoOptions(Options):
    """This model has no options."""


class CheckpointOptions(Options):
    """Where a Stable Diffusion checkpoint is."""

    path: str = Field(description="Folder in diffusers layout, or hub id.")
    revision: str | None = Field(default=None, description="Commit, tag or branch on the hub.")


def load_emoji_turbo(options: NoOptions, context: LoadContext) -> "BaseModel":
    """The embedded model."""
    silence_loaders()
    from sdpo_cli.builtin.models.stable_diffusion import load_stable_diffusion

    return load_stable_diffusion(str(EMOJI_TURBO), None, context)


def load_checkpoint(options: CheckpointOptions, context: LoadContext) -> "BaseModel":
    """Any checkpoint of the family."""
    silence_loaders()
    from sdpo_cli.builtin.models.stable_diffusion import load_stable_diffusion

    return load_stable_diffusion(options.path, options.revision, context)


def silence_loaders() -> None:
    """Keep the libraries' progress bars and notices off the terminal; their errors still come through.

    Called before diffusers' pipelines are imported: that import alone prints two notices about torchvision.
    """
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()


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
            options=CheckpointOptions,
            load=load_checkpoint,
            family="StableDiffusionPipeline",
        ),
    ]
