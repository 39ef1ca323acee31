"""HPSv3's files, found in a folder or fetched, and one line that says what to do where they are missing or wrong."""

from dataclasses import dataclass
from pathlib import Path

from sdpo_cli.api import HubFiles
from sdpo_cli.api.hub import download_command, fetch
from sdpo_cli.errors import ArtifactError


@dataclass(frozen=True)
class Located:
    """A file, and the command that fetches it anew."""

    path: Path
    command: str

    def wrong(self, fault: str) -> ArtifactError:
        """What to say where the file is not what it should be."""
        return ArtifactError(fault, place=str(self.path), remedy=f"run `{self.command}`")


def locate(folder: str | None, files: HubFiles) -> Located:
    """The one file of `files` in `folder`, or without a folder fetched. ArtifactError where it is not there."""
    (name,) = files.files
    command = download_command(files)
    if folder is None:
        return Located(fetch(files) / name, f"{command} --force-download")
    command = f"{command} --local-dir {folder}"
    if not Path(folder, name).is_file():
        raise Located(Path(folder), command).wrong(f"no folder with {name}")
    return Located(Path(folder, name), command)
