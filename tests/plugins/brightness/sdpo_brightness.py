"""A whole plug-in: the reward `brightness`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from sdpo_cli.api import LoadContext, Options, RewardSpec, hookimpl

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import Reward, ScoreRequest, ScoreResult

SDPO_PLUGIN_API = 1


class BrightnessOptions(Options):
    """What counts as bright."""

    gain: float = Field(default=1.0, gt=0, description="Factor of the mean.")


class Brightness:
    """The mean of all pixels, times the gain."""

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def score(self, request: "ScoreRequest") -> "ScoreResult":
        """One mean a picture, 0..gain."""
        from sdpo_cli.api.tensors import ScoreResult

        return ScoreResult(self.gain * request.images.mean(dim=(1, 2, 3)))


def load(options: BrightnessOptions, context: LoadContext) -> "Reward":
    """The reward; it needs no weights."""
    return Brightness(options.gain)


@hookimpl
def sdpo_rewards() -> Sequence[RewardSpec]:
    """One reward."""
    return [
        RewardSpec(
            name="brightness",
            summary="mean of all pixels",
            version="1",
            source="this file",
            options=BrightnessOptions,
            load=load,
        )
    ]
