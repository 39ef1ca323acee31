"""LoRA files: the form of diffusers, the form of kohya that ComfyUI reads, and one record between them.

Source: LoRA, arXiv 2106.09685; the key forms of diffusers, kohya-ss/sd-scripts and ComfyUI.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sdpo_cli.api.lora_place import find_lora
from sdpo_cli.errors import ArtifactError, first_line

METADATA = "lora_adapter_metadata"
SUFFIX = re.compile(r"(.+)\.(?:lora_(A|B|down|up)\.weight|(alpha))")
MATRICES = (("lora_down", "lora_up"), ("lora_A", "lora_B"))
PARTS = {"A": "down", "down": "down", "B": "up", "up": "up", None: "alpha"}


@dataclass(frozen=True)
class LoraLayer:
    """One layer's LoRA: the layer's weight gains alpha / rank · up · down.

    Attributes:
        down: [rank in], or [rank in k k] of a convolution.
        up: [out rank], or [out rank 1 1].
        alpha: its scale times its rank.
    """

    down: Float[Tensor, "rank ..."]
    up: Float[Tensor, "out rank ..."]
    alpha: float

    @property
    def rank(self) -> int:
        """Its rank."""
        return len(self.down)


Lora = dict[str, LoraLayer]
"""A LoRA by the names of the denoiser's layers."""


class OtherFormError(ValueError):
    """The tensors of a LoRA file are called as in a form that is not known here."""


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds; `config` is PEFT's, each key after its component, empty where the file has none."""

    path: Path
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]


def diffusers_tensors(lora: Lora, component: str) -> dict[str, Tensor]:
    """The tensors of diffusers' form, `unet.NAME.lora_A.weight` and so on; its file holds alpha as metadata."""
    return {
        f"{component}.{name}.lora_{part}.weight": tensor
        for name, layer in lora.items()
        for part, tensor in (("A", layer.down), ("B", layer.up))
    }


def from_diffusers(tensors: Mapping[str, Tensor], config: Mapping[str, Any], component: str) -> Lora:
    """The inverse of `diffusers_tensors`. Alphas are those of PEFT's `config`, the ranks where it is empty.

    OtherFormError where the tensors have another form or are another component's, ValueError where they are damaged.
    """
    own = {key.removeprefix(f"{component}."): value for key, value in config.items()}
    return grouped(tensors, lambda stem: without_prefix(stem, f"{component}."), lambda *layer: alpha_of(own, *layer))


def kohya_tensors(lora: Lora, component: str) -> dict[str, Tensor]:
    """The tensors of the form that ComfyUI reads, `NAME.lora_down.weight`, `NAME.lora_up.weight` and `NAME.alpha`.

    A UNet's layers are called as kohya's tools do, `lora_unet_` and the name with `_` for dots. Those of a transformer
    keep diffusers' names, `transformer.NAME`, by which ComfyUI finds the parts of its own fused layers.
    """
    tensors = {}
    for name, layer in lora.items():
        stem = f"lora_unet_{name.replace('.', '_')}" if component == "unet" else f"{component}.{name}"
        parts = {"lora_down.weight": layer.down, "lora_up.weight": layer.up, "alpha": torch.tensor(layer.alpha)}
        tensors.update({f"{stem}.{part}": tensor for part, tensor in parts.items()})
    return tensors


def from_kohya(tensors: Mapping[str, Tensor], modules: Iterable[str], component: str) -> Lora:
    """The inverse of `kohya_tensors`, given the names of the denoiser's modules.

    OneTrainer's and LyCORIS' names for the same form are understood too. Errors as for `from_diffusers`.
    """
    known: dict[str, str] = {}
    for name in modules:
        flat = name.replace(".", "_")
        known |= dict.fromkeys(
            (f"lora_unet_{flat}", f"lora_{component}_{flat}", f"lycoris_{flat}", f"{component}.{name}"), name
        )
    return grouped(tensors, known.get, lambda name, rank: float(rank))


def grouped(
    tensors: Mapping[str, Tensor],
    name_of: Callable[[str], str | None],
    default_alpha: Callable[[str, int], float],
) -> Lora:
    """Layers from tensors, float32. `name_of` gives a key's layer, `default_alpha` the alpha of a layer and its rank.

    OtherFormError where a key has another form or `name_of` knows no layer, ValueError where a layer is not whole.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = SUFFIX.fullmatch(key)
        name = name_of(match[1]) if match else None
        if not match or not name:
            raise OtherFormError(f"{key} belongs to no layer")
        parts.setdefault(name, {})[PARTS[match[2]]] = tensor.float()
    for name, layer in parts.items():
        if not {"down", "up"} <= layer.keys() or layer["down"].shape[0] != layer["up"].shape[1]:
            raise ValueError(f"the two matrices of {name} do not belong together")
    return {
        name: LoraLayer(
            layer["down"],
            layer["up"],
            layer["alpha"].item() if "alpha" in layer else default_alpha(name, len(layer["down"])),
        )
        for name, layer in parts.items()
    }


def without_prefix(stem: str, prefix: str) -> str | None:
    """The rest of a text that begins with `prefix`, else None."""
    return stem.removeprefix(prefix) if stem.startswith(prefix) else None


def alpha_of(config: Mapping[str, Any], name: str, rank: int) -> float:
    """A layer's alpha by PEFT's configuration: its rank where there is none."""
    from peft.utils.other import get_pattern_key

    if not config:
        return float(rank)
    patterns = config.get("alpha_pattern") or {}
    alpha = float(patterns.get(get_pattern_key(list(patterns), name), config["lora_alpha"]))
    return alpha * math.sqrt(rank) if config.get("use_rslora") else alpha


def folded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, float32, each alpha multiplied into its layer's up matrix and left out: the same LoRA."""
    scaled = {key: tensor.float() for key, tensor in tensors.items()}
    for key in [key for key in tensors if key.endswith(".alpha")]:
        stem = key.removesuffix("alpha")
        for down, up in ((f"{stem}{down}.weight", f"{stem}{up}.weight") for down, up in MATRICES):
            if down in scaled and up in scaled:
                scaled[up] = scaled[up] * (scaled.pop(key).item() / len(scaled[down]))
    return scaled


def read_lora(path: Path) -> LoraFile:
    """The LoRA file at `path`, a file or an adapter's folder. ArtifactError where there is none or it is damaged."""
    path = find_lora(path)
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"not a readable safetensors file ({first_line(error)})", place=str(path), remedy="save the LoRA anew"
        ) from error
    return LoraFile(path, tensors, config)


def component_of(file: LoraFile) -> str:
    """What the denoiser of a LoRA in diffusers' form is called. ArtifactError where the file has another form."""
    found = {key.partition(".")[0] for key in file.tensors}
    if len(found) == 1 and found <= {"unet", "transformer"}:
        return found.pop()
    raise ArtifactError("not a LoRA as sdpo writes it", place=str(file.path), remedy="name a run")
