"""What `sdpo bench` finds: printed, written as JSON, and compared with an earlier result."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median_low
from typing import Any

from sdpo_cli.engine.disk.files import read_text
from sdpo_cli.engine.disk.recipe_differences import HANDLING, differences
from sdpo_cli.errors import ArtifactError, UsageError

FORMAT = 2
STAGES = ("encode", "rollout", "decode", "reward", "credit", "update")
OPTIONS = {f"model.options.{name}" for name in ("gradient_checkpointing", "text_encoders", "vae_tiling")}
FREE = HANDLING | OPTIONS | {"name", "seed", "eval"}
"""What a recipe may say otherwise without asking for other work."""


@dataclass(frozen=True)
class Stage:
    """One stage, each epoch's work alone and waited for.

    Attributes:
        seconds: of every epoch.
        peak_gb: most memory in use until its end, GB of 10^9 bytes; on CUDA the device's, and of this stage alone.
        utilisation: share of the matrix rate that its operations reach; None where they are not counted.
    """

    seconds: Sequence[float]
    peak_gb: float
    utilisation: float | None = None

    @property
    def mean(self) -> float:
        """Seconds of an epoch."""
        return fmean(self.seconds)


@dataclass(frozen=True)
class Conditions:
    """What a measurement is of: two of other conditions are not compared.

    Attributes:
        recipe: what is run, every field.
        random_weights: whether the weights are.
        device: its name.
    """

    recipe: Mapping[str, Any]
    random_weights: bool
    device: str


@dataclass(frozen=True)
class BenchResult(Conditions):
    """A measurement.

    Attributes:
        torch, sdpo: what it ran on.
        pairs, images: of one epoch; an image is a rollout's last.
        micro_batch: pairs in a forward pass, after what did not fit was halved.
        first_epoch: seconds of the first epoch, compiling and all.
        epochs: seconds of each later one, its stages overlapping as they do in training.
        stages: by name, in an order of their own.
        matrix_rate: operations a second that a large matrix product reached.
        epoch_operations: what the networks did in one epoch.
        peaks_gb: most memory in use in each epoch that was measured stage by stage.
        new_graphs: how many were compiled after the first epoch: 0, unless shapes change.
        host_syncs: how often the host waited for the device in one epoch; None where it cannot be counted.
        repeats: seconds of an epoch in each of several such measurements, this one among them.
        absent: rewards whose time and memory are left out, as something else stood in for them.
    """

    torch: str
    sdpo: str
    pairs: int
    images: int
    micro_batch: int
    first_epoch: float
    epochs: Sequence[float]
    stages: Mapping[str, Stage]
    matrix_rate: float
    epoch_operations: int
    peaks_gb: Sequence[float]
    new_graphs: int
    host_syncs: int | None
    repeats: Sequence[float]
    format: int = FORMAT
    absent: Sequence[str] = ()

    @property
    def epoch(self) -> float:
        """Seconds of an epoch; of several measurements, that of the one in the middle."""
        return median_low(self.repeats or [fmean(self.epochs)])

    @property
    def peak_gb(self) -> float:
        """Most memory in use."""
        return max(self.peaks_gb)

    @property
    def utilisation(self) -> float:
        """Share of the matrix rate that a whole epoch reaches."""
        return self.epoch_operations / self.epoch / self.matrix_rate


def middle(results: Sequence[BenchResult]) -> BenchResult:
    """The measurement in the middle (of an even number, the faster of the two there), and what all of them took."""
    ordered = sorted(results, key=lambda one: one.epoch)
    return replace(ordered[(len(ordered) - 1) // 2], repeats=[one.epoch for one in results])


def as_json(result: BenchResult) -> str:
    """The result as JSON, which `read_result` reads."""
    rates = {"pairs_per_second": result.pairs / result.epoch, "images_per_second": result.images / result.epoch}
    return json.dumps({**asdict(result), **rates, "utilisation": result.utilisation}, indent=1) + "\n"


def read_result(path: Path) -> BenchResult:
    """A stored result. ArtifactError where it is none, or of another format."""
    remedy = "name a file that `sdpo bench --json` wrote"
    try:
        found = json.loads(read_text(path))
        check_format(found["format"], path)
        stages = {name: Stage(**stage) for name, stage in found["stages"].items()}
        known = {name: found[name] for name in BenchResult.__dataclass_fields__ if name in found}
        return BenchResult(**{**known, "stages": stages})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError("not a result of sdpo bench", place=str(path), remedy=remedy) from error


def check_replaceable(path: Path) -> None:
    """UsageError where a file that is no result of `sdpo bench`, such as the recipe, would be written over."""
    text = read_text(path) if path.is_file() else ""
    try:
        known = not text.strip() or "pairs_per_second" in json.loads(text)
    except (ValueError, TypeError):
        known = False
    if not known:
        raise UsageError("is no result of sdpo bench, and would be lost", place=str(path), remedy="name another file")


def check_format(number: object, path: Path) -> None:
    """ArtifactError where a result's format is another."""
    if number != FORMAT:
        raise ArtifactError(f"format {number}, not {FORMAT}", place=str(path), remedy="measure it again")


def check_comparable(planned: Conditions, earlier: Conditions, path: Path) -> None:
    """UsageError, naming the first difference, where two measurements are not of the same work on the same device."""
    pairs = {
        "device": (earlier.device, planned.device),
        "--random-weights": (earlier.random_weights, planned.random_weights),
        **differences(earlier.recipe, planned.recipe, FREE),
    }
    for what, (before, now) in pairs.items():
        if before != now:
            remedy = "compare results of the same recipe on the same device"
            raise UsageError(f"measured with {what} {before}, not {now}", place=str(path), remedy=remedy)
