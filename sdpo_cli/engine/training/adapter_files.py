"""What lies in an adapter's folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdpo_cli.api.finetune import WEIGHTS as FULL_WEIGHTS
from sdpo_cli.api.lora_file import component_of, read_lora
from sdpo_cli.engine.training.checkpoint import read_json


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter's folder, the kind of adapter in it, and what its denoiser is called in the pipeline."""

    folder: Path
    kind: Literal["lora", "full"]
    component: str

    @property
    def what(self) -> str:
        """One line for people."""
        if self.kind == "lora":
            return "the LoRA, for diffusers' load_lora_weights"
        return "the trained denoiser, for diffusers' from_pretrained"


def adapter_files(folder: Path) -> AdapterFiles:
    """What is in an adapter's folder. ArtifactError where there is no adapter, or a damaged one."""
    if (folder / FULL_WEIGHTS).is_file():
        kind = str(read_json(folder / "config.json").get("_class_name"))
        return AdapterFiles(folder, "full", "unet" if kind.startswith("UNet") else "transformer")
    return AdapterFiles(folder, "lora", component_of(read_lora(folder)))


def base_changes(options: Mapping[str, Any]) -> list[str]:
    """What a recipe's model options put in place of the base model's own weights."""
    changes = [f"the denoiser `{options['denoiser']}`"] if options.get("denoiser") else []
    if options.get("base_lora"):
        changes.append(f"the LoRA `{options['base_lora']}` merged in at scale {options.get('base_lora_scale', 1.0):g}")
    return changes
