"""Files of the model hub: from this machine's cache, else fetched, else one line that says what to do."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdpo_cli.api.specs import HubFiles
from sdpo_cli.errors import ArtifactError

TIMEOUT = 10.0
"""Seconds in which the hub must say whether it has a repository."""
UNWANTED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5", "*.onnx*", "*.fp16*", "*.non_ema*")
"""Never fetched by a `*`: pickles, other frameworks' weights, and further copies of the same weights."""
NO_DOWNLOAD = "recipes/quickstart.yaml needs no download"


def local_copy(files: HubFiles) -> Path | None:
    """The snapshot folder that holds all of `files` on this machine, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(files.repo, revision=files.revision, local_files_only=True, **patterns(files)))
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None
    return folder if not absent(files, folder) else None


def patterns(files: HubFiles) -> dict[str, Any]:
    """Which files of the repository are meant, as the hub's client says it."""
    exact = not any("*" in name for name in files.files)
    return {"allow_patterns": list(files.files), "ignore_patterns": None if exact else list(UNWANTED)}


def absent(files: HubFiles, folder: Path) -> list[str]:
    """The names in `files` that match nothing in `folder`."""
    return [name for name in files.files if not any(folder.glob(name))]


def fetch(files: HubFiles) -> Path:
    """The folder that holds `files`, downloaded where this machine lacks some.

    Raises:
        ArtifactError: they are not here and the hub cannot be reached, does not have them, or asks for a licence.
    """
    folder = local_copy(files)
    if folder:
        return folder
    check_reachable([files])
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(files.repo, revision=files.revision, **patterns(files)))
    except Exception as error:
        raise cannot_fetch([files], error) from error
    missing = absent(files, folder)
    if missing:
        remedy = "pickled weights are never loaded: choose a repository with safetensors"
        raise ArtifactError(f"has no {', '.join(missing)}", place=files.repo, remedy=remedy)
    return folder


def check_downloads(needs: Sequence[HubFiles]) -> None:
    """Ask for everything at once, before anything slow. ArtifactError naming all that is neither here nor to be had."""
    missing = [files for files in dict.fromkeys(needs) if local_copy(files) is None]
    if missing:
        check_reachable(missing)


def check_reachable(missing: Sequence[HubFiles]) -> None:
    """ArtifactError, naming all of `missing`, unless the hub has every repository and lets us have it."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its retries are said once, by our error
    for files in missing:
        try:
            HfApi().repo_info(files.repo, revision=files.revision, timeout=TIMEOUT)
        except Exception as error:
            raise cannot_fetch(missing, error) from error


def cannot_fetch(missing: Sequence[HubFiles], error: Exception) -> ArtifactError:
    """What to say of files that are not here and could not be fetched."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    place = ", ".join(dict.fromkeys(files.repo for files in missing))
    if isinstance(error, GatedRepoError):
        page = f"https://huggingface.co/{missing[0].repo}"
        return ArtifactError("is gated", place=place, remedy=f"accept its licence at {page}, then run `hf auth login`")
    if isinstance(error, RevisionNotFoundError):
        return ArtifactError("the hub does not have this revision", place=place, remedy="name another revision")
    if isinstance(error, RepositoryNotFoundError):
        return ArtifactError("the hub has no such repository", place=place, remedy="check the name, or `hf auth login`")
    commands = " and ".join(dict.fromkeys(f"`{download_command(files)}`" for files in missing))
    fault = f"not on this machine, and the hub cannot be reached ({reason(error)})"
    return ArtifactError(fault, place=place, remedy=f"with a connection, run {commands}; {NO_DOWNLOAD}")


def download_command(files: HubFiles) -> str:
    """The command that fetches the files: by name, or by pattern without further copies of the same weights."""
    revision = f" --revision {files.revision}" if files.revision else ""
    patterns = [name for name in files.files if "*" in name]
    if not patterns:
        return f"hf download {files.repo}{revision} {' '.join(files.files)}"
    include = " ".join(f'--include "{name}"' for name in files.files)
    return f'hf download {files.repo}{revision} {include} --exclude "*.fp16*" --exclude "*.non_ema*"'


def reason(error: Any) -> str:
    """The first sentence of an error's text, or its class where there is none."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].partition(". ")[0].removesuffix(".")
