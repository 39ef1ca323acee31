"""Who may read what safetensors writes."""

import os
from contextlib import suppress
from pathlib import Path


def _new_files_mode() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


MODE = _new_files_mode()
"""Of a file that is made in the ordinary way, by the umask."""


def open_to_readers(place: Path) -> None:
    """Give a safetensors file, or all of a folder, the mode of any new file: the library leaves them to their owner.

    File systems that know no modes are left alone.
    """
    for path in place.rglob("*.safetensors") if place.is_dir() else [place]:
        with suppress(OSError):
            path.chmod(MODE)
