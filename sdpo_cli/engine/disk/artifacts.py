"""A run's folder: what is in it, and which one is the latest."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from typing import Any

from sdpo_cli.engine.disk.files import read_numbered_json_lines, write_bytes, write_text, writing
from sdpo_cli.engine.disk.locking import LOCK
from sdpo_cli.errors import ArtifactError, UsageError

RUNS, LATEST = Path("runs"), "latest"
LIBRARIES = ("sdpo-cli", "torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class RunFolder:
    """`runs/NAME`: the paths of everything a run writes."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe with every default written out."""
        return self.path / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One line an epoch; the same bytes in every run of the recipe on one machine."""
        return self.path / "metrics.jsonl"

    @property
    def timings(self) -> Path:
        """Seconds of every stage, one line an epoch."""
        return self.path / "timings.jsonl"

    @property
    def samples(self) -> Path:
        """Picture grids."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """What a resumed run starts from."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The LoRA that diffusers loads."""
        return self.path / "adapter"

    @property
    def evaluations(self) -> Path:
        """What was measured every `eval.every` epochs."""
        return self.path / "evaluations"

    @property
    def guard(self) -> Path:
        """What the guard made of them, one line each."""
        return self.path / "guard.jsonl"

    @property
    def changes(self) -> Path:
        """What `--override` changed on the way, one line each."""
        return self.path / "changes.jsonl"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def faults(self) -> Path:
        """Batches that could not be learnt from."""
        return self.path / "faults"

    @property
    def evaluation(self) -> Path:
        """The numbers before and after; written last, so that a run that has it has ended."""
        return self.path / "report.json"

    @property
    def page(self) -> Path:
        """The report for a browser."""
        return self.path / "report.html"

    @property
    def grid(self) -> Path:
        """The same prompts and seeds before and after."""
        return self.path / "before-after.png"


def is_run(path: Path) -> bool:
    """Whether a folder was written by `sdpo train`."""
    return RunFolder(path).recipe.is_file()


def adapter_place(path: Path) -> Path:
    """Where the adapter at `path` is: a run's own, else what stands there."""
    return RunFolder(path).adapter if is_run(path) else path


def check_out(out: Path | None, name: str) -> None:
    """UsageError unless a run may be started in `out`, new or empty, or, where it is None, under the name `name`."""
    if (out or RUNS / name) == RUNS / LATEST:
        raise UsageError("names the newest run", place=str(RUNS / LATEST), remedy="choose another name")
    if out is None:
        return
    if is_run(out):
        remedy = f"`sdpo train --resume {quote(str(out))}` continues it; or name another folder"
        raise UsageError("holds another run", place=str(out), remedy=remedy)
    if out.exists() and (not out.is_dir() or any(path.name != LOCK for path in out.iterdir())):
        raise UsageError("is not an empty folder", place=str(out), remedy="name another one")


def new_folder(out: Path | None, default: Path) -> Path:
    """`out`, which must be new or empty, or the first free of `default`, `default`-2, ..."""
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError("is not an empty folder", place=str(out), remedy="name another one with --out")
        return out
    number, path = 1, default
    while path.exists():
        number += 1
        path = default.with_name(f"{default.name}-{number}")
    return path


def claim_run_folder(out: Path | None, name: str) -> RunFolder:
    """Make the folder of a new run: `out`, or the first free of runs/NAME, runs/NAME-2, ..., for this process alone."""
    check_out(out, name)
    with writing(out or RUNS / name):
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            return RunFolder(out)
        RUNS.mkdir(exist_ok=True)
        number = 1
        while True:
            path = RUNS / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
            except FileExistsError:
                number += 1
            else:
                return RunFolder(path)


def check_there(folder: RunFolder) -> None:
    """ArtifactError where a run's folder has gone: what is written then would lie beneath where its disk was."""
    if not folder.path.is_dir():
        remedy = "bring its disk back, and continue with --resume"
        raise ArtifactError("the run's folder has vanished", place=str(folder.path), remedy=remedy)


def write_recipe(folder: RunFolder, recipe: str) -> None:
    """Write the recipe with the versions used as comments, and mark the run as the latest."""
    header = f"# Written by sdpo on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC with {', '.join(library_versions())}.\n"
    write_text(folder.recipe, header + recipe)
    mark_latest(folder.path)


def library_versions() -> list[str]:
    """`name version` of the libraries that decide the numbers."""
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def mark_latest(path: Path) -> None:
    """Let `runs/latest` point to a run under `runs/`: a link, or a text file where links are not allowed.

    Runs elsewhere are not marked, and a `latest` that is neither is left alone.
    """
    link, partial = RUNS / LATEST, RUNS / f".{LATEST}.partial"
    if path.parent != RUNS or (link.exists() and not link.is_symlink() and not is_pointer(link)):
        return
    with writing(link):
        partial.unlink(missing_ok=True)
        try:
            partial.symlink_to(path.name)
        except OSError:
            partial.write_text(path.name, encoding="utf-8")
        partial.replace(link)


def is_pointer(link: Path) -> bool:
    """Whether a file holds nothing but the name of a run beside it."""
    return link.is_file() and link.stat().st_size < 256 and is_run(link.parent / link.read_text("utf-8", "replace"))


def latest_run() -> Path | None:
    """The folder that `runs/latest` points to, where there is one."""
    link = RUNS / LATEST
    name = link.readlink().name if link.is_symlink() else link.read_text("utf-8") if link.is_file() else ""
    return RUNS / name if name and is_run(RUNS / name) else None


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one JSON line and push it to the disk: a checkpoint written later must not be there without it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def forget_after(path: Path, epoch: int) -> None:
    """Drop the lines of epochs after `epoch`, which a resumed run will write again, and a torn last line.

    ArtifactError where another line is no record of an epoch.
    """
    if not path.exists():
        return
    with writing(path):
        whole = [line for line in path.read_bytes().split(b"\n")[:-1] if line.strip()]
    kept = [line for number, line in enumerate(whole, start=1) if epoch_of(line, f"{path}:{number}") <= epoch]
    write_bytes(path, b"".join(line + b"\n" for line in kept))


def epoch_of(line: bytes, place: str) -> int:
    """The epoch that a line is the record of. ArtifactError where it is of none."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise no_epoch(place) from None


def named_epoch(path: Path) -> int:
    """The epoch that a checkpoint's folder or an evaluation's file is named after; 0 where it is called otherwise."""
    number = path.stem.removeprefix("epoch-")
    return int(number) if number.isascii() and number.isdecimal() else 0


def no_epoch(place: str) -> ArtifactError:
    """The error about a line."""
    return ArtifactError("not the record of an epoch", place=place, remedy="remove or mend the line")


def read_epochs(path: Path, *numbers: str) -> list[dict[str, Any]]:
    """The records of epochs in a file; none where there is no file.

    ArtifactError with the line that is none, or that lacks one of the `numbers`.
    """
    rows = read_numbered_json_lines(path) if path.exists() else []
    for line, row in rows:
        if not all(isinstance(row.get(name), int | float) for name in ("epoch", *numbers)):
            raise no_epoch(f"{path}:{line}")
    return [row for _, row in rows]


def sweep(folder: RunFolder) -> None:
    """Remove what writes that were killed have left; nobody else may be writing in the folder."""
    for path in folder.path.rglob(".*"):
        if path.name.endswith(".tmp") or "partial" in path.name:
            with writing(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
