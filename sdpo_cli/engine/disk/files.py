"""Files that are there whole or not at all, and JSON lines."""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sdpo_cli.errors import ArtifactError, UsageError, first_line


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError inside, or safetensors' own, into one ArtifactError about `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = error_number(error)
        reason = os.strerror(number) if number else first_line(error)
        remedy = "free some space" if number in (errno.ENOSPC, errno.EDQUOT) else "check the folder and its permissions"
        raise ArtifactError(f"cannot be written ({reason})", place=str(path), remedy=remedy) from error


def error_number(error: OSError | SafetensorError) -> int | None:
    """The system's number of an error; safetensors says it in its text."""
    if isinstance(error, OSError):
        return error.errno
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else None


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name beside it, then rename it over `path`; its folder is made if missing.

    Whoever reads `path`, even after a crash, finds the old file or the new one.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """The name under which this process writes a file first."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """`write_text` of one JSON object a line; numbers must be finite."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def check_named(path: Path) -> None:
    """UsageError where there is nothing at a path that the user named."""
    if not path.exists():
        raise UsageError("no such file", place=str(path), remedy="correct the path")


def check_writable(path: Path) -> None:
    """Try whether a file that the user named can be written at the end; leaves nothing behind.

    UsageError where its folder is missing, ArtifactError where that takes no file of the name.
    """
    with writing(path):
        if not path.parent.is_dir():
            raise UsageError("no such folder", place=str(path.parent), remedy="make it, or name another file")
        if path.is_dir():
            raise UsageError("is a folder", place=str(path), remedy="name a file")
        temporary = temporary_beside(path)
        temporary.touch()
        temporary.unlink()


def read_text(path: Path) -> str:
    """A UTF-8 file's text. ArtifactError where there is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ArtifactError("not UTF-8", place=str(path), remedy="is this the right file?") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ArtifactError(f"cannot be read ({reason})", place=str(path), remedy="check the path") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file, without NaN and infinities; blank lines are skipped.

    ArtifactError with the line that is no such object.
    """
    return [row for _, row in read_numbered_json_lines(path)]


def read_numbered_json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """`read_json_lines`, each object with the number of its line, from 1."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse_constant)
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()  # an escape of half a character could not be written
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ArtifactError("not a JSON object", place=f"{path}:{number}", remedy="remove or mend the line")
        rows.append((number, row))
    return rows


def _refuse_constant(name: str) -> None:
    """NaN and infinities, which Python writes and JSON lacks."""
    raise ValueError(name)
