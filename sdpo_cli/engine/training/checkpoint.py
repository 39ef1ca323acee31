"""Checkpoints: tensors in safetensors, the rest in JSON, a manifest with checksums last, then one rename."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdpo_cli.api.file_modes import open_to_readers
from sdpo_cli.engine.disk.artifacts import named_epoch
from sdpo_cli.engine.disk.files import writing
from sdpo_cli.engine.training.snapshot import Progress, Snapshot
from sdpo_cli.errors import ArtifactError
from sdpo_cli.maths import StepStatistics

FORMAT = 2
"""1 is read too: it has no averages of weights, and says less of what made it."""

PARTIAL = ".partial-"
TENSORS = ("weights", "optimizer", "statistics")


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Where the checkpoint after `epoch` is."""
    return folder / f"epoch-{epoch:05d}"


def write_checkpoint(folder: Path, snapshot: Snapshot, *, keep_last: int, keep_epoch: int | None = None) -> Path:
    """Write `snapshot` under `folder`, whole or not at all, then drop old checkpoints.

    The newest `keep_last` and that of `keep_epoch` stay.
    """
    final = checkpoint_path(folder, snapshot.progress.epoch)
    partial = folder / f"{PARTIAL}{final.name}"
    with writing(final):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _write_parts(partial, snapshot)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _flush(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for old in complete_checkpoints(folder)[:-keep_last]:
            if old.name != checkpoint_path(folder, keep_epoch or 0).name:
                shutil.rmtree(old)
    return final


def _write_parts(folder: Path, snapshot: Snapshot) -> None:
    prompts = list(snapshot.statistics.returns)
    returns = {f"{place:06d}": snapshot.statistics.returns[prompt] for place, prompt in enumerate(prompts)}
    for name, tensors in zip(TENSORS, (snapshot.weights, snapshot.optimizer, returns), strict=True):
        save_file({key: one.contiguous() for key, one in tensors.items()}, folder / f"{name}.safetensors")
    open_to_readers(folder)
    state = {
        "format": FORMAT,
        "about": dict(snapshot.about),
        "progress": asdict(snapshot.progress),
        "statistics": {
            "size": snapshot.statistics.size,
            "min_count": snapshot.statistics.min_count,
            "prompts": prompts,
        },
    }
    (folder / "state.json").write_text(json.dumps(state, indent=1, ensure_ascii=False), encoding="utf-8")
    sums = {path.name: _flush(path) for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "sha256": sums}, indent=1), encoding="utf-8")
    _flush(folder / "manifest.json")


def _flush(path: Path) -> str:
    """Push a file or folder to the disk; gives a file's SHA-256."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return digest(path) if path.is_file() else ""


def digest(path: Path) -> str:
    """A file's SHA-256, read piece by piece: a checkpoint of a fully trained denoiser may be larger than the memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoint folders under `folder`, the oldest first; partial ones are not among them."""
    return sorted((path for path in folder.glob("epoch-*") if path.is_dir() and named_epoch(path)), key=named_epoch)


def newest_snapshot(folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest undamaged checkpoint, None where there is none at all, and a line for each damaged one passed over.

    ArtifactError where all are damaged, or the newest is of a newer format.
    """
    notes: list[str] = []
    for path in reversed(complete_checkpoints(folder)):
        try:
            return read_checkpoint(path), notes
        except DamagedCheckpointError as error:
            notes.append(f"{error}; trying the one before")
    if notes:
        raise ArtifactError("every checkpoint is damaged", place=str(folder), remedy="start a new run")
    return None, notes


class DamagedCheckpointError(ArtifactError):
    """A checkpoint that does not fit its manifest."""


def read_checkpoint(path: Path) -> Snapshot:
    """Read and verify one checkpoint. DamagedCheckpointError, or ArtifactError where its format is newer than ours."""
    verify(path)
    state = read_json(path / "state.json")
    try:
        weights, optimizer, returns = (load_file(path / f"{name}.safetensors") for name in TENSORS)
        return snapshot_of(state, weights, optimizer, returns)
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
        raise DamagedCheckpointError("is none, though its checksums are right", place=str(path)) from error


def snapshot_of(
    state: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    returns: Mapping[str, Tensor],
) -> Snapshot:
    """The parts as one. Some kind of error where `state` has another shape: its checksum vouches for no author."""
    known, progress, about = state["statistics"], Progress(**state["progress"]), dict(state["about"])
    counts = [*asdict(progress).values(), known["size"], known["min_count"]]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("counts are whole numbers")
    if not all(isinstance(text, str) for text in (*known["prompts"], *about.values())):
        raise ValueError("prompts and what a checkpoint is about are texts")
    kept = {prompt: returns[f"{place:06d}"] for place, prompt in enumerate(known["prompts"])}
    return Snapshot(progress, StepStatistics(known["size"], known["min_count"], kept), weights, optimizer, about)


def verify(path: Path) -> None:
    """Compare every file with the manifest. Errors as for `read_checkpoint`, at the first that differs."""
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest.get("format"), int):
        raise DamagedCheckpointError("manifest.json is damaged", place=str(path))
    if manifest["format"] > FORMAT:
        raise ArtifactError(
            f"format {manifest['format']} is newer than {FORMAT}", place=str(path), remedy="update sdpo-cli"
        )
    sums = manifest.get("sha256")
    if not isinstance(sums, dict) or not {"state.json", *(f"{name}.safetensors" for name in TENSORS)} <= sums.keys():
        raise DamagedCheckpointError("manifest.json is damaged", place=str(path))
    for name, expected in sums.items():
        file = path / name
        if file.parent != path or not file.is_file() or digest(file) != expected:
            raise DamagedCheckpointError(f"{name} is damaged or missing", place=str(path))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. DamagedCheckpointError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path.name} is damaged or missing", place=str(path.parent)) from error
    if not isinstance(value, dict):
        raise DamagedCheckpointError(f"{path.name} is damaged", place=str(path.parent))
    return value
