"""Base models that are shipped: `emoji-turbo`, and any Stable Diffusion or SDXL checkpoint, the known ones by name."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sdpo_cli.api import BaseModelSpec, HubFiles, LoadContext, Options, UsageError, hookimpl
from sdpo_cli.api.pipelines import pipeline_needs, preset, silence
from sdpo_cli.builtin.models.known import KNOWN, UNGUIDED, Known, unpinned
from sdpo_cli.builtin.models.options import UNetOptions

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import BaseModel

SDPO_PLUGIN_API = 1

EMOJI_TURBO = Path(__file__).parents[2] / "assets" / "emoji-turbo"
COMPONENTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
XL_COMPONENTS = (*COMPONENTS, "text_encoder_2", "tokenizer_2")


class NoOptions(Options):
    """This model has no options."""


def load_emoji_turbo(options: NoOptions, context: LoadContext) -> "BaseModel":
    """The embedded model."""
    return load_checkpoint(UNetOptions(path=str(EMOJI_TURBO)), context)


def load_checkpoint(options: UNetOptions, context: LoadContext) -> "BaseModel":
    """Any Stable Diffusion checkpoint."""
    check_guidance(options)
    silence()
    from sdpo_cli.api.diffusers_load import load_model
    from sdpo_cli.builtin.models.stable_diffusion import StableDiffusion

    return load_model(StableDiffusion, options, context)


def load_xl_checkpoint(options: UNetOptions, context: LoadContext) -> "BaseModel":
    """Any SDXL checkpoint."""
    check_guidance(options)
    silence()
    from sdpo_cli.api.diffusers_load import load_model
    from sdpo_cli.builtin.models.stable_diffusion_xl import StableDiffusionXL

    return load_model(StableDiffusionXL, options, context)


def load_with_random_weights(row: Known, options: UNetOptions, context: LoadContext) -> "BaseModel":
    """A known checkpoint's architecture, for measurements of speed."""
    silence()
    from sdpo_cli.builtin.models.architectures import architecture
    from sdpo_cli.builtin.models.random_weights import random_model
    from sdpo_cli.builtin.models.stable_diffusion import StableDiffusion
    from sdpo_cli.builtin.models.stable_diffusion_xl import StableDiffusionXL

    return random_model(StableDiffusionXL if row.xl else StableDiffusion, architecture(row), options, context)


def check_guidance(options: UNetOptions) -> None:
    """UsageError where guidance is wanted of weights that were distilled to need none."""
    named = {unpinned(path) for path in (options.path, options.denoiser, options.base_lora) if path} & UNGUIDED
    if (options.guidance or 0) > 1 and named:
        raise UsageError(
            f"{options.guidance:g} cannot be had: {min(named)} is distilled without guidance",
            place="model.options.guidance",
            remedy="leave it out",
        )


def needs(options: UNetOptions) -> Sequence[HubFiles]:
    """What a Stable Diffusion checkpoint takes from the hub."""
    return pipeline_needs(options, COMPONENTS)


def xl_needs(options: UNetOptions) -> Sequence[HubFiles]:
    """What an SDXL checkpoint takes from the hub."""
    return pipeline_needs(options, XL_COMPONENTS)


def known_spec(row: Known) -> BaseModelSpec:
    """A row of the table as a plug-in."""
    return BaseModelSpec(
        name=row.name,
        summary=f"{row.title}: {row.steps} step{'s' * (row.steps != '1')}, {row.size} px, guidance {row.guidance}",
        version="1",
        source=f"https://huggingface.co/{'/'.join(unpinned(row.weights).split('/')[:2])}",
        options=preset(UNetOptions, row.name, row.options),
        load=load_xl_checkpoint if row.xl else load_checkpoint,
        needs=xl_needs if row.xl else needs,
        facts=row.facts,
        load_random=partial(load_with_random_weights, row),
    )


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
            summary="any Stable Diffusion 1 or 2 checkpoint, Turbo, LCM and Hyper among them, by folder or hub id",
            version="2",
            source="diffusers StableDiffusionPipeline",
            options=UNetOptions,
            load=load_checkpoint,
            needs=needs,
            families=("StableDiffusionPipeline", "LatentConsistencyModelPipeline"),
        ),
        BaseModelSpec(
            name="stable-diffusion-xl",
            summary="any SDXL checkpoint, Turbo, LCM, Lightning and Hyper among them, by folder or hub id",
            version="1",
            source="diffusers StableDiffusionXLPipeline",
            options=UNetOptions,
            load=load_xl_checkpoint,
            needs=xl_needs,
            families=("StableDiffusionXLPipeline",),
        ),
        *map(known_spec, KNOWN),
    ]
