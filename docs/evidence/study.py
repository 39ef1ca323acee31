"""The study behind docs/evidence.md: `python docs/evidence/study.py --workers 32 --gpus 2 --out study`.

On every reward each method's settings are searched for, as many for each, with a seed used for nothing else; then each
runs with the best ones and three seeds; then SDPO's parts are changed one at a time; then rollouts of 16 and 50 steps.
Every part is an `sdpo compare`, given to processes that share its runs. Given again it goes on where it was. `--small`
is a small one for a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

REWARDS = {
    "style": "{emoji-style: {style: 3d}}",
    "jpeg": "{jpeg-incompressibility: {}}",
    "colour": "{colorfulness: {}}",
}
MEASURES = {"style": "emoji-style", "jpeg": "jpeg-incompressibility", "colour": "colorfulness"}
SDPO = ("objective.sdpo.clip=5e-3", "objective.sdpo.gamma=0.9", "objective.sdpo.antithetic=true")
FINAL = "objective.sdpo.dense.mode=final"
BRANCHED, UNBRANCHED = "objective.sdpo.branched=true", "objective.sdpo.branched=false"
OWN_NOISE = "objective.sdpo.antithetic=false"
HALVES = "train.batch=16"
"""Two optimiser steps an epoch, as DDPO and GRPO publish."""

Arms = Mapping[str, tuple[str, Sequence[str]]]
"""By name: the objective, and recipe overrides."""


@dataclass(frozen=True)
class Method:
    """An objective with what is always said of it, and the settings to search in, by field."""

    objective: str
    own: tuple[str, ...]
    search: Mapping[str, tuple[str, ...]]

    def settings(self) -> list[tuple[str, ...]]:
        """All combinations, as overrides."""
        return [
            tuple(f"{field}={value}" for field, value in zip(self.search, values, strict=True))
            for values in product(*self.search.values())
        ]


def searched(steps: Sequence[int], field: str, values: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Steps, learning rate, and one field more."""
    rates = ("3e-3", "6e-3", "1e-2", "2e-2")
    return {"rollout.steps": tuple(map(str, steps)), "train.learning_rate": rates, field: tuple(values)}


CLIPS = ("1e-3", "5e-3")
METHODS = {
    "sdpo": Method("sdpo", (*SDPO, FINAL, BRANCHED), searched((3, 4), "objective.sdpo.clip", CLIPS)),
    "sdpo-2step": Method("sdpo", (*SDPO, FINAL, UNBRANCHED), searched((2,), "objective.sdpo.clip", CLIPS)),
    "ddpo": Method("ddpo", (HALVES,), searched((2, 4), "objective.ddpo.clip", CLIPS)),
    "prdp": Method("prdp", (HALVES,), searched((2, 4), "objective.prdp.clip", CLIPS)),
    "d3po": Method("d3po", (), searched((2, 4), "objective.d3po.antithetic", ("false", "true"))),
    "grpo": Method("grpo", ("train.batch=4",), searched((2, 4), "objective.grpo.clip", CLIPS)),
}
THREE = (*SDPO, FINAL, "rollout.steps=3", "train.learning_rate=6e-3")
SMALL: Arms = {
    "sdpo": ("sdpo", (*THREE, UNBRANCHED)),
    "ddpo": ("ddpo", (HALVES, "objective.ddpo.clip=1e-3", "train.learning_rate=1e-2")),
    "prdp": ("prdp", (HALVES, "rollout.steps=2", "objective.prdp.clip=5e-3", "train.learning_rate=3e-3")),
    "d3po": ("d3po", ("rollout.steps=2", "train.learning_rate=2e-2")),
    "grpo": ("grpo", ("train.batch=4", "objective.grpo.clip=5e-3", "train.learning_rate=6e-3")),
}
COSINE = ("objective.sdpo.dense.anchor=interior", "objective.sdpo.dense.predictor=cosine")
CURRENT = "objective.sdpo.credit=current"
DENSE = (*SDPO, UNBRANCHED, "rollout.steps=4", "train.learning_rate=3e-3")
PARTS: Arms = {
    "sdpo": ("sdpo", (*THREE, BRANCHED)),
    "own-noise": ("sdpo", (*THREE, BRANCHED, OWN_NOISE)),
    "unbranched": ("sdpo", (*THREE, UNBRANCHED)),
    "unbranched-own-noise": ("sdpo", (*THREE, UNBRANCHED, OWN_NOISE)),
    "every-reward": ("sdpo", (*THREE, BRANCHED, "objective.sdpo.dense.mode=exact")),
    "steps-4": ("sdpo", (*THREE, BRANCHED, "rollout.steps=4")),
    "steps-8": ("sdpo", (*THREE, BRANCHED, "rollout.steps=8")),
    "dense": ("sdpo", DENSE),
    "dense-current": ("sdpo", (*DENSE, CURRENT)),
}
CHANGES = {
    "sdpo-dense": (),
    "own-noise": (OWN_NOISE,),
    "credit-current": (CURRENT,),
    "final": (FINAL,),
    "no-shuffle": ("objective.sdpo.updates=accumulated",),
    "gamma-0": ("objective.sdpo.gamma=0",),
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
"""From dense rewards in 4 steps, one part changed at a time."""
PREDICTORS = {
    "published": ("objective.sdpo.dense.anchor=any", COSINE[1]),
    "interior": COSINE,
    "interior-current": (*COSINE, CURRENT),
}


def long_arms(steps: int) -> Arms:
    """Rollouts in which most rewards are predicted, branched or not, at two rates each."""
    kinds = {
        "branched": ((FINAL, BRANCHED), ("3e-3", "6e-3")),
        "final": ((FINAL, UNBRANCHED), ("1e-3", "2e-3")),
        "dense": ((UNBRANCHED,), ("1e-3", "2e-3")),
    }
    return {
        f"{name}-{rate}": ("sdpo", (*SDPO, *own, f"rollout.steps={steps}", f"train.learning_rate={rate}"))
        for name, (own, rates) in kinds.items()
        for rate in rates
    }


def changed(own: Sequence[str]) -> tuple[str, Sequence[str]]:
    """SDPO with dense rewards in 4 steps but for `own`."""
    return "sdpo", (*DENSE, *COSINE, *own)


@dataclass(frozen=True)
class Machine:
    """How many processes share a comparison, and on how many GPUs."""

    workers: int
    gpus: int

    def environment(self, worker: int) -> dict[str, str]:
        """Of a process: one thread of its own, and its GPU."""
        quiet = {**os.environ, "OMP_NUM_THREADS": "1"} if self.workers > 1 else dict(os.environ)
        return {**quiet, "CUDA_VISIBLE_DEVICES": str(worker % self.gpus)} if self.gpus > 1 else quiet

    def share(self, parts: int) -> "Machine":
        """What each of several comparisons at once may use."""
        return Machine(max(1, self.workers // parts), self.gpus)


def compare(out: Path, reward: str, arms: Arms, machine: Machine, *more: str) -> None:
    """One `sdpo compare` by several processes at once, and once more for the table of all runs."""
    shared = [
        f"reward={REWARDS[reward]}", "eval.rewards={emoji-clip: {}}", "model.lora.rank=8", "rollout.steps=4",
        "rollout.pairs=32", "objective=sdpo",
    ]  # fmt: skip
    told = [f"--set={one}" for one in shared]
    told += [
        f"--set={name}:{one}" for name, (objective, own) in arms.items() for one in (f"objective={objective}", *own)
    ]
    names = ",".join(f"{name}={objective}" for name, (objective, _) in arms.items())
    command = [sys.executable, "-m", "sdpo_cli", "compare", "quickstart", "--quiet", f"--out={out}"]
    command += [f"--objectives={names}", "--holding=emoji-clip=0.1", *told, *more]
    running = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, env=machine.environment(worker))
        for worker in range(machine.workers)
    ]
    for one in running:
        one.wait()
    subprocess.run(command, check=True, env=machine.environment(0))


def best_settings(out: Path, reward: str, machine: Machine) -> Arms:
    """Every method with the settings by which the reward came highest before alignment fell by 0.1.

    The mean over 1 and 4 steps, of one run of 512 pictures each. The reward alone would choose rates at which nothing
    but noise is drawn.
    """
    arms = {
        f"{name}.{number}": (method.objective, (*method.own, *settings))
        for name, method in METHODS.items()
        for number, settings in enumerate(method.settings())
    }
    compare(out, reward, arms, machine, "--set=seed=1000", "--seeds=1", "--budget=images=512", "--steps=1,4")
    held = [
        row
        for row in json.loads((out / "comparison.json").read_text())["held"]
        if row["axis"] == "images" and row["measure"] == MEASURES[reward]
    ]
    found = {
        arm: fmean(row["mean"] for row in held if row["arm"] == arm) for arm in dict.fromkeys(r["arm"] for r in held)
    }
    best = {
        name: max((arm for arm in found if arm.startswith(f"{name}.")), key=lambda arm: found[arm]) for name in METHODS
    }
    record = {
        name: {" ".join(arms[arm][1]): round(found[arm], 4) for arm in found if arm.startswith(f"{name}.")}
        for name in METHODS
    }
    (out.parent / f"search-{reward}.json").write_text(json.dumps(record, indent=1) + "\n")
    return {name: arms[arm] for name, arm in best.items()}


def study_of(out: Path, reward: str, machine: Machine) -> None:
    """All methods, each with its best settings, and the parts of SDPO."""
    best = best_settings(out / f"search-{reward}", reward, machine)
    compare(out / reward, reward, best, machine, "--seeds=3", "--budget=images=1024", "--points=8")
    compare(out / f"parts-{reward}", reward, PARTS, machine, "--seeds=3", "--budget=images=512")


def main() -> None:
    """All of it, the rewards side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("study"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    machine = Machine(told.workers, told.gpus)
    if told.small:
        compare(told.out / "small", "style", SMALL, machine, "--seeds=1", "--budget=images=256")
        return
    beside = len(REWARDS) if told.workers > 1 else 1
    with ThreadPoolExecutor(beside) as pool:
        list(pool.map(lambda reward: study_of(told.out, reward, machine.share(beside)), REWARDS))
    changes = {name: changed(own) for name, own in CHANGES.items()}
    compare(told.out / "changes", "style", changes, machine, "--seeds=3", "--budget=images=512")
    predictors = {
        name: ("sdpo", (*DENSE, "rollout.steps=16", "train.learning_rate=1e-3", *own))
        for name, own in PREDICTORS.items()
    }
    compare(told.out / "predictors", "style", predictors, machine, "--seeds=3", "--budget=images=256", "--points=2")
    for steps in (16, 50):
        arms = long_arms(steps)
        compare(told.out / f"steps-{steps}", "style", arms, machine, "--seeds=3", "--budget=images=256", "--points=2")


if __name__ == "__main__":
    main()
