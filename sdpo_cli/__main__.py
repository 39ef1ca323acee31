"""`python -m sdpo_cli`: the same program as the console script `sdpo`."""

import os
import sys
import threading
from contextlib import suppress

from sdpo_cli.main import main

SIGNALLED = 128
"""From here on exit codes mean a signal."""


def run() -> None:
    """Run the command line and exit with its code, at once after a signal or if a reward is still at work.

    Threads that such a reward has started itself would keep the process alive for as long as it hangs; a second signal
    would end Python's own clearing up in place of the exit code.
    """
    code = main(sys.argv[1:])
    if code >= SIGNALLED or any(thread.name.startswith("sdpo ") for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
