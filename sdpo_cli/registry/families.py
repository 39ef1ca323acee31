"""Which diffusers pipeline a folder, single file or hub id holds."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdpo_cli.api import HubFiles
from sdpo_cli.api.pipelines import pinned
from sdpo_cli.errors import UsageError
from sdpo_cli.recipe.paths import user_path

_INDEX = "model_index.json"


def existing(name: str, folder: Path, place: str) -> Path | None:
    """The absolute path of what lies at `name`, seen from `folder` or else from the working folder; or None.

    UsageError, naming `place`, where `~NAME` is nobody.
    """
    for base in (folder, Path()):
        path = base / user_path(name, place)
        try:
            if path.exists():
                return path.absolute()
        except OSError:  # such as a name too long to be one
            return None
    return None


def is_hub_id(name: str) -> bool:
    """Whether a name has the form OWNER/NAME."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def family_of(name: str, path: Path | None, options: Mapping[str, Any], folder: Path, place: str) -> str:
    """The pipeline class of a folder, of a hub id, or of the pipeline whose settings a single file takes.

    Args:
        name: as the recipe says it.
        path: what lies there, if anything does.
        options: of the model; `config` says whose settings a single file takes.
        folder: folder that relative paths in the options are meant from.
        place: what asked, for errors.
    UsageError where it cannot be told.
    """
    if path is None or path.suffix != ".safetensors":
        return family_of_folder(path, place) if path else family_of_hub_id(name, options.get("revision"), place)
    settings = options.get("config")
    if not isinstance(settings, str):
        fault = f"{name} is a single file, which holds no settings"
        remedy = "name a pipeline of the same shape as option config: a folder or hub id"
        raise UsageError(fault, place=place, remedy=remedy)
    home = existing(settings, folder, place)
    repo, revision = pinned(settings)
    if home is None and not is_hub_id(repo):
        raise UsageError(f"{settings} is neither a folder nor a hub id", place=place, remedy="correct option config")
    return family_of_folder(home, place) if home else family_of_hub_id(repo, revision, place)


def family_of_folder(folder: Path, place: str) -> str:
    """The pipeline class of a folder in diffusers layout. UsageError where it is none."""
    if not (folder / _INDEX).is_file():
        raise UsageError(
            f"{folder} is no model: it has no {_INDEX}", place=place, remedy="name a folder as diffusers saves it"
        )
    return _family(folder / _INDEX, str(folder), place)


def family_of_hub_id(name: str, revision: str | None, place: str) -> str:
    """The pipeline class of a hub id, of which only the index is fetched. UsageError where it cannot be."""
    from sdpo_cli.api.hub import cannot_fetch, fetch

    try:
        folder = fetch(HubFiles(name, revision, (_INDEX,)))
    except UsageError as error:
        whole = HubFiles(name, revision, ("*",))
        said = cannot_fetch([whole], error.__cause__) if isinstance(error.__cause__, Exception) else error
        raise UsageError(f"{name}: {said.fault}", place=place, remedy=said.remedy) from error
    return _family(folder / _INDEX, name, place)


def _family(index: Path, name: str, place: str) -> str:
    try:
        family = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{name}: {_INDEX} names no _class_name", place=place, remedy="save the pipeline anew"
        ) from error
    return str(family)
