"""Files of the model hub: from this machine's cache, else fetched, else one line that says what to do."""

import json
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sdpo_cli.api.specs import HubFiles
from sdpo_cli.errors import UsageError

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
    """What a fetch of `files` brings and `folder` lacks: names and patterns, then parts that an index there names."""
    ignored = patterns(files)["ignore_patterns"] or ()

    def found(pattern: str) -> list[Path]:
        """The files that match, without further copies of the same weights."""
        names = [path.relative_to(folder) for path in folder.glob(pattern) if path.is_file()]
        return [name for name in names if not any(fnmatch(name.as_posix(), one) for one in ignored)]

    lacking = [pattern for pattern in files.files if not found(pattern)]
    parts = {name for index in found("**/*.safetensors.index.json") for name in parts_of(folder, index)}
    wanted = [name for name in sorted(parts) if any(fnmatch(name, one) for one in files.files)]
    return lacking + [name for name in wanted if not (folder / name).is_file()]


def parts_of(folder: Path, index: Path) -> set[str]:
    """The files among which an index in `folder` says that a network's weights lie; none where it is damaged."""
    try:
        weight_map = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        return {(index.parent / part).as_posix() for part in weight_map.values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()


def fetch(files: HubFiles) -> Path:
    """The folder that holds `files`, downloaded where this machine lacks some.

    Raises:
        UsageError: they are not here and the hub cannot be reached, does not have them, or asks for a licence.
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
        raise UsageError(f"has no {', '.join(missing)}", place=files.repo, remedy=remedy)
    return folder


def check_downloads(needs: Sequence[HubFiles]) -> None:
    """Ask for everything at once, before anything slow. UsageError naming all that is neither here nor to be had."""
    missing = [files for files in dict.fromkeys(needs) if local_copy(files) is None]
    if missing:
        check_reachable(missing)


def check_reachable(missing: Sequence[HubFiles]) -> None:
    """UsageError, naming all of `missing`, unless the hub has every repository and lets us have it."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its retries are said once, by our error
    for files in missing:
        try:
            HfApi().repo_info(files.repo, revision=files.revision, timeout=TIMEOUT)
        except Exception as error:
            raise cannot_fetch(missing, error) from error


def cannot_fetch(missing: Sequence[HubFiles], error: Exception) -> UsageError:
    """What to say of files that are not here and could not be fetched."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    place = ", ".join(dict.fromkeys(files.repo for files in missing))
    if isinstance(error, GatedRepoError):
        page = f"https://huggingface.co/{missing[0].repo}"
        return UsageError("is gated", place=place, remedy=f"accept its licence at {page}, then run `hf auth login`")
    if isinstance(error, RevisionNotFoundError):
        return UsageError("the hub does not have this revision", place=place, remedy="name another revision")
    if isinstance(error, RepositoryNotFoundError):
        return UsageError("the hub has no such repository", place=place, remedy="check the name, or `hf auth login`")
    commands = " and ".join(dict.fromkeys(f"`{download_command(files)}`" for files in missing))
    fault = f"not on this machine, and the hub cannot be reached ({reason(error)})"
    return UsageError(fault, place=place, remedy=f"with a connection, run {commands}; {NO_DOWNLOAD}")


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
