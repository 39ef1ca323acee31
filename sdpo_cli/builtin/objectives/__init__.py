"""The shipped objective: SDPO."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdpo_cli.api import LoadContext, ObjectiveSpec, Options, hookimpl

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import Objective

SDPO_PLUGIN_API = 1


class DenseOptions(Options):
    """Where the reward of every step comes from."""

    mode: Literal["anchors", "exact", "final"] = Field(
        default="anchors",
        description="anchors: queried at the first, last and anchor step, the rest predicted; exact: queried at every "
        "step; final: the last step's reward stands for all",
    )
    anchor: Literal["interior", "any"] = Field(
        default="interior", description="where the anchor may lie: between first and last, or anywhere (published code)"
    )


class StatisticsOptions(Options):
    """The per-prompt return statistics behind the advantages."""

    size: int = Field(default=32, ge=1, description="returns kept per prompt, first in, first out")
    min_count: int = Field(default=16, ge=1, description="returns of a prompt needed before its own statistics count")


class SdpoOptions(Options):
    """SDPO's settings; the defaults are the published ones but for `credit` and `dense.anchor`."""

    gamma: float = Field(default=0.99, ge=0, le=1, description="discount of later rewards")
    decay: float = Field(default=0.99, gt=0, le=1, alias="lambda", description="λ: weight of step i is λ^i / eta_scale")
    clip: float = Field(default=1e-4, ge=0, description="limit of log-ratios, nats per latent element; 0 is no limit")
    credit: Literal["next", "current"] = Field(
        default="next",
        description="action i earns the reward of the clean estimate after it, or before it (published code)",
    )
    eta_scale: float = Field(default=1.0, gt=0, description="divides every step's weight")
    advantage_clip: float = Field(default=5.0, gt=0, description="limit of advantages, in standard deviations")
    dense: DenseOptions = Field(default=DenseOptions(), description="dense reward prediction")
    statistics: StatisticsOptions = Field(default=StatisticsOptions(), description="per-prompt return statistics")


def load_sdpo(options: SdpoOptions, context: LoadContext) -> "Objective":
    """Reward difference learning."""
    from sdpo_cli.builtin.objectives.sdpo import Sdpo

    return Sdpo(options)


@hookimpl
def sdpo_objectives() -> Sequence[ObjectiveSpec]:
    """Reward difference learning on pairs of rollouts."""
    return [
        ObjectiveSpec(
            name="sdpo",
            summary="differences of log-ratios of a pair learn differences of stepwise advantages",
            version="1",
            source="Zhang et al., SDPO, arXiv 2411.11727",
            options=SdpoOptions,
            load=load_sdpo,
        )
    ]
