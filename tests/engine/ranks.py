"""The command in several processes that meet, as torchrun starts them, without six seconds of imports for each.

`python ranks.py` imports everything once and then forks as many children as a request on its standard input says.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import crash


class Ranks:
    """Starts the command `sdpo` in processes that work together, one run at a time."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self.process, self.folder = process, folder

    def start(self, *argv: str, size: int) -> list[int]:
        """Run a command line in so many processes in this folder; gives their ids."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        request = {"argv": argv, "cwd": str(self.folder), "size": size, "port": port}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def end(self) -> tuple[list[int], list[str]]:
        """When all have ended: how, as `os.waitstatus_to_exitcode` says it, and what each has said."""
        codes = json.loads(self.process.stdout.readline())
        return codes, [(self.folder / f"said-{rank}").read_text() for rank in range(len(codes))]

    def run(self, *argv: str, size: int) -> tuple[list[int], list[str]]:
        """Both."""
        self.start(*argv, size=size)
        return self.end()


@contextmanager
def ranks(folder: Path) -> Iterator[Ranks]:
    """Processes that work in `folder`."""
    with crash.serving(__file__) as process:
        yield Ranks(process, folder)


def serve() -> None:
    """Import, then fork for each request and say how all have ended."""
    crash.import_everything()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork would lose threads"
        children = [begin(rank, **request) for rank in range(request["size"])]
        print(json.dumps(children), flush=True)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) for one in children]), flush=True)


def begin(rank: int, argv: Sequence[str], cwd: str, size: int, port: int) -> int:
    """Fork the process of one rank; gives its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(cwd)
        said = os.open(f"said-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        if size > 1:
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
            os.environ |= place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        from sdpo_cli.main import main

        code = main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
