"""Base models for sdpo: few-step transformers that match flows, each through its own diffusers pipeline."""

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from sdpo_cli.api import BaseModelSpec, HubFiles, LoadContext, UsageError, hookimpl
from sdpo_cli.api.pipelines import PipelineOptions, pipeline_needs, preset, silence
from sdpo_model_flow.families import FAMILIES, Family
from sdpo_model_flow.known import Known
from sdpo_model_flow.options import FlowOptions

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import BaseModel

SDPO_PLUGIN_API = 1


def load_family(family: Family, options: PipelineOptions, context: LoadContext) -> "BaseModel":
    """A checkpoint of the family. UsageError where it is a single file and diffusers reads none of the family."""
    silence()
    from sdpo_cli.api.diffusers_load import load_model

    adapter = getattr(import_module(f"sdpo_model_flow.{family.module}"), family.adapter)
    if options.path.endswith(".safetensors") and not hasattr(adapter.pipeline_class, "from_single_file"):
        raise UsageError(
            f"diffusers reads no single file as a {family.pipeline}",
            place=options.path,
            remedy="name a folder or hub id as path, and this file as denoiser",
        )
    model: BaseModel = load_model(adapter, options, context)
    return model


def needs(family: Family, options: PipelineOptions) -> Sequence[HubFiles]:
    """What a checkpoint of the family takes from the hub."""
    return pipeline_needs(options, family.components)


def family_options(family: Family) -> type[PipelineOptions]:
    """The options of the family."""
    return FlowOptions if family.matches_flows else PipelineOptions


def family_spec(family: Family) -> BaseModelSpec:
    """A family as a plug-in."""
    return BaseModelSpec(
        name=family.name,
        summary=family.summary,
        version="1",
        source=family.source,
        options=family_options(family),
        load=partial(load_family, family),
        needs=partial(needs, family),
        facts=family.facts,
        families=(family.pipeline,),
    )


def known_spec(family: Family, one: Known) -> BaseModelSpec:
    """A known checkpoint as a plug-in."""
    return BaseModelSpec(
        name=one.name,
        summary=f"{one.path}: {one.steps} steps, 1024 px, guidance {one.guidance}",
        version="1",
        source=f"https://huggingface.co/{one.path}",
        options=preset(family_options(family), one.name, one.defaults),
        load=partial(load_family, family),
        needs=partial(needs, family),
        facts={"family": family.pipeline, **one.facts},
    )


@hookimpl
def sdpo_base_models() -> Sequence[BaseModelSpec]:
    """Every family, and every known checkpoint by its name."""
    return [
        *map(family_spec, FAMILIES),
        *(known_spec(family, one) for family in FAMILIES for one in family.known),
    ]
