"""Memory, open files and threads of a long run of the smallest recipe: `python tests/engine/long_run.py [EPOCHS]`.

Prints a line every tenth of the run: the process's resident memory, its open files and its threads.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = """\
model: emoji-turbo
prompts: simple-animals
reward: {colorfulness: {}, emoji-clip: {weight: 100}}
rollout: {pairs: 2, steps: 2}
train: {epochs: %d, samples_every: %d, ema_decay: 0.9}
eval: {steps: [1], every: %d, images_per_prompt: 1, prompts: few.txt}
guard: {keep_best: {measure: colorfulness}}
"""


def measure(epochs: int, folder: Path) -> None:
    """Run the command in `folder` and watch its process."""
    part = epochs // 10
    (folder / "few.txt").write_text("cat\ntwo dogs\n")
    (folder / "long.yaml").write_text(RECIPE % (epochs, part, part))
    command = [sys.executable, "-m", "sdpo_cli", "train", "long.yaml", "--quiet", "--out", "run"]
    log, due = folder / "run" / "metrics.jsonl", part
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            epoch = log.read_bytes().count(b"\n") if log.exists() else 0
            if epoch >= due:
                print(f"epoch {epoch:5}  {state(process.pid)}", flush=True)
                due += part
            time.sleep(0.05)
        assert process.returncode == 0


def state(process: int) -> str:
    """What the kernel says of a process."""
    proc = Path(f"/proc/{process}")
    said = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    memory = int(said["VmRSS"].split()[0]) / 1024
    files = len(list((proc / "fd").iterdir()))
    return f"{memory:7.1f} MiB  {files:3} files  {said['Threads'].strip():>3} threads"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        measure(int(sys.argv[1]) if len(sys.argv) > 1 else 500, Path(place))
