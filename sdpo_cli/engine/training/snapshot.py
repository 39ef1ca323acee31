"""Everything that the next epoch depends on, taken from and given back to model and optimiser."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdpo_cli.api.finetune import first_misfit
from sdpo_cli.api.tensors import BaseModel
from sdpo_cli.engine.learning.ema import AVERAGE
from sdpo_cli.errors import ArtifactError
from sdpo_cli.maths import StepStatistics


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

    Attributes:
        progress: how far the run is.
        statistics: of the returns.
        weights: of the adapter, by name.
        optimizer: the optimiser's state, by `WEIGHT/PART`; with `train.ema_decay` the weights' averages are among it.
        about: what it must be continued with, the base model, the prompts, the rewards, by what identifies them.
    """

    progress: Progress
    statistics: StepStatistics
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    about: Mapping[str, str]

    @property
    def place(self) -> str:
        """How errors name it."""
        return f"checkpoint of epoch {self.progress.epoch}"


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
    """Put weights and optimiser state back. ArtifactError, before anything is changed, where they do not fit."""
    trainable = model.trainable()
    states = states_of(snapshot)
    check_fits(snapshot, trainable, states, optimizer)
    for name, parameter in trainable.items():
        parameter.copy_(snapshot.weights[name])
        state = states.get(name, {})
        optimizer.state[parameter] = {key: state_value(value.clone(), parameter.device) for key, value in state.items()}


def states_of(snapshot: Snapshot) -> dict[str, dict[str, Tensor]]:
    """The optimiser's state by weight and part."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in snapshot.optimizer.items():
        weight, _, part = name.rpartition("/")
        found.setdefault(weight, {})[part] = value
    return found


def state_value(value: Tensor, device: torch.device) -> Tensor | int:
    """A part of an optimiser's state as it was before it was copied.

    Moments are beside the weights; AdamW's count of steps is a tensor on the CPU, that of bitsandbytes a plain number.
    """
    if value.ndim:
        return value.to(device)
    return value if value.is_floating_point() else int(value)


def check_fits(
    snapshot: Snapshot,
    trainable: Mapping[str, nn.Parameter],
    states: Mapping[str, Mapping[str, Tensor]],
    optimizer: torch.optim.Optimizer,
) -> None:
    """ArtifactError naming the first tensor that is not one of this adapter and this optimiser."""
    misfit = first_misfit(trainable, snapshot.weights)
    if misfit:
        raise unfit("weights.safetensors does not fit the adapter", misfit, snapshot)
    moments = ("exp_avg", "exp_avg_sq") if isinstance(optimizer, torch.optim.AdamW) else ("state1", "state2")
    for name, state in states.items():
        if name not in trainable:
            raise unfit("optimizer.safetensors does not fit the adapter", f"{name} is unknown", snapshot)
        like = dict.fromkeys((*moments, *(state.keys() & {AVERAGE})), trainable[name])
        wanted = {"step": torch.empty(()), **like}
        misfit = first_misfit(wanted, {part: value for part, value in state.items() if part in wanted})
        if misfit:
            raise unfit("optimizer.safetensors does not fit the optimiser", f"of {name} {misfit}", snapshot)


def unfit(fault: str, misfit: str, snapshot: Snapshot) -> ArtifactError:
    """The error about a tensor that does not fit."""
    return ArtifactError(f"{fault} ({misfit})", place=snapshot.place, remedy="resume with the recipe that wrote it")
