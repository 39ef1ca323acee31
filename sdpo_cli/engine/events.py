"""What a long-running engine function reports while it works: frozen records that it yields."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Stage = Literal["load", "draw", "evaluate", "rollout", "score", "credit", "update", "save"]


@dataclass(frozen=True)
class StageStarted:
    """A stage of the work began.

    Attributes:
        stage: which.
        epoch, epochs: which epoch of how many, from 1; 0 outside training.
        detail: which part of the stage, e.g. `base, 4 steps`.
    """

    stage: Stage
    epoch: int
    epochs: int
    detail: str = ""


@dataclass(frozen=True)
class EpochDone:
    """An epoch ended.

    Attributes:
        epoch, epochs: which of how many, from 1.
        metrics: as written to `metrics.jsonl`: the same in every run of the same recipe, so no timings.
        seconds: wall-clock of every stage of this epoch.
    """

    epoch: int
    epochs: int
    metrics: Mapping[str, int | float]
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunDone:
    """A run of a comparison ended.

    Attributes:
        left: how many are still to be made.
        seconds: about what these will take, one after the other.
    """

    left: int
    seconds: float


@dataclass(frozen=True)
class Resumed:
    """Training goes on after `epoch` of `epochs`."""

    epoch: int
    epochs: int


@dataclass(frozen=True)
class FileWritten:
    """Something worth telling the user was written; `what` is its one-line description."""

    path: Path
    what: str


@dataclass(frozen=True)
class Note:
    """One line the user should read."""

    text: str


Event = StageStarted | Resumed | EpochDone | RunDone | FileWritten | Note
