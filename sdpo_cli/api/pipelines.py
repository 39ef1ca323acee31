"""What the authors of diffusers pipelines share: options, and files on disk or on the hub. Imports no torch."""

import json
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, create_model

from sdpo_cli.api.hub import fetch
from sdpo_cli.api.specs import HubFiles, Options, UserPath
from sdpo_cli.errors import ArtifactError, UsageError

INDEX = "model_index.json"
SKIPPED = {"safety_checker", "feature_extractor", "image_encoder"}
"""Components that no text-to-image step needs; they are neither fetched nor loaded."""
DENOISERS = ("unet", "transformer")
"""What pipelines call their denoiser."""
NETWORK_FILES = ("*.json", "*.safetensors")
TINY_VAE_FILES = ("config.json", "diffusion_pytorch_model.safetensors")

P = TypeVar("P", bound=Options)


class PipelineOptions(Options):
    """Where a pipeline is and how it is loaded."""

    path: UserPath = Field(description="Folder in diffusers layout, hub id, or single .safetensors file.")
    revision: str | None = Field(default=None, description="Commit, tag or branch on the hub.")
    config: UserPath | None = Field(
        default=None,
        description="Of a single file: folder, or OWNER/NAME[@REVISION] on the hub, of a pipeline of the same shape.",
    )
    denoiser: UserPath | None = Field(
        default=None,
        description="Denoiser in place of the pipeline's: a weights file, or OWNER/NAME[@REVISION]/FILE on the hub; "
        "or a folder or OWNER/NAME[@REVISION] that holds a network with its settings.",
    )
    base_lora: UserPath | None = Field(
        default=None,
        description="LoRA merged into the base weights, such as Lightning's: a file, or OWNER/NAME[@REVISION]/FILE on "
        "the hub.",
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
    gradient_checkpointing: bool = Field(
        default=False, description="Less memory in the update, which takes up to 1.6 times as long."
    )
    vae_tiling: bool = Field(default=False, description="Decode in tiles: less memory, for large pictures.")
    tiny_vae: UserPath | None = Field(
        default=None,
        description="AutoencoderTiny that decodes what is rewarded in training: a folder, or OWNER/NAME[@REVISION] on "
        "the hub.",
    )


def preset(options: type[P], name: str, defaults: Mapping[str, Any]) -> type[P]:
    """The options with other defaults: those of the known checkpoint `name`."""
    fields: dict[str, Any] = {}
    for field, value in defaults.items():
        changed = copy(options.model_fields[field])
        changed.default = value
        fields[field] = (changed.annotation, changed)
    made: type[P] = create_model(f"Options of {name}", __base__=options, __doc__=f"Options of {name}.", **fields)
    return made


def pipeline_files(
    repo: str, revision: str | None, components: Sequence[str], weightless: Sequence[str] = ()
) -> HubFiles:
    """The files of a pipeline's components on the hub: settings, vocabularies, and safetensors weights.

    `weightless` names the components whose weights come from elsewhere.
    """
    weighty = [name for name in components if has_weights(name) and name not in weightless]
    patterns = [INDEX, *(f"{name}/*.json" for name in components if not name.startswith("tokenizer"))]
    patterns += [f"{name}/*" for name in components if name.startswith("tokenizer")]
    return HubFiles(repo, revision, (*patterns, *(f"{name}/*.safetensors" for name in weighty)))


def has_weights(component: str) -> bool:
    """Whether a component is a network."""
    return not component.startswith(("scheduler", "tokenizer"))


def given_elsewhere(options: PipelineOptions, components: Sequence[str]) -> list[str]:
    """The components whose weights are not taken from the pipeline's folder."""
    if options.path.endswith(".safetensors"):
        return list(components)
    return [name for name in components if name in DENOISERS and options.denoiser]


def pipeline_needs(options: PipelineOptions, components: Sequence[str]) -> list[HubFiles]:
    """What a pipeline's load takes from the hub, for `Spec.needs`."""
    single = options.path.endswith(".safetensors")
    home = options.config if single else options.path
    needs = []
    if home and not Path(home).exists():
        source = pinned(home) if single else (home, options.revision)
        needs.append(pipeline_files(*source, components, given_elsewhere(options, components)))
    if single and not Path(options.path).exists():
        needs.append(hub_file(options.path))
    if options.denoiser and not Path(options.denoiser).exists():
        needs.append(denoiser_files(options.denoiser))
    if options.base_lora and not Path(options.base_lora).exists():
        needs.append(hub_file(options.base_lora))
    if options.tiny_vae and not Path(options.tiny_vae).exists():
        needs.append(HubFiles(*pinned(options.tiny_vae), TINY_VAE_FILES))
    return needs


def hub_file(path: str) -> HubFiles:
    """`OWNER/NAME/FILE` or `OWNER/NAME@REVISION/FILE` as a file on the hub. UsageError where it has another form."""
    owner, _, rest = path.partition("/")
    name, _, file = rest.partition("/")
    if not file.endswith(".safetensors"):
        remedy = "name a .safetensors file, or OWNER/NAME/FILE.safetensors on the hub"
        raise UsageError("no such file", place=path, remedy=remedy)
    return HubFiles(*pinned(f"{owner}/{name}"), (file,))


def pinned(repo: str) -> tuple[str, str | None]:
    """`OWNER/NAME[@REVISION]` as repository and revision."""
    name, _, revision = repo.partition("@")
    return name, revision or None


def denoiser_files(path: str) -> HubFiles:
    """A denoiser on the hub: a file, as `hub_file` reads it, or the network that OWNER/NAME[@REVISION] holds."""
    if path.count("/") != 1 or path.endswith(".safetensors"):
        return hub_file(path)
    return HubFiles(*pinned(path), NETWORK_FILES)


def weights_file(path: str) -> Path:
    """The safetensors file at a path, or at OWNER/NAME/FILE on the hub. ArtifactError where there is none."""
    if Path(path).is_file() and path.endswith(".safetensors"):
        return Path(path)
    files = hub_file(path)
    return fetch(files) / files.files[0]


def denoiser_source(path: str) -> Path:
    """The weights file of a denoiser, or the folder that holds it with its settings; from disk or from the hub."""
    if Path(path).is_dir() or Path(path).is_file():
        return Path(path) if Path(path).is_dir() else weights_file(path)
    files = denoiser_files(path)
    return fetch(files) if files.files == NETWORK_FILES else fetch(files) / files.files[0]


def pipeline_folder(path: str, revision: str | None, weightless: Sequence[str] = ()) -> Path:
    """The folder at `path`, or the snapshot of the hub id `path` with every component that drawing needs.

    ArtifactError where it is no pipeline, or where the weights of any component but `weightless` are not there whole.
    """
    if Path(path).is_dir():
        folder = Path(path)
    else:
        index = fetch(HubFiles(path, revision, (INDEX,)))
        folder = fetch(pipeline_files(path, revision, list(components_of(index)), weightless))
    check_complete(folder, components_of(folder), weightless)
    return folder


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


def check_complete(folder: Path, components: dict[str, str], weightless: Sequence[str] = ()) -> None:
    """ArtifactError, naming the first, where a component's folder or its safetensors weights are missing or damaged."""
    for name, kind in components.items():
        if not (folder / name).is_dir():
            raise ArtifactError(
                f"its index names {kind}, but there is no such folder",
                place=str(folder / name),
                remedy="copy the whole pipeline, or save it anew",
            )
        if has_weights(name) and name not in weightless:
            check_weights(folder / name)


def check_weights(folder: Path) -> None:
    """ArtifactError where a network's folder has no safetensors weights, or damaged ones."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin"))
        fault = "only pickled weights, which are never loaded" if pickled else "no safetensors weights"
        raise ArtifactError(fault, place=str(folder), remedy="save the pipeline anew with safe_serialization=True")
    for file in files:
        check_whole(file)


def check_whole(file: Path) -> None:
    """ArtifactError where a safetensors file's header does not fit its length; its numbers are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):
            pass
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"damaged ({error})", place=str(file), remedy="fetch or copy it again") from error


def silence() -> None:
    """Keep the libraries' progress bars and notices off the terminal; their errors still come through.

    To be called before diffusers' pipelines are imported: that import alone prints two notices about torchvision.
    """
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
