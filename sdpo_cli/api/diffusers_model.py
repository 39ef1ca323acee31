"""A diffusers pipeline as a base model: all that families share. Each adds encoding, schedule and clean estimate."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sdpo_cli.api.adapters import Adaptable
from sdpo_cli.api.attention import is_cudnn_faster, prefer_cudnn
from sdpo_cli.api.compiling import check_compiler, compile_blocks, padded
from sdpo_cli.api.fused import fuse_blocks
from sdpo_cli.api.graphs import Recorder, record_passes
from sdpo_cli.api.pipelines import PipelineOptions
from sdpo_cli.api.recording import Pool
from sdpo_cli.api.tensors import Conditioning, Sampler

ENCODED = 8
"""Prompts that a text encoder is given at once: the language models among them keep hundreds of MB a prompt."""


class DiffusersModel(Adaptable):
    """Base of the adapters of diffusers pipelines.

    A family sets the class attributes, adds `schedule` and `denoise`, and overrides `encode_prompts` and `to_latents`.
    The networks run in the pipeline's dtype; latents, schedules and clean estimates are float32.

    Attributes:
        pipeline_class: the diffusers pipeline.
        component: what the denoiser is called in it: `unet` or `transformer`.
        compiled: whether the blocks of the denoiser are compiled, each for the shapes that it has met.
        decoder_blocks: how many of the decoder are; where there are any, it is given as many pictures every time.
        decoded: the most pictures decoded by them at once; fewer are filled up to as many.
        recorder: what records the denoiser's passes as CUDA graphs, on CUDA.
    """

    pipeline_class: ClassVar[Any]
    component: ClassVar[str]
    latent_shape: tuple[int, int, int]
    sampler: Sampler
    compiled: bool = False
    decoder_blocks: int = 0
    decoded: int = 0
    recorder: Recorder | None = None

    def __init__(self, pipeline: Any, source: str, options: PipelineOptions) -> None:
        self.pipeline, self.source, self.options = pipeline, source, options
        self.denoiser: Any = getattr(pipeline, self.component)
        self.vae: Any = pipeline.vae
        self.tiny_vae: Any = None
        self.device = torch.device(self.denoiser.device)
        self.dtype: torch.dtype = self.denoiser.dtype
        self.identity = weights_fingerprint(*networks(pipeline).values())

    def compile(self, backend: str = "inductor") -> None:
        """Compile denoiser and decoder for training, where shapes repeat; an adapter may come before or after.

        On CUDA the blocks of UNets and VAEs that are convolutions and norms get kernels of our own instead, and
        attention those of cuDNN where they are faster; whole passes of the denoiser are recorded as CUDA graphs.
        UsageError where it cannot be done.
        """
        check_compiler(self.device)
        if is_cudnn_faster(self.device):
            prefer_cudnn(self.denoiser)
        if self.device.type == "cuda":
            fuse_blocks(self.denoiser)
            fuse_blocks(self.vae.decoder)
        compile_blocks(self.denoiser, backend, middle=self.device.type != "cuda")
        self.decoder_blocks = compile_blocks(self.vae.decoder, backend)
        if self.device.type == "cuda":
            self.recorder = record_passes(self.denoiser, Pool(self.device))
        self.compiled = True

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of B prompts; offloaded encoders are on the device meanwhile."""
        parts = [list(prompts[start : start + ENCODED]) for start in range(0, len(prompts), ENCODED)]
        with self.encoders_at_hand():
            found = [self.encode_prompts(part) for part in parts]
        return {name: torch.cat([part[name] for part in found]) for name in found[0]}

    @property
    def offloads_encoders(self) -> bool:
        """Whether text encoders come to the device for each `encode`."""
        return bool(self.options.text_encoders == "offload")

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Named tensors [B ...] of B prompts."""
        raise NotImplementedError

    @contextmanager
    def encoders_at_hand(self) -> Iterator[None]:
        """While entered, also within itself, the text encoders are on the device."""
        encoders = [one for name, one in networks(self.pipeline).items() if name.startswith("text_encoder")]
        away = [one for one in encoders if self.offloads_encoders and one.device != self.device]
        for encoder in away:
            encoder.to(self.device)
        try:
            yield
        finally:
            for encoder in away:
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

    @property
    def previews(self) -> bool:
        """Whether a tiny VAE decodes what is rewarded in training."""
        return self.tiny_vae is not None

    @torch.no_grad()
    def decode_preview(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 h w"]:
        """The tiny VAE's pictures, clamped to 0..1; those of `decode` where there is none."""
        return self.decode_with(self.tiny_vae or self.vae, x0)

    def decode_with(self, vae: Any, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 h w"]:
        """Pictures by a VAE, in its own dtype."""
        latents = self.to_latents(x0, vae).to(vae.dtype)
        if self.decoder_blocks and vae is self.vae:
            self.decoded = max(self.decoded, len(latents))
            latents = padded(latents, self.decoded)
        pictures = vae.decode(latents).sample[: len(x0)]
        clamped: Tensor = (pictures.float() / 2 + 0.5).clamp(0, 1)
        return clamped


def networks(pipeline: Any) -> dict[str, Any]:
    """The pipeline's networks by component name."""
    return {name: one for name, one in pipeline.components.items() if isinstance(one, nn.Module)}


def weights_fingerprint(*modules: nn.Module) -> str:
    """SHA-256, 16 digits, of name and shape of every weight and buffer and of up to 64 of its values, evenly spread."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            flat = tensor.flatten()
            stride = len(flat) // 64 | 1  # odd, so that it does not stay in one column
            some = flat[::stride][:64].float().cpu()
            digest.update(f"{name} {tuple(tensor.shape)} {some.tolist()}".encode())
    return digest.hexdigest()[:16]
