"""Which diffusers pipeline a folder or hub id holds."""

import json
import re
from pathlib import Path

from sdpo_cli.errors import PluginError
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


def family_of_folder(folder: Path, place: str) -> str:
    """The pipeline class of a folder in diffusers layout. PluginError where it is none."""
    if not (folder / _INDEX).is_file():
        raise PluginError(
            f"{folder} is no model: it has no {_INDEX}", place=place, remedy="name a folder as diffusers saves it"
        )
    return _family(folder / _INDEX, str(folder), place)


def family_of_hub_id(name: str, revision: str | None, place: str) -> str:
    """The pipeline class of a hub id, of which only the index is fetched. PluginError where it cannot be."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries are said once, by the error below
    try:
        path = hf_hub_download(name, _INDEX, revision=revision)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0].removesuffix(".")
        remedy = f"with a connection, run `hf download {name}`; recipes/quickstart.yaml needs none"
        raise PluginError(
            f"{name} is not on this machine and cannot be fetched ({reason})", place=place, remedy=remedy
        ) from error
    return _family(Path(path), name, place)


def _family(index: Path, name: str, place: str) -> str:
    try:
        family = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PluginError(
            f"{name}: {_INDEX} names no _class_name", place=place, remedy="save the pipeline anew"
        ) from error
    return str(family)
