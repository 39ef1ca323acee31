"""What two recipes say otherwise."""

from collections.abc import Collection, Mapping
from typing import Any

Differences = Mapping[str, tuple[Any, Any]]
"""What was and what is, by name."""

HANDLING = {
    "model.compile",
    "rollout.offload",
    "train.epochs",
    "train.device",
    "train.micro_batch",
    "train.decode_batch",
    "train.checkpoint_every",
    "train.keep_last",
    "train.reward_timeout",
    "train.samples_every",
}
"""Fields that say how a recipe is worked off, not what an epoch learns."""


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], free: Collection[str] = (), place: str = ""
) -> Differences:
    """The fields that two recipes say otherwise, by dotted path, without those in `free`."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in {**before, **after}:
        old, new, path = before.get(name), after.get(name), f"{place}.{name}".lstrip(".")
        if path in free or old == new:
            continue
        nested = isinstance(old, Mapping) and isinstance(new, Mapping)
        found |= differences(old, new, free, path) if nested else {path: (old, new)}
    return found
