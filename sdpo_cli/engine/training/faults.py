"""What could not be learnt from, kept for a look."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import Tensor

from sdpo_cli.api.file_modes import open_to_readers
from sdpo_cli.engine.disk.files import write_bytes, write_text, writing
from sdpo_cli.engine.disk.images import as_picture, png_bytes
from sdpo_cli.engine.learning.credit import NonFiniteRolloutError, PlacedRequest
from sdpo_cli.engine.learning.rollout import Rollouts
from sdpo_cli.engine.learning.update import NonFiniteError
from sdpo_cli.engine.rewards.scorer import quoted
from sdpo_cli.engine.rewards.scoring import NonFiniteScoreError
from sdpo_cli.errors import ArtifactError, PluginError, SdpoError, TrainingError
from sdpo_cli.recipe import Recipe

LARGEST = 256 * 2**20
"""Bytes of states kept at the most; the pairs that are not finite themselves come first."""

PICTURES = 64
"""Pictures kept at the most; those whose reward is not finite come first."""

F = TypeVar("F", bound=SdpoError)


@contextmanager
def keeping_batches(folder: Path, epoch: int, recipe: Recipe) -> Iterator[None]:
    """While an epoch is inside, numbers that are not finite leave their batch under `folder`.

    The error says where, and names epoch, step, sample and plug-in; of an update, whose loss is that of all its
    samples, the objective.
    """
    path = folder / f"epoch-{epoch:05d}.json"
    try:
        yield
    except NonFiniteError as fault:
        remedy = where_kept(keep_update, path, fault)
        place = f"epoch {epoch}, {fault.place}, objective {recipe.objective.name}"
        raise TrainingError(fault.fault, place=place, remedy=remedy) from fault
    except NonFiniteRolloutError as fault:
        remedy = where_kept(keep_rollouts, path, fault)
        rollout, pair, step = min((~fault.finite).nonzero().tolist(), key=lambda place: place[2])
        sample = named(step, rollout, **described(fault.rollouts, pair))
        place = f"epoch {epoch}, {sample}, model {recipe.model.name}"
        raise TrainingError(fault.fault, place=place, remedy=remedy) from fault
    except NonFiniteScoreError as fault:
        if not isinstance(fault.request, PlacedRequest):
            raise
        remedy = where_kept(keep_pictures, path, fault)
        sample = named(**picture_entries(fault.request, fault.values)[0])
        raise PluginError(fault.fault, place=f"epoch {epoch}, {sample}, {fault.place}", remedy=remedy) from fault


def where_kept(keep: Callable[[Path, F], None], path: Path, fault: F) -> str:
    """Keep the batch; the fault's remedy, with the place of the batch unless that cannot be written."""
    try:
        keep(path, fault)
    except ArtifactError:
        return fault.remedy
    return f"see its batch in {path}; {fault.remedy}"


def named(step: int, rollout: int, number: int, prompt: str, **_: object) -> str:
    """A sample, for an error."""
    return f"step {step} of rollout {rollout} of pair {number} ({quoted(prompt)})"


def keep_update(path: Path, fault: NonFiniteError) -> None:
    """The failed update's pairs: states, log-probabilities, advantages and prompts. ArtifactError as for writing."""
    rollouts, advantage = fault.lesson.rollouts, fault.lesson.advantage
    pairs = fault.update.pairs.unique().tolist()
    keep_states(path, fault, rollouts, {"advantage": advantage}, pairs, fault.update.step.unique().tolist())


def keep_rollouts(path: Path, fault: NonFiniteRolloutError) -> None:
    """The part of the epoch's rollouts that is not finite: states, log-probabilities and prompts. ArtifactError too."""
    steps = (~fault.finite).any(0).any(0).nonzero().flatten().tolist()
    keep_states(path, fault, fault.rollouts, {}, list(range(len(fault.rollouts.draw))), steps)


def keep_states(
    path: Path,
    fault: SdpoError,
    rollouts: Rollouts,
    more: Mapping[str, Tensor],
    pairs: Sequence[int],
    steps: Sequence[int],
) -> None:
    """Write some pairs' tensors, [R B ...] each, as safetensors, and beside them as JSON what they are."""
    tensors = {"x_t": rollouts.x_t, "x0": rollouts.x0, "log_prob": rollouts.log_prob, **more}
    sound = {pair: all(bool(one[:, pair].isfinite().all()) for one in tensors.values()) for pair in pairs}
    suspects_first = sorted(pairs, key=sound.__getitem__)
    chosen = suspects_first[: max(1, LARGEST // (2 * rollouts.x_t[:, 0].numel() * 4))]
    with writing(path.with_suffix(".safetensors")):
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {name: one[:, chosen].detach().cpu().contiguous() for name, one in tensors.items()}
        save_file(kept, path.with_suffix(".safetensors"))
        open_to_readers(path.with_suffix(".safetensors"))
    entries = [{**described(rollouts, pair), "finite": sound[pair]} for pair in chosen]
    write_json(path, fault, steps=list(steps), pairs=entries, left_out=len(pairs) - len(chosen))


def described(rollouts: Rollouts, pair: int) -> dict[str, Any]:
    """A pair's running number and prompt."""
    return {"number": rollouts.draw.first + pair, "prompt": rollouts.draw.prompts[pair].text}


def keep_pictures(path: Path, fault: NonFiniteScoreError) -> None:
    """Write the pictures of the request as PNG, and beside them as JSON what they are. ArtifactError as for writing."""
    entries = picture_entries(fault.request, fault.values)
    folder = path.with_suffix("")
    for entry in entries[:PICTURES]:
        image = fault.request.images[entry["picture"]].detach().cpu().nan_to_num(0.0)
        write_bytes(folder / f"{entry['picture']:04d}.png", png_bytes(as_picture(image)))
    write_json(path, fault, pictures=entries[:PICTURES], left_out=max(0, len(entries) - PICTURES))


def picture_entries(request: PlacedRequest, values: Tensor) -> list[dict[str, Any]]:
    """What is known of each picture, those whose value is not finite first; values as texts, for JSON knows no NaN."""
    found = [
        {"picture": place, "number": request.first + pair, "prompt": prompt, "rollout": rollout, "step": step}
        | {"value": str(value), "finite": finite}
        for place, ((rollout, pair, step), prompt, value, finite) in enumerate(
            zip(request.places, request.prompts, values.tolist(), values.isfinite().tolist(), strict=True)
        )
    ]
    return sorted(found, key=lambda one: one["finite"])


def write_json(path: Path, fault: SdpoError, **said: Any) -> None:
    """What a batch is, for people and programs."""
    text = json.dumps({"fault": str(fault), **said}, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")
