"""Paths as people write them."""

from pathlib import Path

from sdpo_cli.errors import UsageError


def user_path(text: str | Path, place: str = "") -> Path:
    """The path with `~` and `~NAME` as home folders. UsageError, naming `place`, where there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = Path(text).parts[0]
        raise UsageError(f"{text}: no home folder {user}", place=place, remedy="write the path out") from None
