"""One process at a time in a folder. The kernel keeps the lock, and lets go of it however the process ends."""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdpo_cli.engine.disk.files import writing
from sdpo_cli.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the file in the folder that is locked; it says who holds it."""

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems answer that know no locks; nothing is locked there."""

TRIES, PAUSE = 5, 0.05
"""Attempts and the seconds between them: somebody who only looks holds the lock for a moment."""


class InUseError(UsageError):
    """Another process is in the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While entered, no other process enters it for the same folder, which must exist; reading it needs no lock.

    Raises:
        InUseError: another process is in it; the line names it.
        ArtifactError: the folder cannot be written to.
    """
    with writing(folder / LOCK):
        handle = take_lock(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            (folder / LOCK).unlink()
        os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether some process, this one too, is in `locked(folder)`."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        return not acquire(handle)
    finally:
        os.close(handle)


def take_lock(folder: Path) -> int:
    """The open file that holds the lock of `folder`. InUseError where another process has it."""
    path = folder / LOCK
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if acquire(handle) and is_at(path, handle):
                os.truncate(handle, 0)
                os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
    remedy = "wait until it ends, or stop it"
    raise InUseError(f"is in use by {holder(path)}", place=str(folder), remedy=remedy)


def acquire(handle: int) -> bool:
    """Lock an open file; False where another one has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    return True


def is_at(path: Path, handle: int) -> bool:
    """Whether the open file is the one at `path`, and not one that its last holder has just removed."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def holder(path: Path) -> str:
    """`process 4711`, with its machine where that is another one."""
    with suppress(OSError, ValueError):
        number, host = path.read_text(encoding="utf-8").split()
        return f"process {int(number)}" + ("" if host == socket.gethostname() else f" on {host}")
    return "another process"
