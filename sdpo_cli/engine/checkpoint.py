"""Checkpoints: tensors in safetensors, the rest in JSON, a manifest with checksums last, then one rename."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sdpo_cli.api.tensors import BaseModel
from sdpo_cli.engine.files import writing
from sdpo_cli.errors import ArtifactError
from sdpo_cli.maths import StepStatistics

FORMAT = 1
PARTIAL = ".partial-"
TENSORS = ("weights", "optimizer", "statistics")


@dataclass(frozen=True)
class Progress:
    """How far a run is, in whole epochs."""

    epoch: int = 0
    images: int = 0
    queries: int = 0
    updates: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Everything that the next epoch depends on, copied to the CPU between two epochs.

    `about` says what it must be continued with: the base model, the prompts and the rewards, by what identifies them.
    """

    progress: Progress
    statistics: StepStatistics
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    about: Mapping[str, str]


def take_snapshot(
    model: BaseModel,
    optimizer: torch.optim.Optimizer,
    statistics: StepStatistics,
    progress: Progress,
    about: Mapping[str, str],
) -> Snapshot:
    """A copy that later training does not touch."""
    copied = {
        f"{name}/{key}": torch.as_tensor(value).detach().cpu().clone()
        for name, parameter in model.trainable().items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    weights = {name: parameter.detach().cpu().clone() for name, parameter in model.trainable().items()}
    return Snapshot(progress, statistics, weights, copied, about)


@torch.no_grad()
def restore_snapshot(snapshot: Snapshot, model: BaseModel, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and optimiser state back. ArtifactError where the weights have other names or shapes."""
    trainable = model.trainable()
    ours = {name: tuple(parameter.shape) for name, parameter in trainable.items()}
    theirs = {name: tuple(value.shape) for name, value in snapshot.weights.items()}
    if ours != theirs:
        raise ArtifactError(
            f"its {len(theirs)} weights are not the {len(ours)} of this model and adapter",
            place=f"checkpoint of epoch {snapshot.progress.epoch}",
            remedy="resume with the recipe that wrote it",
        )
    for name, parameter in trainable.items():
        parameter.copy_(snapshot.weights[name])
        state = {
            key.removeprefix(f"{name}/"): value.clone()
            for key, value in snapshot.optimizer.items()
            if key.startswith(f"{name}/")
        }
        optimizer.state[parameter] = {key: state_value(value, parameter.device) for key, value in state.items()}


def state_value(value: Tensor, device: torch.device) -> Tensor | int:
    """A part of an optimiser's state as it was before it was copied.

    Moments are beside the weights; AdamW's count of steps is a tensor on the CPU, that of bitsandbytes a plain number.
    """
    if value.ndim:
        return value.to(device)
    return value if value.is_floating_point() else int(value)


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
    return sorted(path for path in folder.glob("epoch-*") if path.is_dir())


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


def check_continues(snapshot: Snapshot, about: Mapping[str, str]) -> None:
    """ArtifactError naming everything that is not what the snapshot was made with."""
    names = sorted({*snapshot.about, *about})
    changed = [name for name in names if snapshot.about.get(name) != about.get(name)]
    if changed:
        raise ArtifactError(
            f"made with another {', another '.join(changed)}",
            place=f"checkpoint of epoch {snapshot.progress.epoch}",
            remedy="resume with what it was made with, or start a new run",
        )


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
