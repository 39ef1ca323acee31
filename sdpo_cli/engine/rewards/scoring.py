"""Scoring pictures with one or several rewards, each held to its contract."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.graphs import any_recordings, give_up_recordings
from sdpo_cli.api.tensors import Identified, Reward, ScoreRequest, ScoreResult
from sdpo_cli.errors import PluginError, SdpoError
from sdpo_cli.recipe.schema import REWARD_TIMEOUT, Normalise


@dataclass(frozen=True)
class LoadedReward:
    """A reward ready to score.

    Attributes:
        name: what columns and logs call it.
        version: full name and version of its record; other numbers, other text.
        weight: what its values are multiplied by in a sum of rewards.
        reward: the plug-in's object.
        normalise: what is done to its values before they are weighed.
        timeout: seconds it may take for one request in training and evaluation.
    """

    name: str
    version: str
    weight: float
    reward: Reward
    normalise: Normalise = "raw"
    timeout: float = REWARD_TIMEOUT


def full_version(version: str, reward: Reward) -> str:
    """The version of a reward's record, with that of what stands behind the reward, such as a server's."""
    return f"{version} {reward.identity}" if isinstance(reward, Identified) else version


def columns(rewards: Sequence[LoadedReward], results: Sequence[ScoreResult]) -> dict[str, Float[Tensor, " B"]]:
    """Each reward's own values by its name, neither weighted nor normalised, and its details by `NAME/DETAIL`."""
    found: dict[str, Tensor] = {}
    for loaded, result in zip(rewards, results, strict=True):
        details = {f"{loaded.name}/{key}": detail for key, detail in result.details.items()}
        found |= {loaded.name: result.values, **details}
    return found


class NonFiniteScoreError(PluginError):
    """A reward gave numbers that are not finite.

    Attributes:
        request: the pictures.
        values: what it gave for them, one or more of them not finite.
    """

    def __init__(self, fault: str, place: str, request: ScoreRequest, values: Float[Tensor, " B"]) -> None:
        self.request, self.values = request, values
        super().__init__(fault, place=place, remedy="a reward must give finite numbers")


@torch.no_grad()
def checked_score(name: str, reward: Reward, request: ScoreRequest) -> ScoreResult:
    """The reward's answer, without gradients, if it keeps the contract: one finite float32 a picture.

    Pictures that do not fit into memory together are scored in halves; for one alone recorded passes are given up.

    Raises:
        PluginError: it does not, or the reward raised; `name` is the place. A fault it tells itself passes through.
        NonFiniteScoreError: the numbers are not finite.
    """
    result = answer_in_parts(name, reward, request)
    check_finite(f"reward {name}", "values", result.values, request)
    for key, detail in result.details.items():
        check_finite(f"reward {name}", f"details[{key!r}]", detail, request)
    return result


def answer_in_parts(name: str, reward: Reward, request: ScoreRequest) -> ScoreResult:
    """The reward's answer, one float32 a picture. Errors as for `checked_score`."""
    try:
        result = answer(f"reward {name}", reward, request)
    except torch.OutOfMemoryError as error:
        if len(request.images) < 2 and not any_recordings():
            remedy = "free memory, or serve the reward on another machine with `sdpo serve-reward`"
            raise PluginError("one picture does not fit into memory", place=f"reward {name}", remedy=remedy) from error
        result = None
    if result is None:  # outside the handler: the exception no longer holds the memory of what failed
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(request.images) < 2:
            give_up_recordings()
            return answer_in_parts(name, reward, request)
        return joined_results([answer_in_parts(name, reward, half) for half in halves(request)])
    check_values(f"reward {name}", "values", result.values, len(request.images))
    for key, detail in result.details.items():
        check_values(f"reward {name}", f"details[{key!r}]", detail, len(request.images))
    return result


def answer(place: str, reward: Reward, request: ScoreRequest) -> ScoreResult:
    """What the reward says, if it is a ScoreResult. PluginError where it raised; running out of memory passes."""
    try:
        result = reward.score(request)
    except (SdpoError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        fault = f"raised {type(error).__name__}: {error}"
        raise PluginError(fault, place=place, remedy="report it to the plug-in's author") from error
    if not isinstance(result, ScoreResult):
        raise PluginError(f"gave {type(result).__name__}", place=place, remedy="a reward must give a ScoreResult")
    return result


def halves(request: ScoreRequest) -> list[ScoreRequest]:
    """The first and the second half of the pictures."""
    middle = len(request.images) // 2
    return [
        ScoreRequest(request.images[part], request.prompts[part], request.metadata[part])
        for part in (slice(middle), slice(middle, None))
    ]


def joined_results(results: Sequence[ScoreResult]) -> ScoreResult:
    """The results of neighbouring pictures as one."""
    return ScoreResult(
        torch.cat([result.values for result in results]),
        {key: torch.cat([result.details[key] for result in results]) for key in results[0].details},
    )


def check_values(place: str, what: str, values: object, count: int) -> None:
    """PluginError unless `values` are `count` float32 numbers."""
    if not isinstance(values, Tensor) or values.dtype != torch.float32:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise PluginError(f"{what} are {kind}", place=place, remedy="a reward must give float32 tensors")
    if values.shape != (count,):
        found = list(values.shape)
        raise PluginError(f"{what} have shape {found} for {count} pictures", place=place, remedy=f"must be [{count}]")


def check_finite(place: str, what: str, values: Float[Tensor, " B"], request: ScoreRequest) -> None:
    """NonFiniteScoreError unless all are finite."""
    bad = (~values.isfinite()).nonzero().flatten().tolist()
    if bad:
        first = f"{values[bad[0]].item()} for picture {bad[0]}"
        fault = f"{what} are not finite: {first}, {len(bad)} of {len(values)} in all"
        raise NonFiniteScoreError(fault, place, request, values)


def standardised(values: Float[Tensor, "R B S"], prompts: Sequence[str]) -> Float[Tensor, "R B S"]:
    """(value - mean) / (std + 1e-6) over all pictures of the same prompt; NaN marks a step without a picture.

    Args:
        values: one reward's values; R rollouts of B prompts.
        prompts: the B prompts; equal texts are one prompt.
    """
    exact, result = values.cpu().double(), torch.empty(values.shape, dtype=torch.float64)
    for prompt in dict.fromkeys(prompts):
        rows = [number for number, other in enumerate(prompts) if other == prompt]
        group = exact[:, rows]
        known = group[~group.isnan()]
        result[:, rows] = (group - known.mean()) / (known.std(correction=0) + 1e-6)
    return result.float().to(values.device)


def weighted_sum(
    rewards: Sequence[LoadedReward], values: Mapping[str, Float[Tensor, "R B S"]], prompts: Sequence[str]
) -> Float[Tensor, "R B S"]:
    """Σ weight * value, each reward's values normalised as it says."""
    total = torch.zeros_like(values[rewards[0].name])
    for loaded in rewards:
        own = values[loaded.name]
        total = total + loaded.weight * (own if loaded.normalise == "raw" else standardised(own, prompts))
    return total
