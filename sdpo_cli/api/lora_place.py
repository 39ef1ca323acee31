"""Where a LoRA file is. Imports no torch, so that a fault comes at once."""

from pathlib import Path

from sdpo_cli.errors import ArtifactError, UsageError

WEIGHTS = "pytorch_lora_weights.safetensors"


def find_lora(path: Path) -> Path:
    """The LoRA file that `path` is, or holds as diffusers names it.

    UsageError where nothing is there, ArtifactError where it is no LoRA.
    """
    if path.is_dir():
        if (path / WEIGHTS).is_file():
            return path / WEIGHTS
        pickled = any(path.glob("*.bin"))
        fault = "only pickled weights, which are never loaded" if pickled else f"no {WEIGHTS} in this folder"
        remedy = "save the LoRA anew as safetensors" if pickled else "name a folder that holds a trained adapter"
        raise ArtifactError(fault, place=str(path), remedy=remedy)
    if not path.is_file():
        remedy = "name a run, an adapter's folder or a .safetensors file"
        raise UsageError("no such file or folder", place=str(path), remedy=remedy)
    if path.suffix != ".safetensors":
        fault = "not a .safetensors file; pickles are never loaded"
        raise ArtifactError(fault, place=str(path), remedy="save the LoRA anew as safetensors")
    return path
