"""Loading diffusers pipelines: whole or with another denoiser, from a folder, the hub or a single file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from diffusers import AutoencoderTiny
from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdpo_cli.api.diffusers_model import DiffusersModel, networks
from sdpo_cli.api.finetune import first_misfit
from sdpo_cli.api.hub import fetch
from sdpo_cli.api.lora import first_line
from sdpo_cli.api.pipelines import (
    DENOISERS,
    INDEX,
    SKIPPED,
    TINY_VAE_FILES,
    PipelineOptions,
    check_weights,
    check_whole,
    components_of,
    denoiser_source,
    pinned,
    pipeline_folder,
    weights_file,
)
from sdpo_cli.api.specs import HubFiles, LoadContext
from sdpo_cli.errors import ArtifactError, UsageError

UNLOADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, SingleFileComponentError)
"""What diffusers and transformers raise of files that they cannot make a network of."""

M = TypeVar("M", bound=DiffusersModel)


def load_model(family: type[M], options: PipelineOptions, context: LoadContext) -> M:
    """A family's base model of the checkpoint that `options` name, with its tiny VAE if they name one.

    ArtifactError where anything cannot be loaded, UsageError where the options do not fit.
    """
    pipeline = load_pipeline(family.pipeline_class, family.component, options, context)
    return as_model(family, pipeline, options, context)


def as_model(family: type[M], pipeline: Any, options: PipelineOptions, context: LoadContext) -> M:
    """A frozen pipeline as a family's base model, with its tiny VAE and compiled where that is asked for."""
    model = family(pipeline, options.path, options)
    if options.tiny_vae:
        model.tiny_vae = load_tiny_vae(options.tiny_vae, context)
        check_tiny_vae(model, options.tiny_vae)
    if context.compile:
        model.compile()
    return model


def load_pipeline(pipeline_class: Any, component: str, options: PipelineOptions, context: LoadContext) -> Any:
    """The frozen pipeline that `options` name, safetensors only, on the context's device and in its dtype.

    ArtifactError where it cannot be loaded.
    """
    dtype = getattr(torch, context.dtype)
    single = options.path.endswith(".safetensors")
    folder = settings_folder(options) if single else pipeline_home(options)
    given = {component: load_denoiser(folder, component, options.denoiser, dtype)} if options.denoiser else {}
    if single:
        pipeline = from_single_file(pipeline_class, weights_file(options.path), folder, dtype, given)
    else:
        pipeline = from_folder(pipeline_class, folder, dtype, given)
    if options.base_lora:
        merge_lora(pipeline, weights_file(options.base_lora), options.base_lora_scale)
    return frozen(pipeline, component, options, context)


def frozen(pipeline: Any, component: str, options: PipelineOptions, context: LoadContext) -> Any:
    """The pipeline ready to draw on the context's device: weights frozen, memory saved as the options say."""
    pipeline.set_progress_bar_config(disable=True)
    for network in networks(pipeline).values():
        network.requires_grad_(False).eval()
    if options.gradient_checkpointing:
        getattr(pipeline, component).enable_gradient_checkpointing(recomputed)
    if options.vae_tiling:
        pipeline.vae.enable_tiling()
    return place(pipeline, options, context.device)


def recomputed(block: nn.Module, *args: Any) -> Any:
    """A block's output; for the gradient it is computed once more, instead of keeping what is in between.

    The state of the random generator is not kept, as torch would: the networks draw nothing, for they are in eval mode
    and their LoRAs have no dropout. Looking at it would make the host wait, and could not be recorded as a CUDA graph.
    """
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)


def pipeline_home(options: PipelineOptions) -> Path:
    """The folder of the pipeline that `options.path` names; its denoiser needs no weights where options give one."""
    return pipeline_folder(options.path, options.revision, DENOISERS if options.denoiser else ())


def settings_folder(options: PipelineOptions) -> Path:
    """The folder with the settings of a single file. UsageError where the options name none."""
    if not options.config:
        remedy = "name a pipeline of the same shape as option config"
        raise UsageError("a single file holds no settings", place=options.path, remedy=remedy)
    home, revision = (options.config, None) if Path(options.config).is_dir() else pinned(options.config)
    index = Path(home) if Path(home).is_dir() else fetch(HubFiles(home, revision, (INDEX,)))
    return pipeline_folder(home, revision, list(components_of(index)))


def place(pipeline: Any, options: PipelineOptions, device: str) -> Any:
    """The pipeline's networks on `device`; offloaded text encoders stay where they are."""
    for name, network in networks(pipeline).items():
        if not (options.text_encoders == "offload" and name.startswith("text_encoder")):
            network.to(device)
    return pipeline


def from_folder(pipeline_class: Any, folder: Path, dtype: torch.dtype, given: Mapping[str, Any]) -> Any:
    """The pipeline in a folder, with the components in `given` and without what `SKIPPED` names."""
    left_out: dict[str, Any] = dict.fromkeys(SKIPPED & set(pipeline_class._optional_components))
    if "safety_checker" in left_out:
        left_out["requires_safety_checker"] = False
    encoders = load_text_encoders(folder, dtype)
    try:
        pipeline = pipeline_class.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, **left_out, **given, **encoders
        )
    except UNLOADABLE as error:
        raise not_loadable(pipeline_class, str(folder), error) from error
    for name, network in networks(pipeline).items():
        check_filled(network, folder / name)
    return pipeline


def load_text_encoders(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The text encoders of the pipeline in a folder, by component.

    ArtifactError where a file lacks weights: transformers would draw them at random and go on.
    """
    found: dict[str, Any] = {}
    for name, kind in components_of(folder).items():
        if name.startswith("text_encoder"):
            network = getattr(transformers, kind)
            try:
                found[name], info = network.from_pretrained(
                    folder / name, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
                )
            except UNLOADABLE as error:
                raise not_loadable(network, str(folder / name), error) from error
            missing = sorted(key for key in info["missing_keys"] if "lm_head" not in key)  # no prompt needs a head
            if missing:
                fault = f"of the weights of {kind} {len(missing)} are missing, the first {missing[0]}"
                raise ArtifactError(fault, place=str(folder / name), remedy="fetch or save the pipeline anew")
    return found


def from_single_file(
    pipeline_class: Any, file: Path, config: Path, dtype: torch.dtype, given: Mapping[str, Any]
) -> Any:
    """The pipeline in one .safetensors file, its settings and vocabularies from the folder `config`."""
    check_whole(file)
    left_out = dict.fromkeys(SKIPPED & set(pipeline_class._optional_components))
    try:
        return pipeline_class.from_single_file(
            str(file), config=str(config), dtype=dtype, local_files_only=True, **left_out, **given
        )
    except UNLOADABLE as error:
        raise not_loadable(pipeline_class, str(file), error, "name one that holds a whole pipeline") from error


def not_loadable(
    kind: Any, path: str, error: Exception, remedy: str = "name a folder in diffusers layout with safetensors weights"
) -> ArtifactError:
    """What to say of what a class of diffusers could not load."""
    return ArtifactError(f"not loadable as {kind.__name__} ({first_line(error)})", place=path, remedy=remedy)


def load_denoiser(folder: Path, component: str, path: str, dtype: torch.dtype) -> Any:
    """A denoiser: a network with settings of its own, or a weights file for the settings in the pipeline's folder.

    The file has diffusers' own key form. ArtifactError where it does not fit.
    """
    kind, source = getattr(diffusers, components_of(folder)[component]), denoiser_source(path)
    try:
        with init_empty_weights():
            denoiser = kind.from_config(kind.load_config(folder / component))
    except UNLOADABLE as error:
        raise not_loadable(kind, str(folder / component), error) from error
    wanted = denoiser.state_dict()
    if source.is_dir():
        denoiser = load_network(kind, source, dtype)
        weights = denoiser.state_dict()
        wanted = {name: one for name, one in wanted.items() if name in weights}  # it may have layers of its own
        misfit = first_misfit(wanted, {name: weights[name] for name in wanted})
    else:
        check_whole(source)
        weights = load_file(source)
        misfit = first_misfit(wanted, weights)
    if misfit:
        remedy = "name weights in diffusers' form, of the same shape"
        raise ArtifactError(f"not the weights of this {kind.__name__} ({misfit})", place=str(source), remedy=remedy)
    if not source.is_dir():
        denoiser.load_state_dict(weights, assign=True)
    return denoiser.to(dtype)


def load_network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The network of a diffusers class in a folder, safetensors only. ArtifactError where it cannot be loaded."""
    check_weights(folder)
    try:
        network = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    except UNLOADABLE as error:
        raise not_loadable(kind, str(folder), error) from error
    check_filled(network, folder)
    return network


def check_filled(network: Any, folder: Path) -> None:
    """ArtifactError where the files of a network had not all of its weights: diffusers leaves the others empty."""
    empty = next((name for name, one in network.named_parameters() if one.is_meta), None)
    if empty:
        raise not_loadable(type(network), str(folder), ValueError(f"it has no {empty}"))


def merge_lora(pipeline: Any, path: Path, scale: float) -> None:
    """Merge a LoRA file into the pipeline's weights. ArtifactError where it does not fit."""
    check_whole(path)
    try:
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
        names = [name for one in networks(pipeline).values() for name, _ in one.named_parameters()]
        found = sum(".lora_A." in name or ".lora_B." in name for name in names)
        weights = pipeline.lora_state_dict(str(path.parent), weight_name=path.name, local_files_only=True)
        named = weights[0] if isinstance(weights, tuple) else weights  # UNet families add network alphas
        expected = sum(".lora" in name for name in named)
        if not found or found != expected:
            raise ValueError(f"of its {expected} tensors {found} found a place")
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
    except UNLOADABLE as error:
        raise ArtifactError(
            f"this LoRA does not fit the model ({first_line(error)})",
            place=str(path),
            remedy="use the base model it was made for",
        ) from error


def load_tiny_vae(path: str, context: LoadContext) -> Any:
    """A frozen AutoencoderTiny from a folder or hub id. ArtifactError where it cannot be loaded."""
    folder = Path(path) if Path(path).is_dir() else fetch(HubFiles(*pinned(path), TINY_VAE_FILES))
    vae = load_network(AutoencoderTiny, folder, getattr(torch, context.dtype))
    return vae.to(context.device).requires_grad_(False).eval()


def check_tiny_vae(model: DiffusersModel, path: str) -> None:
    """ArtifactError where the tiny VAE takes other latents than the model gives, or makes pictures of another size."""
    latents = torch.zeros(1, model.latent_shape[0], 8, 8, device=model.device)
    try:
        same = model.decode_preview(latents).shape == model.decode(latents).shape
    except RuntimeError:
        same = False
    if not same:
        fault = "this tiny VAE is not for the latents of this model"
        raise ArtifactError(fault, place=path, remedy="name the one made for its VAE")
