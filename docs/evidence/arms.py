"""What study.py compares: the methods with the settings searched in, the parts of SDPO, long rollouts.

An arm is an objective and what is said of the recipe for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

REWARDS = {
    "style": "{emoji-style: {style: 3d}}",
    "jpeg": "{jpeg-incompressibility: {}}",
    "colour": "{colorfulness: {}}",
}
MEASURES = {"style": "emoji-style", "jpeg": "jpeg-incompressibility", "colour": "colorfulness"}
SDPO = ("objective.sdpo.clip=5e-3", "objective.sdpo.gamma=0.9", "objective.sdpo.antithetic=true")
FINAL = "objective.sdpo.dense.mode=final"
BRANCHED = "objective.sdpo.branched=true"
OWN_NOISE = "objective.sdpo.antithetic=false"
EXACT, GAMMA_0 = "objective.sdpo.dense.mode=exact", "objective.sdpo.gamma=0"
CREDIT_GAIN, CURRENT = "objective.sdpo.credit=gain", "objective.sdpo.credit=current"
HALVES = "train.batch=16"
"""Two optimiser steps an epoch, as DDPO and GRPO publish."""

Arms = Mapping[str, tuple[str, Sequence[str]]]
"""By name: the objective, and recipe overrides."""


@dataclass(frozen=True)
class Method:
    """An objective with what is always said of it, and what is searched in: each form with each learning rate."""

    objective: str
    own: tuple[str, ...]
    forms: Sequence[tuple[str, ...]]
    rates: tuple[str, ...] = ("1.5e-3", "3e-3", "6e-3", "1e-2")

    def settings(self) -> list[tuple[str, ...]]:
        """All combinations, as overrides."""
        return [(*form, f"train.learning_rate={rate}") for form, rate in product(self.forms, self.rates)]


def forms(field: str, values: Sequence[str]) -> list[tuple[str, ...]]:
    """2, 3 and 4 steps, each with each value of one field."""
    return [(f"rollout.steps={steps}", f"{field}={value}") for steps, value in product((2, 3, 4), values)]


CLIPS, NOISES = ("1e-3", "5e-3"), ("false", "true")
METHODS = {
    "sdpo": Method(
        "sdpo",
        (*SDPO, FINAL),
        [
            ("rollout.steps=2",),
            ("rollout.steps=2", "objective.sdpo.advantage_clip=1"),
            ("rollout.steps=3",),
            ("rollout.steps=4",),
            ("rollout.steps=3", BRANCHED),
            ("rollout.steps=4", BRANCHED),
        ],
    ),
    "ddpo": Method("ddpo", (HALVES,), forms("objective.ddpo.clip", CLIPS), ("3e-3", "6e-3", "1e-2", "2e-2")),
    "prdp": Method("prdp", (HALVES, "objective.prdp.clip=5e-3"), forms("objective.prdp.antithetic", NOISES)),
    "d3po": Method("d3po", (), forms("objective.d3po.antithetic", NOISES)),
    "grpo": Method("grpo", ("train.batch=4",), forms("objective.grpo.clip", CLIPS)),
}
"""One query a picture; six forms each, and four learning rates."""
GAIN = Method(
    "sdpo",
    (*SDPO, CREDIT_GAIN, EXACT, "rollout.steps=8"),
    [("objective.sdpo.gamma=0",), ("objective.sdpo.gamma=0.9",)],
    ("1.5e-3", "3e-3"),
)
"""Seven queries a picture, beside the comparison at equal queries: fewer settings, from an earlier search."""
THREE = (*SDPO, FINAL, "rollout.steps=3", "train.learning_rate=6e-3")
COSINE = ("objective.sdpo.dense.anchor=interior", "objective.sdpo.dense.predictor=cosine")
DENSE = (*SDPO, "rollout.steps=4", "train.learning_rate=3e-3")
PARTS: Arms = {
    "sdpo": ("sdpo", (*THREE, BRANCHED)),
    "own-noise": ("sdpo", (*THREE, BRANCHED, OWN_NOISE)),
    "unbranched": ("sdpo", THREE),
    "unbranched-own-noise": ("sdpo", (*THREE, OWN_NOISE)),
    "every-reward": ("sdpo", (*THREE, BRANCHED, EXACT)),
    "steps-4": ("sdpo", (*THREE, BRANCHED, "rollout.steps=4")),
    "steps-8": ("sdpo", (*THREE, BRANCHED, "rollout.steps=8")),
    "dense": ("sdpo", DENSE),
    "dense-current": ("sdpo", (*DENSE, CURRENT)),
}
CHANGED: Mapping[str, Sequence[str]] = {
    "sdpo-dense": (),
    "own-noise": (OWN_NOISE,),
    "credit-current": (CURRENT,),
    "final": (FINAL,),
    "no-shuffle": ("objective.sdpo.updates=accumulated",),
    "gamma-0": (GAMMA_0,),
    "no-decay": ("objective.sdpo.lambda=1",),
    "clip-1e-3": ("objective.sdpo.clip=1e-3",),
    "no-clip": ("objective.sdpo.clip=0",),
    "steps-2": ("rollout.steps=2",),
    "steps-3": ("rollout.steps=3",),
    "steps-8": ("rollout.steps=8",),
    "steps-8-current": ("rollout.steps=8", CURRENT),
    "renoise": ("rollout.transition=renoise",),
    "renoise-current": ("rollout.transition=renoise", CURRENT),
    "cps": ("rollout.transition=cps", "rollout.eta=0.7"),
}
CHANGES: Arms = {name: ("sdpo", (*DENSE, *COSINE, *own)) for name, own in CHANGED.items()}
"""From dense rewards in 4 steps, one part changed at a time."""
CREDITS = {"current": (CURRENT,), "next": (), "gain": (CREDIT_GAIN,), "gain-gamma-0": (CREDIT_GAIN, GAMMA_0)}
CREDIT: Arms = {
    f"{name}-{steps}": ("sdpo", (*DENSE, EXACT, f"rollout.steps={steps}", *own))
    for (name, own), steps in product(CREDITS.items(), (4, 8))
}
"""What an action is credited with, all rewards asked for, in 4 and in 8 steps."""
ALIKE: Arms = {
    f"{name}-{steps}": ("sdpo", (*DENSE, EXACT, f"rollout.steps={steps}", f"objective.sdpo.credit={name}"))
    for name, steps in product(("next", "trajectory"), (4, 8))
}
"""Each action by its own return, and all of a trajectory alike."""
FOUR = "rollout.steps=4"
PUBLISHED = (
    CURRENT, OWN_NOISE, FOUR, "objective.sdpo.gamma=0.99", "objective.sdpo.clip=1e-4",
    "objective.sdpo.dense.anchor=any", "objective.sdpo.dense.predictor=cosine",
)  # fmt: skip
"""SDPO as its code was published, in few steps."""
OTHER_RATES = ("1.5e-3", "6e-3", "1e-2")
"""Than 3e-3."""
RATED: Arms = {
    **{
        f"current-{rate}": ("sdpo", (*SDPO, EXACT, FOUR, CURRENT, f"train.learning_rate={rate}"))
        for rate in OTHER_RATES
    },
    **{f"next-{rate}": ("sdpo", (*SDPO, EXACT, FOUR, f"train.learning_rate={rate}")) for rate in OTHER_RATES},
    **{f"published-{rate}": ("sdpo", (*PUBLISHED, f"train.learning_rate={rate}")) for rate in ("3e-3", "1e-2")},
}
FEWER = ("current-6e-3", "current-1e-2", "published-3e-3", "published-1e-2")
RATES: Mapping[str, Arms] = {
    "style": RATED,
    **{reward: {name: RATED[name] for name in FEWER} for reward in ("jpeg", "colour")},
}
"""By reward, the published credit and the default one at other learning rates, and all of the published form."""


def at_rates(steps: int, kinds: Mapping[str, tuple[str, Sequence[str], Sequence[str]]]) -> Arms:
    """Rollouts of many steps: by name the objective, what is said of it, and the learning rates."""
    return {
        f"{name}-{rate}": (objective, (*own, f"rollout.steps={steps}", f"train.learning_rate={rate}"))
        for name, (objective, own, rates) in kinds.items()
        for rate in rates
    }


LOW, HIGH = ("1e-3", "2e-3", "3e-3"), ("3e-3", "6e-3", "1e-2")
"""Learning rates where each action has an optimiser step of its own, and where two share all of an epoch."""
SIXTEEN = at_rates(
    16,
    {
        "branched": ("sdpo", (*SDPO, FINAL, BRANCHED), ("6e-3", "1e-2", "2e-2")),
        "final": ("sdpo", (*SDPO, FINAL), LOW),
        "dense": ("sdpo", SDPO, LOW),
        "gain": ("sdpo", (*SDPO, CREDIT_GAIN), LOW),
        "gain-exact": ("sdpo", (*SDPO, CREDIT_GAIN, EXACT), LOW),
        "ddpo": ("ddpo", (HALVES, "objective.ddpo.clip=5e-3"), HIGH),
        "prdp": ("prdp", (HALVES, "objective.prdp.clip=5e-3"), HIGH),
        "d3po": ("d3po", ("objective.d3po.antithetic=true",), LOW),
        "grpo": ("grpo", ("train.batch=4", "objective.grpo.clip=5e-3"), HIGH),
    },
)
FIFTY = at_rates(
    50,
    {
        "branched": ("sdpo", (*SDPO, FINAL, BRANCHED), ("3e-3", "6e-3")),
        "final": ("sdpo", (*SDPO, FINAL), ("1e-3", "2e-3")),
        "dense": ("sdpo", SDPO, ("1e-3", "2e-3")),
    },
)
LONG = (*SDPO, "rollout.steps=16", "train.learning_rate=1e-3")
PREDICTORS: Arms = {
    "published": ("sdpo", (*LONG, "objective.sdpo.dense.anchor=any", COSINE[1])),
    "interior": ("sdpo", (*LONG, *COSINE)),
    "interior-current": ("sdpo", (*LONG, *COSINE, CURRENT)),
}
"""Of the published predictor and the one before the default; the default and no dense rewards are in `SIXTEEN`."""
