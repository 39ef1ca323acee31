"""Scoring pictures with one or several weighted rewards, each held to its contract."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.tensors import Reward, ScoreRequest, ScoreResult
from sdpo_cli.errors import PluginError, SdpoError


@dataclass(frozen=True)
class LoadedReward:
    """A reward ready to score.

    Attributes:
        name: what columns and logs call it.
        version: full name and version of its record; other numbers, other text.
        weight: what its values are multiplied by in a sum of rewards.
        reward: the plug-in's object.
    """

    name: str
    version: str
    weight: float
    reward: Reward


@dataclass(frozen=True)
class Scored:
    """Pictures' scores.

    Attributes:
        total: Σ weight * value over the rewards.
        values: each reward's own values by its name, not weighted.
        details: the rewards' further numbers by `NAME/DETAIL`.
    """

    total: Float[Tensor, " B"]
    values: Mapping[str, Float[Tensor, " B"]]
    details: Mapping[str, Float[Tensor, " B"]]


def score_all(rewards: Sequence[LoadedReward], request: ScoreRequest) -> Scored:
    """The weighted sum of all rewards of each picture, and what it is made of, on the pictures' device.

    Raises:
        PluginError: a reward raised or broke its contract.
    """
    device = request.images.device
    total = torch.zeros(len(request.images), device=device)
    values: dict[str, Tensor] = {}
    details: dict[str, Tensor] = {}
    for loaded in rewards:
        result = checked_score(loaded.name, loaded.reward, request)
        values[loaded.name] = result.values.to(device)
        total = total + loaded.weight * values[loaded.name]
        details |= {f"{loaded.name}/{key}": detail.to(device) for key, detail in result.details.items()}
    return Scored(total, values, details)


@torch.no_grad()
def checked_score(name: str, reward: Reward, request: ScoreRequest) -> ScoreResult:
    """The reward's answer, without gradients, if it keeps the contract: one finite float32 a picture.

    Raises:
        PluginError: it does not, or the reward raised; `name` is the place. A fault it tells itself passes through.
    """
    place = f"reward {name}"
    try:
        result = reward.score(request)
    except SdpoError:
        raise
    except Exception as error:
        raise PluginError(
            f"raised {type(error).__name__}: {error}", place=place, remedy="report it to the plug-in's author"
        ) from error
    if not isinstance(result, ScoreResult):
        raise PluginError(f"gave {type(result).__name__}", place=place, remedy="a reward must give a ScoreResult")
    check_values(place, "values", result.values, len(request.images))
    for key, detail in result.details.items():
        check_values(place, f"details[{key!r}]", detail, len(request.images))
    return result


def check_values(place: str, what: str, values: object, count: int) -> None:
    """PluginError unless `values` are `count` finite float32 numbers."""
    if not isinstance(values, Tensor) or values.dtype != torch.float32:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise PluginError(f"{what} are {kind}", place=place, remedy="a reward must give float32 tensors")
    if values.shape != (count,):
        found = list(values.shape)
        raise PluginError(f"{what} have shape {found} for {count} pictures", place=place, remedy=f"must be [{count}]")
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        first = f"{values[bad[0]].item()} for picture {bad[0]}"
        raise PluginError(
            f"{what} are not finite: {first}, {len(bad)} of {count} in all",
            place=place,
            remedy="a reward must give finite numbers",
        )
