"""Full fine-tuning of a diffusers denoiser: all its weights are the adapter, in place of a LoRA's.

On the device: 16 bytes a weight (float32 weights, their gradient, AdamW's two moments) and the activations; on the CPU
the base weights in their own number format.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sdpo_cli.api.file_modes import open_to_readers
from sdpo_cli.api.lora import cannot_write
from sdpo_cli.errors import ArtifactError, first_line

WEIGHTS = "diffusion_pytorch_model.safetensors"
ONE_FILE = "100TB"
"""More than any denoiser: its weights stay in one file, which one rename replaces."""


class Finetune:
    """The weights of a denoiser, float32, to be trained; the base weights wait on the CPU.

    Args:
        denoiser: it is changed in place.
        dtype: what it computes in, by autocast where that is not float32.
    """

    def __init__(self, denoiser: Any, dtype: torch.dtype) -> None:
        self.denoiser, self.dtype = denoiser, dtype
        self.base = {name: one.detach().to("cpu", copy=True) for name, one in denoiser.named_parameters()}
        denoiser.float().requires_grad_(True)
        if dtype != torch.float32:
            compute_in(denoiser, dtype)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The denoiser's weights by name, in a stable order."""
        return dict(self.denoiser.named_parameters())

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """While entered, the denoiser has its base weights, and the trained ones wait on the CPU."""
        weights = self.parameters()
        trained = {name: one.detach().to("cpu", copy=True) for name, one in weights.items()}
        try:
            put_into(weights, self.base)
            yield
        finally:
            put_into(weights, trained)

    def save(self, folder: Path) -> None:
        """Write the denoiser so that its class loads it with `from_pretrained(folder)`, whole or not at all."""
        partial = folder / ".partial"
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            self.denoiser.save_pretrained(partial, safe_serialization=True, max_shard_size=ONE_FILE)
            open_to_readers(partial)
            for file in sorted(partial.iterdir()):
                file.replace(folder / file.name)
        except (OSError, SafetensorError) as error:
            raise cannot_write(folder, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def merge(self) -> None:
        """Make the trained weights the denoiser's own, frozen and in its number format."""
        self.denoiser.to(self.dtype).requires_grad_(False)
        vars(self.denoiser).pop("forward", None)

    def remove(self) -> None:
        """Give the denoiser its base weights back."""
        put_into(self.parameters(), self.base)
        self.merge()


def compute_in(denoiser: Any, dtype: torch.dtype) -> None:
    """Let a float32 denoiser compute in `dtype`."""
    forward = denoiser.forward

    @wraps(forward)
    def computed(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(denoiser.device.type, dtype):
            return forward(*args, **kwargs)

    denoiser.forward = computed


@torch.no_grad()
def put_into(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Overwrite weights in place, whatever device and number format the values have."""
    for name, weight in weights.items():
        weight.copy_(values[name])


def finetuned_weights(denoiser: nn.Module, folder: Path) -> dict[str, Tensor] | None:
    """The weights that `Finetune.save` wrote into `folder`, None where it holds none.

    ArtifactError where they cannot be read or are not those of `denoiser`.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        return None
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        fault = f"not a readable safetensors file ({first_line(error)})"
        raise ArtifactError(fault, place=str(path), remedy="train anew, or go back to an earlier copy") from error
    misfit = first_misfit(denoiser.state_dict(), weights)
    if misfit:
        fault = f"not the weights of this {type(denoiser).__name__} ({misfit})"
        raise ArtifactError(fault, place=str(path), remedy="use the base model it was trained on")
    return weights


def first_misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """What is wrong with the first tensor that `given` lacks, has too many, or has in another shape; or nothing."""
    for name in {**wanted, **given}:
        if name not in given:
            return f"it has no {name}"
        if name not in wanted:
            return f"{name} is unknown"
        if given[name].shape != wanted[name].shape:
            return f"{name} is {list(given[name].shape)}, not {list(wanted[name].shape)}"
    return ""
