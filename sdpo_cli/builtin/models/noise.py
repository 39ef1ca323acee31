"""How a checkpoint's own scheduler class decides its noise levels and how it draws."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.tensors import Sampler
from sdpo_cli.builtin.models.ddim import ddim_schedule
from sdpo_cli.builtin.models.euler import euler_schedule
from sdpo_cli.builtin.models.lcm import boundary, lcm_schedule
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.errors import ArtifactError, UsageError
from sdpo_cli.maths import Schedule
from sdpo_cli.maths.transition import Prediction

PREDICTIONS = ("epsilon", "v_prediction", "sample")
UNCLIPPED = {"clip_sample": False, "thresholding": False}
"""Of the scheduler that is read, and that a merged pipeline is given: by default some clip."""


@dataclass(frozen=True)
class Rule:
    """A way to draw: the diffusers scheduler whose tables are read, how, and the sampler that equals it."""

    scheduler_class: Any
    schedule: Callable[[Any, int], Schedule]
    sampler: Sampler


RULES = {
    "ddim": Rule(DDIMScheduler, ddim_schedule, Sampler("ddim", 0.0)),
    "euler": Rule(EulerDiscreteScheduler, euler_schedule, Sampler("ddim", 0.0)),
    "euler-ancestral": Rule(EulerAncestralDiscreteScheduler, euler_schedule, Sampler("ddim", 1.0)),
    "lcm": Rule(LCMScheduler, lcm_schedule, Sampler("renoise", 1.0)),
}
"""By the word of the option `scheduler`. Solvers of higher order (PNDM, DPM++, UniPC) have no density of one step:
checkpoints that name one are drawn by `ddim` with their own betas and spacing."""


@dataclass(frozen=True)
class Noise:
    """The noise of one checkpoint.

    Attributes:
        rule: how it draws.
        scheduler: of the rule's class, with the checkpoint's settings.
        source: what names the checkpoint, for errors.
    """

    rule: Rule
    scheduler: Any
    source: str

    @property
    def prediction(self) -> Prediction:
        """What the network predicts."""
        prediction: Prediction = self.scheduler.config.prediction_type
        return prediction

    def schedule(self, steps: int) -> Schedule:
        """The levels of S steps. UsageError where the scheduler has no such schedule."""
        settings = self.scheduler.config
        lcm = isinstance(self.scheduler, LCMScheduler)
        longest = settings.original_inference_steps if lcm else settings.num_train_timesteps
        if not 1 <= steps <= longest:
            raise self.cannot(steps, f"use 1 to {longest} steps")
        if not fits_table(self.scheduler, steps):
            raise self.cannot(
                steps, "its timesteps would leave its table: use another number, or another timestep_spacing"
            )
        schedule = self.rule.schedule(self.scheduler, steps)
        if self.prediction == "epsilon" and not schedule.alpha.all():
            raise self.cannot(
                steps, "its first level is noise alone, and it predicts noise: use option scheduler euler"
            )
        return schedule

    def cannot(self, steps: int, remedy: str) -> UsageError:
        """What to say of steps that there is no schedule for."""
        return UsageError(f"{steps} steps cannot be sampled", place=self.source, remedy=remedy)

    def finished(
        self, x0: Float[Tensor, "B C H W"], x_t: Float[Tensor, "B C H W"], timestep: Float[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """The clean estimate after the boundary scalings of a consistency model; as it is in other cases."""
        if not isinstance(self.scheduler, LCMScheduler):
            return x0
        return boundary(x0, x_t, timestep, self.scheduler.config.timestep_scaling)


def fits_table(scheduler: Any, steps: int) -> bool:
    """Whether the grid of S steps has S timesteps of the table: an offset, or rounding, may give others."""
    own = type(scheduler).from_config(scheduler.config)
    own.set_timesteps(steps)
    inside = (own.timesteps >= 0) & (own.timesteps < own.config.num_train_timesteps)
    return len(own.timesteps) == steps and bool(inside.all())


def noise_of(scheduler: Any, options: UNetOptions) -> Noise:
    """The noise that a checkpoint's scheduler and the options say. ArtifactError where it is of another kind."""
    kind = type(scheduler).__name__
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ArtifactError(
            f"its scheduler {kind} has no table of betas",
            place=options.path,
            remedy="name a checkpoint of this family as its authors published it",
        )
    if options.scheduler == "own":
        check_unclipped(scheduler, options.path)
    own = next((name for name, rule in RULES.items() if rule.scheduler_class.__name__ == kind), "ddim")
    rule = RULES[own if options.scheduler == "own" else options.scheduler]
    wanted = {"timestep_spacing": options.timestep_spacing, "prediction_type": options.prediction}
    changes = {name: value for name, value in wanted.items() if value != "own"}
    made = rule.scheduler_class.from_config(scheduler.config, **changes, **UNCLIPPED)
    if made.config.prediction_type not in PREDICTIONS:
        raise ArtifactError(
            "its scheduler names no known prediction type",
            place=options.path,
            remedy="set option prediction to epsilon, v_prediction or sample",
        )
    return Noise(rule, made, options.path)


def check_unclipped(scheduler: Any, source: str) -> None:
    """ArtifactError where the scheduler would clip clean estimates, which latent models do not."""
    drawn = isinstance(scheduler, DDIMScheduler | LCMScheduler)
    wrong = [name for name in ("clip_sample", "thresholding") if drawn and scheduler.config.get(name)]
    if wrong:
        raise ArtifactError(
            f"its scheduler clips clean estimates ({wrong[0]}), which no rollout does",
            place=source,
            remedy=f"set {wrong[0]} to false in its scheduler_config.json, or name one as option scheduler",
        )
