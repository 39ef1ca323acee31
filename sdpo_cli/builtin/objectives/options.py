"""The options of the shipped objectives. Importing this module imports no torch."""

from typing import Literal

from pydantic import Field, model_validator

from sdpo_cli.api import Options


class DenseOptions(Options):
    """Where the reward of every step comes from."""

    mode: Literal["anchors", "exact", "final"] = Field(
        default="anchors",
        description="anchors: queried at the first, last and anchor step, the rest predicted; exact: queried at every "
        "step; final: the last step's reward stands for all",
    )
    anchor: Literal["middle", "interior", "any"] = Field(
        default="middle",
        description="where the anchor lies: halfway always, or least similar to both ends: between them, or anywhere "
        "(published code)",
    )
    predictor: Literal["arc", "sharpened", "cosine"] = Field(
        default="arc",
        description="the rewards between: interpolated along the arc of the latents, or queried ones averaged by a "
        "softmax of cosine similarity, or by that itself (published code)",
    )


class StatisticsOptions(Options):
    """The per-prompt return statistics behind the advantages."""

    size: int = Field(default=32, ge=1, description="returns kept per prompt, first in, first out")
    min_count: int = Field(default=16, ge=1, description="returns of a prompt needed before its own statistics count")


class AdvantageOptions(Options):
    """What every objective says of its advantages."""

    advantage_clip: float = Field(default=5.0, gt=0, description="limit of advantages, in standard deviations")
    statistics: StatisticsOptions = Field(default=StatisticsOptions(), description="per-prompt return statistics")


ANTITHETIC = "the second rollout takes the negative of the first one's noise at every step, or noise of its own"


class PairOptions(AdvantageOptions):
    """What every objective says that compares the two rollouts of a pair."""

    antithetic: bool = Field(default=False, description=ANTITHETIC)


class SdpoOptions(PairOptions):
    """SDPO's settings; the defaults are the published ones but for `antithetic`, `credit` and `dense`."""

    antithetic: bool = Field(default=True, description=f"{ANTITHETIC} (published code)")
    branched: bool = Field(
        default=False,
        description="the rollouts of a pair take the same noise but in one action, drawn for each pair, and learn from "
        "that one; or from every action (published code)",
    )
    gamma: float = Field(default=0.99, ge=0, le=1, description="discount of later rewards")
    decay: float = Field(default=0.99, gt=0, le=1, alias="lambda", description="λ: weight of step i is λ^i / eta_scale")
    clip: float = Field(default=1e-4, ge=0, description="limit of log-ratios, nats per latent element; 0 is no limit")
    credit: Literal["next", "gain", "trajectory", "current"] = Field(
        default="next",
        description="action i earns the reward of the clean estimate after it, its gain over the one before it, or the "
        "reward of the one before it (published code); or all actions alike those of every estimate (trajectory)",
    )
    eta_scale: float = Field(default=1.0, gt=0, description="divides every step's weight")
    updates: Literal["shuffled", "accumulated"] = Field(
        default="shuffled",
        description="an optimiser step for each place in shuffled orders of steps, or one for all steps of a batch",
    )
    dense: DenseOptions = Field(default=DenseOptions(), description="dense reward prediction")

    @model_validator(mode="after")
    def branch_earns(self) -> "SdpoOptions":
        """ValueError where the branch would earn the reward of an estimate that both rollouts have in common."""
        if self.branched and self.credit == "current":
            raise ValueError(
                "with branched pairs credit should not be current: before the branch the rewards are the same"
            )
        return self

    @model_validator(mode="after")
    def gain_is_asked_for(self) -> "SdpoOptions":
        """ValueError where every reward is the last one, and so no action gains anything."""
        if self.credit == "gain" and self.dense.mode == "final":
            raise ValueError("with credit gain dense.mode should be exact or anchors: with final there is one reward")
        return self


class DdpoOptions(AdvantageOptions):
    """DDPO's settings."""

    rollouts: int = Field(default=2, ge=1, description="rollouts of a prompt, each from noise of its own")
    clip: float = Field(default=1e-4, ge=0, description="limit of the ratio's distance from 1; 0 is no limit")
    updates: Literal["shuffled", "accumulated"] = Field(
        default="accumulated", description="an optimiser step for all steps of a batch (published), or for each step"
    )


class GrpoOptions(Options):
    """GRPO's settings; its divergence from the base model is `train.kl`, as for every objective."""

    group: int = Field(default=8, ge=2, description="rollouts of a prompt that are compared with each other")
    clip: float = Field(default=1e-4, ge=0, description="limit of the ratio's distance from 1; 0 is no limit")
    shared_noise: bool = Field(default=False, description="whether a group starts from one noise, as in DanceGRPO")
    updates: Literal["shuffled", "accumulated"] = Field(
        default="accumulated", description="an optimiser step for all steps of a batch (published), or for each step"
    )
    advantage_clip: float = Field(default=5.0, gt=0, description="limit of advantages, in standard deviations")


class RebelOptions(PairOptions):
    """REBEL's settings."""

    beta: float = Field(default=1.0, gt=0, description="factor of the trajectory's difference of log-ratios")


class PrdpOptions(RebelOptions):
    """PRDP's settings."""

    clip: float = Field(default=1e-4, gt=0, description="limit of each step's log-ratio, nats per latent element")


class D3poOptions(PairOptions):
    """D3PO's settings."""

    beta: float = Field(default=0.1, gt=0, description="how strongly the base model holds on to the policy")
