"""`python -m sdpo_cli`: the same program as the console script `sdpo`."""

import errno
import io
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdpo_cli.engine.signals import stop_asked
from sdpo_cli.main import main

SIGNALLED = 128
"""From here on exit codes mean a signal."""


class Outlet(io.FileIO):
    """A standard stream that goes silent where its terminal has been closed, and never fails once a stop is asked for.

    A write to a closed terminal may fail before its SIGHUP arrives; that signal is what stops the work. A full disk
    fails once: what is said of that, or left for the end, must not fail again.
    """

    failed = False
    """Whether a write of either stream has failed."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self._terminal = self.isatty()

    def write(self, data: Any) -> int | None:
        """As of FileIO; what nobody is to get counts as written. ArtifactError where it cannot be, but to a pipe."""
        try:
            return super().write(data)
        except OSError as fault:
            if Outlet.failed or stop_asked() or (self._terminal and fault.errno == errno.EIO):
                return memoryview(data).nbytes
            if isinstance(fault, BrokenPipeError):
                raise
            Outlet.failed = True
            from sdpo_cli.engine.disk.files import writing  # not before it is needed: --help is to be quick

            with writing(Path(f"standard {'error' if self.fileno() == 2 else 'output'}")):
                raise


def through_outlet(stream: Any) -> Any:
    """A standard stream with an outlet beneath; as it is where it has no file, or where there are no terminals."""
    if sys.platform == "win32" or not isinstance(stream, io.TextIOWrapper):
        return stream
    at_once = stream.line_buffering or stream.write_through
    buffer = io.BufferedWriter(Outlet(stream.fileno()))
    return io.TextIOWrapper(buffer, stream.encoding, stream.errors, line_buffering=at_once)


def run() -> None:
    """Run the command line and exit with its code, at once after a signal or if a reward is still at work.

    Threads that such a reward has started itself would keep the process alive for as long as it hangs; a second signal
    would end Python's own clearing up in place of the exit code.
    """
    sys.stdout, sys.stderr = through_outlet(sys.stdout), through_outlet(sys.stderr)
    code = main(sys.argv[1:])
    if code >= SIGNALLED or any(thread.name.startswith("sdpo ") for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
