"""LoRA on a diffusers denoiser, for the authors of base models: PEFT and diffusers do the work.

Source: LoRA, arXiv 2106.09685.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sdpo_cli.api.file_modes import open_to_readers
from sdpo_cli.api.lora_file import (
    Lora,
    LoraFile,
    OtherFormError,
    folded,
    from_diffusers,
    from_kohya,
    read_lora,
)
from sdpo_cli.api.lora_place import WEIGHTS
from sdpo_cli.api.tensors import AdapterOptions
from sdpo_cli.errors import ArtifactError, UsageError
from sdpo_cli.errors import first_line as first_line

ADAPTER = "sdpo"
ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # the text's side of joint attention: SD3, FLUX, Qwen
    *("to_qkv_mlp_proj", "to_out"),  # FLUX.2's single blocks
)
BLOCK = re.compile(r"(.*\.)?(attentions|\w*transformer_blocks|layers|noise_refiner|context_refiner)\.\d+\..*")
MODULATION = re.compile(r".*\.(norm\w*|\w+_mod|adaLN_modulation)\..*")


def target_modules(denoiser: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Full names of the modules that get a LoRA. UsageError where none matches.

    `attention`: query, key, value and output projections. `linear`: every linear layer (and 1x1 convolution, which is
    one) of the transformer blocks but those that only turn the timestep into shifts and scales. Anything else: names of
    modules, or the ends of their dotted names, of linear layers and convolutions.
    """
    layers = {name: one for name, one in denoiser.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)}
    if targets == "linear":
        names = [
            name
            for name, layer in layers.items()
            if is_pointwise(layer) and BLOCK.fullmatch(name) and not MODULATION.fullmatch(name)
        ]
    else:
        endings = tuple(f".{ending}" for ending in (ATTENTION if targets == "attention" else targets))
        names = [name for name in layers if f".{name}".endswith(endings)]
    if not names:
        raise UsageError(
            f"no layer of {type(denoiser).__name__} ends with {targets!r}",
            place="model.lora.targets",
            remedy="use attention, linear, or endings of layer names",
        )
    return names


def is_pointwise(layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether a layer is a matrix that acts on each place alone."""
    return isinstance(layer, nn.Linear) or (layer.kernel_size == (1, 1) and layer.groups == 1)


class LoraAdapter:
    """A LoRA on the denoiser of a diffusers pipeline.

    Args:
        denoiser: it carries the LoRA.
        pipeline_class: a diffusers pipeline with `save_lora_weights`.
        component: what the denoiser is called in it: `unet` or `transformer`.
    """

    def __init__(self, denoiser: Any, pipeline_class: Any, component: str) -> None:
        from sdpo_cli.api.lora_layers import multiply_narrowly

        self.denoiser, self.pipeline_class, self.component = denoiser, pipeline_class, component
        multiply_narrowly(denoiser, ADAPTER)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The LoRA's weights by name, float32, in a stable order."""
        return {name: one for name, one in self.denoiser.named_parameters() if f".{ADAPTER}." in name}

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """While entered, the denoiser computes as if it had no LoRA."""
        self.denoiser.disable_adapters()
        try:
            yield
        finally:
            self.denoiser.enable_adapters()

    def save(self, folder: Path) -> None:
        """Write `folder/pytorch_lora_weights.safetensors` in diffusers' form, whole or not at all."""
        from peft.utils import get_peft_model_state_dict

        folder.mkdir(parents=True, exist_ok=True)
        partial = f".{WEIGHTS}.partial.safetensors"
        weights = get_peft_model_state_dict(self.denoiser, adapter_name=ADAPTER)
        try:
            self.pipeline_class.save_lora_weights(
                folder,
                weight_name=partial,
                **{
                    f"{self.component}_lora_layers": {
                        key: one.detach().cpu().contiguous() for key, one in weights.items()
                    },
                    f"{self.component}_lora_adapter_metadata": lora_metadata(self.denoiser),
                },
            )
            open_to_readers(folder / partial)
            (folder / partial).replace(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise cannot_write(folder, error) from error
        finally:
            (folder / partial).unlink(missing_ok=True)

    def merge(self) -> None:
        """Add the LoRA to the denoiser's own weights, and leave it off."""
        self.denoiser.fuse_lora(adapter_names=[ADAPTER])
        self.denoiser.unload_lora()

    def remove(self) -> None:
        """Take the LoRA off the denoiser."""
        self.denoiser.unload_lora()


def fresh_lora(denoiser: Any, pipeline_class: Any, component: str, options: AdapterOptions) -> LoraAdapter:
    """A new LoRA on `denoiser`: A uniform in ±1/√fan_in from `options.seed`, B zero, both float32."""
    from peft import LoraConfig

    names = target_modules(denoiser, options.targets)
    alpha: Any = options.alpha  # PEFT says int and takes any number
    denoiser.add_adapter(LoraConfig(r=options.rank, lora_alpha=alpha, target_modules=names), ADAPTER)
    adapter = LoraAdapter(denoiser, pipeline_class, component)
    generator = torch.Generator().manual_seed(options.seed)
    for name, parameter in adapter.parameters().items():
        parameter.data = parameter.data.float()
        if ".lora_A." in name:
            bound = 1 / math.sqrt(math.prod(parameter.shape[1:]))
            parameter.data.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    return adapter


def load_lora(denoiser: Any, pipeline_class: Any, component: str, path: Path) -> LoraAdapter:
    """A saved LoRA on a `denoiser` that carries none, its weights float32 and ready to be trained.

    Args:
        path: an adapter's folder, or a .safetensors file in diffusers' or kohya's form, or in any that the pipeline's
            own loader converts.
    ArtifactError where it cannot be read or does not fit.
    """
    file = read_lora(path)
    try:
        lora = lora_for(denoiser, pipeline_class, component, file)
        check_fits(denoiser, lora)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError, re.error) as error:
        raise ArtifactError(
            f"this adapter does not fit the model ({first_line(error)})",
            place=str(file.path),
            remedy="use the base model it was trained on",
        ) from error
    put_on(denoiser, lora)
    return LoraAdapter(denoiser, pipeline_class, component)


def lora_for(denoiser: Any, pipeline_class: Any, component: str, file: LoraFile) -> Lora:
    """The layers of a file, by the names of the denoiser's. ValueError and the like where it has no known form."""
    modules = [name for name, _ in denoiser.named_modules()]
    if any(key.startswith(("text_encoder", "lora_te")) for key in file.tensors):
        raise ValueError("it changes the text encoder too, which is never trained here")
    try:
        if any(".lora_down." in key for key in file.tensors):
            return from_kohya(file.tensors, modules, component)
        return from_diffusers(file.tensors, file.config, component)
    except OtherFormError:
        return converted(denoiser, pipeline_class, component, file.tensors)


def converted(denoiser: Any, pipeline_class: Any, component: str, tensors: Mapping[str, Tensor]) -> Lora:
    """The layers of a file whose names follow another code base, converted by diffusers."""
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    # diffusers loses alphas that differ between layers, and those of some forms: they go into the weights before
    renamed = pipeline_class.lora_state_dict(folded(tensors), unet_config=denoiser.config)
    if isinstance(renamed, tuple):  # pipelines of UNets give alphas too
        renamed = renamed[0]
    if not any(".lora_A." in key for key in renamed):
        renamed = convert_unet_state_dict_to_peft(renamed)  # type: ignore[no-untyped-call]
    return from_diffusers(renamed, {}, component)


def check_fits(denoiser: nn.Module, lora: Lora) -> None:
    """ValueError where a layer is none of the denoiser's, or of another shape."""
    modules = dict(denoiser.named_modules())
    strange = [name for name in lora if not isinstance(modules.get(name), nn.Linear | nn.Conv2d)]
    if strange or not lora:
        example = f", such as {strange[0]}" if strange else ""
        raise ValueError(f"{len(strange)} of its {len(lora)} layers are not in {type(denoiser).__name__}{example}")
    for name, layer in lora.items():
        shape = tuple(modules[name].weight.shape)
        made_for = (layer.up.shape[0], *layer.down.shape[1:])
        if made_for != shape:
            raise ValueError(f"{name} is {list(shape)}, and it was made for {list(made_for)}")


def put_on(denoiser: Any, lora: Lora) -> None:
    """Put a LoRA that fits on a denoiser that carries none."""
    from peft import LoraConfig

    rank = Counter(layer.rank for layer in lora.values()).most_common(1)[0][0]
    alpha: Any = Counter(layer.alpha for layer in lora.values()).most_common(1)[0][0]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(lora),
        rank_pattern={f"^{name}": layer.rank for name, layer in lora.items() if layer.rank != rank},
        alpha_pattern={f"^{name}": layer.alpha for name, layer in lora.items() if layer.alpha != alpha},
    )
    denoiser.add_adapter(config, ADAPTER)
    for name, layer in lora.items():
        module = denoiser.get_submodule(name)
        for matrix, tensor in ((module.lora_A[ADAPTER], layer.down), (module.lora_B[ADAPTER], layer.up)):
            matrix.weight.data = tensor.to(matrix.weight.device).clone()


def lora_metadata(denoiser: Any) -> dict[str, Any]:
    """The LoRA's configuration as plain JSON values, sorted: the same bytes for the same LoRA."""
    config = denoiser.peft_config[ADAPTER].to_dict()
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return dict(json.loads(json.dumps(plain, default=str, sort_keys=True)))


def cannot_write(folder: Path, error: Exception) -> ArtifactError:
    """What to say of weights that could not be written."""
    return ArtifactError(f"cannot be written ({first_line(error)})", place=str(folder), remedy="free some space")
