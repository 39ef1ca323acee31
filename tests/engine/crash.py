"""The command in processes that can be killed at any instant, without six seconds of imports for each.

`python crash.py` imports everything once and then forks a child for each request on its standard input; a child runs
the command line it is given as a fresh process would: one thread, nothing loaded, nothing drawn from any generator.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

FILE_WORK = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
"""Audit events of Python at which a child may end itself: just before the file or folder is touched."""

IMPORTED = (
    "sdpo_cli.main", "sdpo_cli.engine.comparing.compare", "sdpo_cli.builtin.models", "sdpo_cli.builtin.rewards",
    "sdpo_cli.builtin.prompts", "sdpo_cli.builtin.objectives", "sdpo_cli.builtin.models.unet",
    "sdpo_cli.api.diffusers_load", "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "peft",
    "tensorboardX", "matplotlib.figure", "matplotlib.backends.backend_agg",
)  # fmt: skip


class Forge:
    """Starts the command `sdpo` in children of the program below, one at a time."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self.process, self.folder = process, folder

    def run(
        self, *argv: str, under: Path, die_at: int | None = None, die_after: float | None = None
    ) -> tuple[int, list[str], str]:
        """Run a command line in this folder.

        Args:
            argv: the command line without the program's name.
            under: beginning of the paths whose file work is counted.
            die_at: the child sends itself SIGKILL just before so many pieces of file work, counted from 0.
            die_after: it is sent SIGKILL after so many seconds.

        Returns how it ended as `os.waitstatus_to_exitcode` says it, its file work, and what it said.
        """
        request = {"argv": argv, "cwd": str(self.folder), "under": str(under), "die_at": die_at}
        self._say({"die_after": die_after, "child": request})
        ended = self._hear()
        return ended, (self.folder / "work").read_text().splitlines(), (self.folder / "said").read_text()

    def _say(self, request: dict[str, Any]) -> None:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def _hear(self) -> int:
        line = self.process.stdout.readline()
        assert line, f"the forge has ended: {self.process.wait()}"
        return int(line)


@contextmanager
def serving(script: str) -> Iterator["subprocess.Popen[str]"]:
    """A single-threaded process that has imported everything and obeys lines on its standard input."""
    with subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.stdin.close()


@contextmanager
def forge(folder: Path) -> Iterator[Forge]:
    """A forge whose children work in `folder`."""
    with serving(__file__) as process:
        yield Forge(process, folder)


def serve() -> None:
    """Import, then fork a child a request and say how it ended."""
    import_everything()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork would lose threads"
        child = os.fork()
        if not child:
            strike(**request["child"])
        print(os.waitstatus_to_exitcode(ended(child, request["die_after"])), flush=True)


def ended(child: int, seconds: float | None) -> int:
    """The status of a child when it has ended; it is killed after so many seconds."""
    if seconds is not None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return status
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def import_everything() -> None:
    """What a training run and a comparison import, now or later."""
    for module in IMPORTED:
        import_module(module)


def strike(argv: Sequence[str], cwd: str, under: str, die_at: int | None) -> None:
    """The child: run the command and leave, writing down what is said and which files are touched."""
    code = 1
    try:
        os.chdir(cwd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        said = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        count_file_work(under, die_at)
        from sdpo_cli.main import main

        code = main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def count_file_work(under: str, die_at: int | None) -> None:
    """Write down every piece of file work under a folder, and die before the one with number `die_at`."""
    work, done = os.open("work", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        path = arguments[0] if event in FILE_WORK else None
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(under):
            if done == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            os.write(work, f"{event} {os.fspath(path)}\n".encode())

    sys.addaudithook(watch)


def event_steps(path: Path) -> list[tuple[int, str]]:
    """Step and tag of each scalar in a file of TensorBoard events, which must be whole; `seconds` stand apart."""
    from tensorboardX.proto.event_pb2 import Event

    found, data = [], path.read_bytes()
    while data:  # a record is length, checksum of it, content, checksum of it
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        assert len(data) >= 16 + length
        found += [(event.step, value.tag) for value in event.summary.value if not value.tag.startswith("seconds/")]
        data = data[16 + length :]
    return found


if __name__ == "__main__":
    serve()
