"""What the authors of diffusers pipelines share: options, and files on disk or on the hub. Imports no torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from sdpo_cli.api.hub import fetch
from sdpo_cli.api.specs import HubFiles, Options, UserPath
from sdpo_cli.errors import ArtifactError

INDEX = "model_index.json"
SKIPPED = {"safety_checker", "feature_extractor", "image_encoder"}
"""Components that no text-to-image step needs; they are neither fetched nor loaded."""


class PipelineOptions(Options):
    """Where a pipeline is and how it is loaded."""

    path: UserPath = Field(description="Folder in diffusers layout, hub id, or single .safetensors file.")
    revision: str | None = Field(default=None, description="Commit, tag or branch on the hub.")
    config: UserPath | None = Field(
        default=None, description="Of a single file: folder or hub id of a pipeline of the same shape."
    )
    denoiser: UserPath | None = Field(
        default=None, description="Weights in place of the denoiser's: a file, or OWNER/NAME/FILE on the hub."
    )
    base_lora: UserPath | None = Field(
        default=None,
        description="LoRA merged into the base weights, such as Lightning's: a file, or OWNER/NAME/FILE on the hub.",
    )
    base_lora_scale: float = Field(default=1.0, description="Factor of that LoRA.")
    height: int | None = Field(default=None, ge=8, description="Height of the pictures; null means the model's own.")
    width: int | None = Field(default=None, ge=8, description="Width of the pictures; null means the model's own.")
    guidance: float | None = Field(
        default=None, ge=0, description="Guidance scale; null means what the model was made for."
    )
    text_encoders: Literal["keep", "offload"] = Field(
        default="keep", description="`offload`: on the device only while they encode."
    )
    gradient_checkpointing: bool = Field(default=False, description="Less memory in the update, for a third more time.")
    vae_tiling: bool = Field(default=False, description="Decode in tiles: less memory, for large pictures.")
    tiny_vae: UserPath | None = Field(
        default=None, description="Folder or hub id of an AutoencoderTiny that decodes what is rewarded in training."
    )


def pipeline_files(repo: str, revision: str | None, components: Sequence[str]) -> HubFiles:
    """The files of a pipeline's components on the hub: settings, vocabularies, and safetensors weights."""
    weighty = [name for name in components if not name.startswith(("scheduler", "tokenizer"))]
    patterns = [INDEX, *(f"{name}/*.json" for name in components if not name.startswith("tokenizer"))]
    patterns += [f"{name}/*" for name in components if name.startswith("tokenizer")]
    return HubFiles(repo, revision, (*patterns, *(f"{name}/*.safetensors" for name in weighty)))


def pipeline_needs(options: PipelineOptions, components: Sequence[str]) -> list[HubFiles]:
    """What a pipeline's load takes from the hub, for `Spec.needs`."""
    source = options.config if options.path.endswith(".safetensors") else options.path
    needs = [pipeline_files(source, options.revision, components)] if source and not Path(source).exists() else []
    needs += [hub_file(path) for path in (options.denoiser, options.base_lora) if path and not Path(path).exists()]
    if options.tiny_vae and not Path(options.tiny_vae).exists():
        needs.append(HubFiles(options.tiny_vae, None, TINY_VAE_FILES))
    return needs


TINY_VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


def hub_file(path: str) -> HubFiles:
    """`OWNER/NAME/FILE` as a file on the hub. ArtifactError where the text has another form."""
    owner, _, rest = path.partition("/")
    name, _, file = rest.partition("/")
    if not file.endswith(".safetensors"):
        remedy = "name a .safetensors file, or OWNER/NAME/FILE.safetensors on the hub"
        raise ArtifactError("no such file", place=path, remedy=remedy)
    return HubFiles(f"{owner}/{name}", None, (file,))


def weights_file(path: str) -> Path:
    """The safetensors file at a path, or at OWNER/NAME/FILE on the hub. ArtifactError where there is none."""
    if Path(path).is_file() and path.endswith(".safetensors"):
        return Path(path)
    files = hub_file(path)
    return fetch(files) / files.files[0]


def pipeline_folder(path: str, revision: str | None) -> Path:
    """The folder at `path`, or the snapshot of the hub id `path` with every component that drawing needs.

    ArtifactError where it is no pipeline or its weights are pickles.
    """
    if Path(path).is_dir():
        folder = Path(path)
        check_complete(folder, components_of(folder))
        return folder
    index = fetch(HubFiles(path, revision, (INDEX,)))
    return fetch(pipeline_files(path, revision, list(components_of(index))))


def components_of(folder: Path) -> dict[str, str]:
    """Component -> class of the pipeline in a folder, from its index. ArtifactError where it has none."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        rows = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[1]}
    except (OSError, ValueError, AttributeError, IndexError) as error:
        raise ArtifactError(
            f"no readable {INDEX}", place=str(folder), remedy="name a folder as diffusers saves a pipeline"
        ) from error
    return {name: kind for name, kind in rows.items() if name not in SKIPPED}


def check_complete(folder: Path, components: dict[str, str]) -> None:
    """ArtifactError, naming the first, where a component's folder or its safetensors weights are missing."""
    for name, kind in components.items():
        if not (folder / name).is_dir():
            raise ArtifactError(f"its index names {kind}, but there is no such folder", place=str(folder / name))
        weighty = not name.startswith(("scheduler", "tokenizer"))
        if weighty and not any((folder / name).glob("*.safetensors")):
            pickled = any((folder / name).glob("*.bin"))
            fault = "only pickled weights, which are never loaded" if pickled else "no safetensors weights"
            remedy = "save the pipeline anew with safe_serialization=True"
            raise ArtifactError(fault, place=str(folder / name), remedy=remedy)


def silence() -> None:
    """Keep the libraries' progress bars and notices off the terminal; their errors still come through.

    To be called before diffusers' pipelines are imported: that import alone prints two notices about torchvision.
    """
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
