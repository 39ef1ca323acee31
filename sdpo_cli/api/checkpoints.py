"""For rewards with weights of their own layout: where their files are, and whether the weights are the right ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdpo_cli.api.hub import download_command, fetch
from sdpo_cli.api.specs import HubFiles
from sdpo_cli.errors import ArtifactError

Shapes = Mapping[str, Sequence[int]]
"""Shapes of weights by name."""


@dataclass(frozen=True)
class Located:
    """A file, and the command that fetches it anew."""

    path: Path
    command: str

    def wrong(self, fault: str) -> ArtifactError:
        """What to say where the file is not what it should be."""
        return ArtifactError(fault, place=str(self.path), remedy=f"run `{self.command}`")


def locate(folder: str | None, files: HubFiles, *others: str) -> Located:
    """The one file of `files`: fetched, or in `folder`, where the first of `others` that is there comes before it.

    ArtifactError where there is none.
    """
    (name,) = files.files
    command = download_command(files)
    if folder is None:
        return Located(fetch(files) / name, f"{command} --force-download")
    command = f"{command} --local-dir {folder}"
    names = (*others, name)
    found = next((path for one in names if (path := Path(folder, one)).is_file()), None)
    if found is None:
        raise Located(Path(folder), command).wrong(f"no folder with {' or '.join(names)}")
    return Located(found, command)


def check_shapes(wanted: Shapes, given: Shapes) -> None:
    """ValueError, with an example of each fault, unless `given` has just the wanted names and shapes."""
    common = wanted.keys() & given.keys()
    faults = {
        "missing": wanted.keys() - given.keys(),
        "unknown": given.keys() - wanted.keys(),
        "of another shape": {name for name in common if tuple(given[name]) != tuple(wanted[name])},
    }
    said = [f"{len(names)} {what}, as {min(names)}" for what, names in faults.items() if names]
    if said:
        raise ValueError(f"with weights {', '.join(said)}")
