"""What an update could not be learnt from, kept for a look."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from sdpo_cli.engine.files import write_text, writing
from sdpo_cli.engine.update import Lesson, NonFiniteError
from sdpo_cli.errors import ArtifactError, TrainingError

LARGEST = 256 * 2**20
"""Bytes of states kept at the most; the pairs that are not finite themselves come first."""


def with_batch(folder: Path, epoch: int, lesson: Lesson, fault: NonFiniteError) -> TrainingError:
    """The fault with its epoch, and with the place of its batch unless that cannot be written."""
    try:
        kept = f"see its batch in {keep_batch(folder, epoch, lesson, fault)}; "
    except ArtifactError:
        kept = ""
    return TrainingError(fault.fault, place=f"epoch {epoch}, {fault.place}", remedy=f"{kept}{fault.remedy}")


def keep_batch(folder: Path, epoch: int, lesson: Lesson, fault: NonFiniteError) -> Path:
    """Write the failed update's pairs: states, log-probabilities, advantages and prompts. Gives the path of the JSON.

    ArtifactError where they cannot be written.
    """
    rollouts, pairs = lesson.rollouts, suspects_first(lesson, fault)
    most = max(1, LARGEST // (2 * rollouts.x_t[:, 0].numel() * 4))
    kept = pairs[:most]
    tensors = {"x_t": rollouts.x_t, "x0": rollouts.x0, "log_prob": rollouts.log_prob, "advantage": lesson.advantage}
    path = folder / f"epoch-{epoch:05d}.json"
    with writing(path.with_suffix(".safetensors")):
        folder.mkdir(parents=True, exist_ok=True)
        chosen = {name: one[:, kept].detach().cpu().contiguous() for name, one in tensors.items()}
        save_file(chosen, path.with_suffix(".safetensors"))
    said = {
        "epoch": epoch,
        "fault": str(fault),
        "steps": fault.update.step.unique().tolist(),
        "pairs": [describe(lesson, pair) for pair in kept],
        "left_out": len(pairs) - len(kept),
    }
    write_text(path, json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    return path


def suspects_first(lesson: Lesson, fault: NonFiniteError) -> list[int]:
    """The places of the update's pairs in the epoch, those with a number that is not finite before the others."""
    places = fault.update.pairs.unique().tolist()
    return sorted(places, key=lambda pair: is_finite(lesson, pair))


def is_finite(lesson: Lesson, pair: int) -> bool:
    """Whether all that was sampled and credited of a pair is finite."""
    rollouts = lesson.rollouts
    numbers = (rollouts.x_t, rollouts.x0, rollouts.log_prob, lesson.advantage)
    return all(bool(torch.isfinite(one[:, pair]).all()) for one in numbers)


def describe(lesson: Lesson, pair: int) -> dict[str, object]:
    """A pair's running number, prompt, and whether its numbers are finite."""
    draw = lesson.rollouts.draw
    return {"number": draw.first + pair, "prompt": draw.prompts[pair].text, "finite": is_finite(lesson, pair)}
