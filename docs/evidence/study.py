"""The study behind docs/evidence.md: `python docs/evidence/study.py --workers 16 --out study`.

First every method's learning rate is searched for on every reward, with a seed of its own; then each runs with the
best one and three seeds; then SDPO's parts are changed one at a time; then rollouts of 16 steps. Every part is an `sdpo
compare`, given to `workers` processes that share its runs. Given again it goes on where it was. `--small` is a small
one for a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

REWARDS = {
    "style": "{emoji-style: {style: 3d}}",
    "jpeg": "{jpeg-incompressibility: {}}",
    "colour": "{colorfulness: {}}",
}
MEASURES = {"style": "emoji-style", "jpeg": "jpeg-incompressibility", "colour": "colorfulness"}
RATES = ("1.5e-3", "3e-3", "6e-3", "1e-2")
COSINE = ("objective.sdpo.dense.anchor=interior", "objective.sdpo.dense.predictor=cosine")
SDPO = ("objective.sdpo.clip=5e-3", "objective.sdpo.gamma=0.9", "objective.sdpo.antithetic=true", *COSINE)
FINAL = "objective.sdpo.dense.mode=final"
CURRENT = "objective.sdpo.credit=current"
HALVES = "train.batch=16"
"""Two optimiser steps an epoch, as DDPO and GRPO publish."""

Arms = Mapping[str, tuple[str, Sequence[str]]]

METHODS: Arms = {
    "sdpo": ("sdpo", (*SDPO, FINAL)),
    "sdpo-dense": ("sdpo", SDPO),
    "sdpo-2step": ("sdpo", (*SDPO, "rollout.steps=2")),
    "sdpo-own-noise": (
        "sdpo",
        ("objective.sdpo.clip=1e-3", "objective.sdpo.gamma=0.9", "objective.sdpo.antithetic=false"),
    ),
    "ddpo": ("ddpo", ("objective.ddpo.clip=1e-3", HALVES)),
    "prdp": ("prdp", ("objective.prdp.clip=1e-3", HALVES)),
    "d3po": ("d3po", ()),
    "d3po-antithetic": ("d3po", ("objective.d3po.antithetic=true",)),
    "grpo": ("grpo", ("objective.grpo.clip=1e-3", "train.batch=4")),
}
CHECKED = (("d3po", "3e-3"), ("d3po-antithetic", "3e-3"), ("prdp", "3e-3"), ("sdpo-2step", "1e-2"))
SMALL = ("sdpo", "ddpo", "prdp", "d3po", "grpo")
CHANGES = {
    "sdpo-dense": (),
    "own-noise": ("objective.sdpo.antithetic=false",),
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
PREDICTORS = {
    "published": ("objective.sdpo.dense.anchor=any",),
    "interior": (),
    "middle-arc": ("objective.sdpo.dense.predictor=arc", "objective.sdpo.dense.anchor=middle"),
    "final": (FINAL,),
    "interior-current": (CURRENT,),
}
LONG = 16
"""Steps of rollouts in which most rewards are predicted."""


def compare(out: Path, reward: str, arms: Arms, workers: int, *more: str) -> None:
    """One `sdpo compare` by `workers` processes at once, and once more for the table of all runs."""
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
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"} if workers > 1 else dict(os.environ)
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=quiet) for _ in range(workers)]
    for one in running:
        one.wait()
    subprocess.run(command, check=True, env=quiet)


def with_rate(arm: tuple[str, Sequence[str]], rate: str) -> tuple[str, Sequence[str]]:
    """The arm at a learning rate."""
    return arm[0], (*arm[1], f"train.learning_rate={rate}")


def best_rates(out: Path, reward: str, workers: int) -> dict[str, str]:
    """The learning rate of each method at which the reward came highest before alignment fell by 0.1.

    The mean over step counts, of one run of 512 pictures each whose seed is used for nothing else. The reward alone
    would choose rates at which nothing but noise is drawn.
    """
    arms = {f"{name}-{rate}": with_rate(arm, rate) for name, arm in METHODS.items() for rate in RATES}
    compare(out, reward, arms, workers, "--set=seed=1000", "--seeds=1", "--budget=images=512")
    held = [
        row
        for row in json.loads((out / "comparison.json").read_text())["held"]
        if row["axis"] == "images" and row["measure"] == MEASURES[reward]
    ]
    means = {arm: fmean(row["mean"] for row in held if row["arm"] == arm) for arm in {row["arm"] for row in held}}
    return {name: max(RATES, key=lambda rate: means.get(f"{name}-{rate}", float("-inf"))) for name in METHODS}


def methods(out: Path, reward: str, workers: int) -> None:
    """All methods, each at its best rate."""
    rates = best_rates(out / f"rates-{reward}", reward, workers)
    (out / f"rates-{reward}.json").write_text(json.dumps(rates, indent=1) + "\n")
    arms = {name: with_rate(arm, rates[name]) for name, arm in METHODS.items()}
    compare(out / reward, reward, arms, workers, "--seeds=3", "--budget=images=1024", "--points=8")


def check(out: Path, workers: int) -> None:
    """JPEG size at other rates than the chosen ones."""
    arms = {f"{name}-{rate}": with_rate(METHODS[name], rate) for name, rate in CHECKED}
    compare(out / "jpeg-check", "jpeg", arms, workers, "--seeds=3", "--budget=images=1024", "--points=8")


def parts(out: Path, reward: str, workers: int) -> None:
    """SDPO with one part changed at a time."""
    changes = {name: with_rate(("sdpo", (*SDPO, *own)), "3e-3") for name, own in CHANGES.items()}
    compare(out / f"parts-{reward}", reward, changes, workers, "--seeds=3", "--budget=images=512")


def long_rollouts(out: Path, reward: str, workers: int) -> None:
    """Predictors of the dense reward, where most of it is predicted."""
    arms = {
        name: with_rate(("sdpo", (*SDPO, *own, f"rollout.steps={LONG}")), "1e-3") for name, own in PREDICTORS.items()
    }
    compare(out / f"steps-{LONG}-{reward}", reward, arms, workers, "--seeds=3", "--budget=images=256", "--points=2")


def main() -> None:
    """All of it, the most telling first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("study"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    if told.small:
        arms = {name: with_rate(METHODS[name], "3e-3") for name in SMALL}
        compare(told.out / "small", "style", arms, told.workers, "--seeds=1", "--budget=images=256")
        return
    for reward in REWARDS:
        methods(told.out, reward, told.workers)
    check(told.out, told.workers)
    parts(told.out, "style", told.workers)
    long_rollouts(told.out, "style", told.workers)


if __name__ == "__main__":
    main()
