"""LoRA on a diffusers denoiser, for the authors of base models: PEFT and diffusers do the work.

Source: LoRA, arXiv 2106.09685.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from sdpo_cli.api.tensors import AdapterOptions
from sdpo_cli.errors import ArtifactError, UsageError

ADAPTER = "sdpo"
WEIGHTS = "pytorch_lora_weights.safetensors"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def target_modules(denoiser: nn.Module, targets: Any) -> list[str]:
    """Full names of the modules that get a LoRA. UsageError where none matches.

    `attention`: query, key, value and output projections. `linear`: every linear layer inside an attention or
    feed-forward block. Anything else: a sequence of module-name endings.
    """
    if targets == "linear":
        names = [
            name
            for name, module in denoiser.named_modules()
            if isinstance(module, nn.Linear) and ("attn" in name or ".ff." in name or "attentions" in name)
        ]
    else:
        endings = ATTENTION if targets == "attention" else tuple(targets)
        names = [
            name
            for name, module in denoiser.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(endings)
        ]
    if not names:
        raise UsageError(
            f"no layer of {type(denoiser).__name__} ends with {targets!r}",
            place="model.lora.targets",
            remedy="use attention, linear, or endings of layer names",
        )
    return names


def add_lora(denoiser: Any, options: AdapterOptions) -> None:
    """Put a fresh LoRA on `denoiser`: A uniform in ±1/√fan_in from `options.seed`, B zero, both float32."""
    from peft import LoraConfig

    names = target_modules(denoiser, options.targets)
    alpha: Any = options.alpha  # PEFT says int and takes any number
    denoiser.add_adapter(LoraConfig(r=options.rank, lora_alpha=alpha, target_modules=names), ADAPTER)
    generator = torch.Generator().manual_seed(options.seed)
    for name, parameter in lora_parameters(denoiser).items():
        parameter.data = parameter.data.float()
        if ".lora_A." in name:
            bound = 1 / math.sqrt(math.prod(parameter.shape[1:]))
            parameter.data.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def lora_parameters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA's weights by name, in a stable order; empty where there is none."""
    return {name: parameter for name, parameter in denoiser.named_parameters() if f".{ADAPTER}." in name}


@contextmanager
def without_lora(denoiser: Any) -> Iterator[None]:
    """While entered, `denoiser` computes as if it had no LoRA."""
    if not lora_parameters(denoiser):
        yield
        return
    denoiser.disable_adapters()
    try:
        yield
    finally:
        denoiser.enable_adapters()


def save_lora(pipeline_class: Any, component: str, denoiser: Any, folder: Path) -> None:
    """Write `folder/pytorch_lora_weights.safetensors` in diffusers' form, whole or not at all.

    Args:
        pipeline_class: diffusers pipeline with `save_lora_weights`.
        component: what the denoiser is called in it: `unet` or `transformer`.
    """
    from peft.utils import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    partial = f".{WEIGHTS}.partial.safetensors"
    weights = get_peft_model_state_dict(denoiser, adapter_name=ADAPTER)
    try:
        pipeline_class.save_lora_weights(
            folder,
            weight_name=partial,
            **{
                f"{component}_lora_layers": {key: one.detach().cpu().contiguous() for key, one in weights.items()},
                f"{component}_lora_adapter_metadata": lora_metadata(denoiser),
            },
        )
        (folder / partial).replace(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"cannot be written ({first_line(error)})", place=str(folder), remedy="free some space"
        ) from error
    finally:
        (folder / partial).unlink(missing_ok=True)


def lora_metadata(denoiser: Any) -> dict[str, Any]:
    """The LoRA's configuration as plain JSON values, sorted: the same bytes for the same LoRA."""
    config = denoiser.peft_config[ADAPTER].to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return dict(json.loads(json.dumps(plain, default=str, sort_keys=True)))


def load_lora(pipeline_class: Any, component: str, denoiser: Any, folder: Path) -> None:
    """Put a saved LoRA on `denoiser`, in place of the one there is. ArtifactError where it does not fit."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise ArtifactError("no such file", place=str(path), remedy="name a folder that holds a trained adapter")
    before = lora_parameters(denoiser)
    if before:
        denoiser.delete_adapters(ADAPTER)
    try:
        # UNet families give network alphas between the two, transformer families do not
        weights, *alphas, metadata = pipeline_class.lora_state_dict(
            folder, weight_name=WEIGHTS, return_lora_metadata=True, local_files_only=True
        )
        denoiser.load_lora_adapter(
            weights,
            prefix=component,
            network_alphas=alphas[0] if alphas else None,
            metadata=metadata,
            adapter_name=ADAPTER,
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ArtifactError(
            f"this adapter does not fit the model ({first_line(error)})",
            place=str(path),
            remedy="use the base model it was trained on",
        ) from error
    for parameter in check_loaded(denoiser, weights, component, path).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def check_loaded(
    denoiser: nn.Module, weights: Mapping[str, torch.Tensor], component: str, path: Path
) -> dict[str, nn.Parameter]:
    """The loaded LoRA's weights. ArtifactError where the file's tensors did not all find a place."""
    parameters = lora_parameters(denoiser)
    expected = sum(not name.endswith(".alpha") for name in weights)
    if not parameters or len(parameters) != expected:
        raise ArtifactError(
            f"of its {expected} tensors {len(parameters)} found a place in the {component}",
            place=str(path),
            remedy="use the base model it was trained on",
        )
    return parameters


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where there is none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
