"""The study behind docs/evidence.md: `python docs/evidence/study.py --workers 32 --gpus 2 --out study`.

On every reward each method's settings are searched for, as many for each, with seeds used for nothing else: all with
one, the better ones with three; then each runs with its best and three other seeds. Beside that SDPO's parts are
changed one at a time, and rollouts of 16 and 50 steps are compared. Every part is an `sdpo compare`, given to processes
that share its runs. Given again it goes on where it was. `--small` is a small one for a CPU.
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


GAIN = ("objective.sdpo.credit=gain", "objective.sdpo.dense.mode=exact")


@dataclass(frozen=True)
class Method:
    """An objective with what is always said of it, and what is searched in: each form with each learning rate.

    `long_rates` are those tried in 16 steps, lower where each action has an optimiser step of its own.
    """

    objective: str
    own: tuple[str, ...]
    forms: Sequence[tuple[str, ...]]
    rates: tuple[str, ...] = ("3e-3", "6e-3", "1e-2")
    long_rates: tuple[str, ...] = ("3e-3", "6e-3", "1e-2")

    def settings(self) -> list[tuple[str, ...]]:
        """All combinations, as overrides."""
        return [(*form, f"train.learning_rate={rate}") for form, rate in product(self.forms, self.rates)]


def forms(field: str, values: Sequence[str], steps: Sequence[str] = ("2", "4")) -> list[tuple[str, ...]]:
    """Numbers of steps, each with each value of one field."""
    return [(f"rollout.steps={number}", f"{field}={value}") for number, value in product(steps, values)]


CLIPS = ("1e-3", "5e-3")
SHUFFLED_RATES = ("1e-3", "2e-3", "3e-3")
METHODS = {
    "sdpo": Method(
        "sdpo",
        (*SDPO, FINAL),
        [("rollout.steps=2",), ("rollout.steps=3",), ("rollout.steps=3", BRANCHED), ("rollout.steps=4", BRANCHED)],
        long_rates=SHUFFLED_RATES,
    ),
    "sdpo-gain": Method(
        "sdpo", (*SDPO, *GAIN), forms("objective.sdpo.gamma", ("0", "0.9"), ("4", "8")), ("1.5e-3", "3e-3", "6e-3")
    ),
    "ddpo": Method("ddpo", (HALVES,), forms("objective.ddpo.clip", CLIPS)),
    "prdp": Method("prdp", (HALVES,), forms("objective.prdp.clip", CLIPS)),
    "d3po": Method("d3po", (), forms("objective.d3po.antithetic", ("false", "true")), long_rates=SHUFFLED_RATES),
    "grpo": Method("grpo", ("train.batch=4",), forms("objective.grpo.clip", CLIPS)),
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


CREDITS = {"current": (CURRENT,), "next": (), "gain": GAIN[:1], "gain-gamma-0": (*GAIN[:1], "objective.sdpo.gamma=0")}


def credit_arms() -> Arms:
    """Whose reward an action earns, all of them asked for, in 4 and in 8 steps."""
    return {
        f"{name}-{steps}": ("sdpo", (*DENSE, "objective.sdpo.dense.mode=exact", f"rollout.steps={steps}", *own))
        for (name, own), steps in product(CREDITS.items(), (4, 8))
    }


def long_arms(steps: int, kinds: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]) -> Arms:
    """SDPO in rollouts in which most rewards are predicted: by name what is said of it, and the rates."""
    return {
        f"{name}-{rate}": ("sdpo", (*SDPO, *own, f"rollout.steps={steps}", f"train.learning_rate={rate}"))
        for name, (own, rates) in kinds.items()
        for rate in rates
    }


FIFTY = {
    "branched": ((FINAL, BRANCHED), ("3e-3", "6e-3")),
    "final": ((FINAL,), ("1e-3", "2e-3")),
    "dense": ((), ("1e-3", "2e-3")),
}
SIXTEEN = {
    "branched": ((FINAL, BRANCHED), ("6e-3", "1e-2", "2e-2")),
    "final": ((FINAL,), SHUFFLED_RATES),
    "dense": ((), SHUFFLED_RATES),
    "gain": ((GAIN[0],), SHUFFLED_RATES),
    "gain-exact": (GAIN, SHUFFLED_RATES),
}


def baselines_in(steps: int) -> Arms:
    """The other methods, each with three rates."""
    return {
        f"{name}-{rate}": (
            method.objective,
            (*method.own, *CLIP[name], f"rollout.steps={steps}", f"train.learning_rate={rate}"),
        )
        for name, method in METHODS.items()
        if name in CLIP
        for rate in method.long_rates
    }


CLIP = {
    "ddpo": ("objective.ddpo.clip=5e-3",),
    "prdp": ("objective.prdp.clip=5e-3",),
    "d3po": ("objective.d3po.antithetic=true",),
    "grpo": ("objective.grpo.clip=5e-3",),
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


ROUNDS = ((1, None), (3, 5))
"""Of the search: with how many seeds, and of each method how many settings, the best ones of the round before."""


def best_settings(out: Path, reward: str, machine: Machine) -> Arms:
    """Every method with the settings by which the reward came highest before alignment fell by 0.1.

    The mean over 1 and 4 steps and over seeds, in runs of 512 pictures. The reward alone would choose rates at which
    nothing but noise is drawn. Of few settings with more seeds each: successive halving (Jamieson and Talwalkar,
    arXiv 1502.07943).
    """
    left = {
        name: {f"{name}.{number}": (*method.own, *settings) for number, settings in enumerate(method.settings())}
        for name, method in METHODS.items()
    }
    record: dict[str, dict[str, list[float]]] = {name: {} for name in METHODS}
    for seeds, best in ROUNDS:
        if best:
            found = held_at(out, reward)
            left = {
                name: dict(sorted(arms.items(), key=lambda arm: -found[arm[0]])[:best]) for name, arms in left.items()
            }
        arms = {arm: (METHODS[name].objective, own) for name, some in left.items() for arm, own in some.items()}
        compare(out, reward, arms, machine, "--set=seed=1000", f"--seeds={seeds}", "--budget=images=512", "--steps=1,4")
        for name, some in left.items():
            for arm, own in some.items():
                record[name].setdefault(" ".join(own), []).append(round(held_at(out, reward)[arm], 4))
    (out.parent / f"search-{reward}.json").write_text(json.dumps(record, indent=1) + "\n")
    found = held_at(out, reward)
    return {name: (METHODS[name].objective, some[max(some, key=lambda arm: found[arm])]) for name, some in left.items()}


def held_at(out: Path, reward: str) -> dict[str, float]:
    """Of each arm compared in `out`, the measure searched by."""
    rows = json.loads((out / "comparison.json").read_text())["held"]
    held = [row for row in rows if row["axis"] == "images" and row["measure"] == MEASURES[reward]]
    return {
        arm: fmean(row["mean"] for row in held if row["arm"] == arm) for arm in dict.fromkeys(r["arm"] for r in held)
    }


def methods_of(out: Path, reward: str, machine: Machine) -> None:
    """All methods, each with its best settings."""
    best = best_settings(out / f"search-{reward}", reward, machine)
    compare(out / reward, reward, best, machine, "--seeds=3", "--budget=images=1024", "--points=8")


def parts(out: Path, machine: Machine) -> None:
    """SDPO's parts, one changed at a time, and long rollouts."""
    few = ("--seeds=3", "--budget=images=256", "--points=2")
    compare(out / "steps-16", "style", {**long_arms(16, SIXTEEN), **baselines_in(16)}, machine, *few)
    for reward in REWARDS:
        compare(out / f"credit-{reward}", reward, credit_arms(), machine, "--seeds=3", "--budget=images=512")
    for reward in REWARDS:
        compare(out / f"parts-{reward}", reward, PARTS, machine, "--seeds=3", "--budget=images=512")
    changes = {name: changed(own) for name, own in CHANGES.items()}
    compare(out / "changes", "style", changes, machine, "--seeds=3", "--budget=images=512")
    predictors = {
        name: ("sdpo", (*DENSE, "rollout.steps=16", "train.learning_rate=1e-3", *own))
        for name, own in PREDICTORS.items()
    }
    compare(out / "predictors", "style", predictors, machine, *few)
    compare(out / "steps-50", "style", long_arms(50, FIFTY), machine, *few)


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
    each = machine.share(len(REWARDS))
    with ThreadPoolExecutor(len(REWARDS) + 1 if told.workers > 1 else 1) as pool:
        made = [pool.submit(methods_of, told.out, reward, each) for reward in REWARDS]
        made.append(pool.submit(parts, told.out, each))
        for one in made:
            one.result()


if __name__ == "__main__":
    main()
