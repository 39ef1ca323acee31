"""The shipped objectives: SDPO and the methods it is compared with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdpo_cli.api import LoadContext, ObjectiveSpec, hookimpl
from sdpo_cli.builtin.objectives.options import (
    D3poOptions,
    DdpoOptions,
    GrpoOptions,
    PrdpOptions,
    RebelOptions,
    SdpoOptions,
)

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import Objective

SDPO_PLUGIN_API = 1


def load_sdpo(options: SdpoOptions, context: LoadContext) -> "Objective":
    """Reward difference learning."""
    from sdpo_cli.builtin.objectives.sdpo import Sdpo

    return Sdpo(options)


def load_ddpo(options: DdpoOptions, context: LoadContext) -> "Objective":
    """Policy gradient with per-prompt advantages."""
    from sdpo_cli.builtin.objectives.policy_gradient import Ddpo

    return Ddpo(options)


def load_grpo(options: GrpoOptions, context: LoadContext) -> "Objective":
    """Policy gradient with advantages within groups."""
    from sdpo_cli.builtin.objectives.policy_gradient import Grpo

    return Grpo(options)


def load_prdp(options: PrdpOptions, context: LoadContext) -> "Objective":
    """Reward difference prediction on trajectories, clipped."""
    from sdpo_cli.builtin.objectives.trajectory_difference import TrajectoryDifference

    return TrajectoryDifference(options, options.clip)


def load_rebel(options: RebelOptions, context: LoadContext) -> "Objective":
    """Reward difference prediction on trajectories, free."""
    from sdpo_cli.builtin.objectives.trajectory_difference import TrajectoryDifference

    return TrajectoryDifference(options, None)


def load_d3po(options: D3poOptions, context: LoadContext) -> "Objective":
    """Preferences between the rollouts of a pair."""
    from sdpo_cli.builtin.objectives.d3po import D3po

    return D3po(options)


@hookimpl
def sdpo_objectives() -> Sequence[ObjectiveSpec]:
    """Reward difference learning, and what it is compared with."""
    return [
        ObjectiveSpec(
            name="sdpo",
            summary="differences of log-ratios of a pair learn differences of stepwise advantages",
            version="1",
            source="Zhang et al., SDPO, arXiv 2411.11727",
            options=SdpoOptions,
            load=load_sdpo,
        ),
        ObjectiveSpec(
            name="ddpo",
            summary="clipped policy gradient of the last picture's reward, compared with its prompt's latest",
            version="1",
            source="Black et al., DDPO, arXiv 2305.13301",
            options=DdpoOptions,
            load=load_ddpo,
        ),
        ObjectiveSpec(
            name="grpo",
            summary="clipped policy gradient of the last picture's reward, compared within a group of rollouts",
            version="1",
            source="Liu et al., Flow-GRPO, arXiv 2505.05470; Xue et al., DanceGRPO, arXiv 2505.07818",
            options=GrpoOptions,
            load=load_grpo,
        ),
        ObjectiveSpec(
            name="prdp",
            summary="trajectories' differences of log-ratios, clipped in each step, learn differences of reward",
            version="1",
            source="Deng et al., PRDP, arXiv 2402.08714",
            options=PrdpOptions,
            load=load_prdp,
        ),
        ObjectiveSpec(
            name="rebel",
            summary="trajectories' differences of log-ratios learn differences of reward",
            version="1",
            source="Gao et al., REBEL, arXiv 2404.16767",
            options=RebelOptions,
            load=load_rebel,
        ),
        ObjectiveSpec(
            name="d3po",
            summary="every step of the better rollout of a pair is preferred, against the base model",
            version="1",
            source="Yang et al., D3PO, arXiv 2311.13231",
            options=D3poOptions,
            load=load_d3po,
        ),
    ]
