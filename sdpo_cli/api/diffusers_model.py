"""A diffusers pipeline as a base model: all that families share. Each adds encoding, schedule and clean estimate."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderTiny
from jaxtyping import Float
from torch import Tensor, nn

from sdpo_cli.api.hub import fetch
from sdpo_cli.api.lora import add_lora, first_line, load_lora, lora_parameters, save_lora, without_lora
from sdpo_cli.api.pipelines import SKIPPED, TINY_VAE_FILES, PipelineOptions, pipeline_folder, weights_file
from sdpo_cli.api.specs import HubFiles, LoadContext
from sdpo_cli.api.tensors import AdapterOptions, Conditioning, Sampler
from sdpo_cli.errors import ArtifactError, UsageError


class DiffusersModel:
    """Base of the adapters of diffusers pipelines.

    A family sets the class attributes, adds `schedule` and `denoise`, and overrides `encode_prompts` and `to_latents`.
    The networks run in the pipeline's dtype; latents, schedules and clean estimates are float32.

    Attributes:
        pipeline_class: the diffusers pipeline.
        component: what the denoiser is called in it: `unet` or `transformer`.
    """

    pipeline_class: ClassVar[Any]
    component: ClassVar[str]
    latent_shape: tuple[int, int, int]
    sampler: Sampler

    def __init__(self, pipeline: Any, source: str, options: PipelineOptions) -> None:
        self.pipeline, self.source, self.options = pipeline, source, options
        self.denoiser: Any = getattr(pipeline, self.component)
        self.vae: Any = pipeline.vae
        self.tiny_vae: Any = None
        self.device = torch.device(self.denoiser.device)
        self.dtype: torch.dtype = self.denoiser.dtype
        self.identity = weights_fingerprint(*networks(pipeline).values())

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of B prompts; offloaded encoders are on the device meanwhile."""
        with self.encoders_at_hand():
            return self.encode_prompts(list(prompts))

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Named tensors [B ...] of B prompts."""
        raise NotImplementedError

    @contextmanager
    def encoders_at_hand(self) -> Iterator[None]:
        """While entered, the text encoders are on the device."""
        offloaded = self.options.text_encoders == "offload"
        encoders = [one for name, one in networks(self.pipeline).items() if name.startswith("text_encoder")]
        for encoder in encoders if offloaded else ():
            encoder.to(self.device)
        try:
            yield
        finally:
            for encoder in encoders if offloaded else ():
                encoder.to("cpu")

    def to_latents(self, x0: Float[Tensor, "B C H W"], vae: Any) -> Tensor:
        """Clean estimates as `vae` decodes them: unscaled, and shifted where the VAE says so."""
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        latents: Tensor = x0 / vae.config.scaling_factor + shift
        return latents

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 h w"]:
        """The VAE's pictures, clamped to 0..1."""
        return self.decode_with(self.vae, x0)

    @torch.no_grad()
    def decode_preview(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 h w"]:
        """The tiny VAE's pictures, clamped to 0..1; those of `decode` where there is none."""
        return self.decode_with(self.tiny_vae or self.vae, x0)

    def decode_with(self, vae: Any, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 h w"]:
        """Pictures by a VAE, in its own dtype."""
        pictures = vae.decode(self.to_latents(x0, vae).to(vae.dtype)).sample
        clamped: Tensor = (pictures.float() / 2 + 0.5).clamp(0, 1)
        return clamped

    def add_adapter(self, options: AdapterOptions) -> None:
        """A fresh LoRA on the denoiser."""
        add_lora(self.denoiser, options)

    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The LoRA's weights."""
        return lora_parameters(self.denoiser)

    def without_adapter(self) -> AbstractContextManager[None]:
        """The bare denoiser while entered."""
        return without_lora(self.denoiser)

    def save_adapter(self, folder: Path) -> None:
        """A file that `pipeline.load_lora_weights(folder)` loads."""
        save_lora(self.pipeline_class, self.component, self.denoiser, folder)

    def load_adapter(self, folder: Path) -> None:
        """A LoRA written by `save_adapter`, or any LoRA file that the pipeline itself would load."""
        load_lora(self.pipeline_class, self.component, self.denoiser, folder)


def networks(pipeline: Any) -> dict[str, Any]:
    """The pipeline's networks by component name."""
    return {name: one for name, one in pipeline.components.items() if isinstance(one, nn.Module)}


def load_pipeline(pipeline_class: Any, component: str, options: PipelineOptions, context: LoadContext) -> Any:
    """The frozen pipeline that `options` name, safetensors only, on the context's device and in its dtype.

    ArtifactError where it cannot be loaded.
    """
    dtype = getattr(torch, context.dtype)
    if options.path.endswith(".safetensors"):
        pipeline = from_single_file(pipeline_class, options, dtype)
    else:
        pipeline = from_folder(pipeline_class, pipeline_folder(options.path, options.revision), dtype)
    pipeline.set_progress_bar_config(disable=True)
    if options.denoiser:
        replace_weights(getattr(pipeline, component), weights_file(options.denoiser))
    if options.base_lora:
        merge_lora(pipeline, weights_file(options.base_lora), options.base_lora_scale)
    for network in networks(pipeline).values():
        network.requires_grad_(False).eval()
    if options.gradient_checkpointing:
        getattr(pipeline, component).enable_gradient_checkpointing()
    if options.vae_tiling:
        pipeline.vae.enable_tiling()
    return place(pipeline, options, context.device)


def place(pipeline: Any, options: PipelineOptions, device: str) -> Any:
    """The pipeline's networks on `device`; offloaded text encoders stay where they are."""
    for name, network in networks(pipeline).items():
        if not (options.text_encoders == "offload" and name.startswith("text_encoder")):
            network.to(device)
    return pipeline


def from_folder(pipeline_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The pipeline in a folder, without what `SKIPPED` names."""
    left_out: dict[str, Any] = dict.fromkeys(SKIPPED & set(pipeline_class._optional_components))
    if "safety_checker" in left_out:
        left_out["requires_safety_checker"] = False
    try:
        return pipeline_class.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, **left_out
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise not_loadable(pipeline_class, str(folder), error) from error


def from_single_file(pipeline_class: Any, options: PipelineOptions, dtype: torch.dtype) -> Any:
    """The pipeline in one .safetensors file, its settings and vocabularies from `options.config`."""
    if not options.config:
        raise UsageError(
            "a single file holds no settings", place=options.path, remedy="name a pipeline of the same shape as config"
        )
    config = pipeline_folder(options.config, None)
    try:
        return pipeline_class.from_single_file(options.path, config=str(config), dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise not_loadable(pipeline_class, options.path, error) from error


def not_loadable(pipeline_class: Any, path: str, error: Exception) -> ArtifactError:
    """What to say of a pipeline that its class could not load."""
    return ArtifactError(
        f"not loadable as {pipeline_class.__name__} ({first_line(error)})",
        place=path,
        remedy="name a folder in diffusers layout with safetensors weights",
    )


def replace_weights(denoiser: nn.Module, path: Path) -> None:
    """Give the denoiser the weights of a file in diffusers' own key form. ArtifactError where they do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        denoiser.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        kind = type(denoiser).__name__
        raise ArtifactError(
            f"not the weights of this {kind} ({first_line(error)})", place=str(path), remedy="name its own weights"
        ) from error


def merge_lora(pipeline: Any, path: Path, scale: float) -> None:
    """Merge a LoRA file into the pipeline's weights. ArtifactError where it does not fit."""
    try:
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
        pipeline.fuse_lora(lora_scale=scale)
        pipeline.unload_lora_weights()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"this LoRA does not fit the model ({first_line(error)})",
            place=str(path),
            remedy="use the base model it was made for",
        ) from error


def load_tiny_vae(path: str, context: LoadContext) -> Any:
    """A frozen AutoencoderTiny from a folder or hub id. ArtifactError where it cannot be loaded."""
    folder = Path(path) if Path(path).is_dir() else fetch(HubFiles(path, None, TINY_VAE_FILES))
    try:
        vae: Any = AutoencoderTiny.from_pretrained(  # type: ignore[no-untyped-call]
            folder, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise not_loadable(AutoencoderTiny, str(folder), error) from error
    return vae.to(context.device, getattr(torch, context.dtype)).requires_grad_(False).eval()


def weights_fingerprint(*modules: nn.Module) -> str:
    """SHA-256, 16 digits, of every parameter's name and shape and of up to 64 of its values, evenly spread."""
    digest = hashlib.sha256()
    for module in modules:
        for name, parameter in module.named_parameters():
            flat = parameter.detach().flatten()
            some = flat[:: max(1, len(flat) // 64)][:64].float().cpu()
            digest.update(f"{name} {tuple(parameter.shape)} {some.tolist()}".encode())
    return digest.hexdigest()[:16]
