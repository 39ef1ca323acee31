"""The study behind docs/evidence.md: `python docs/evidence/study.py --workers 16 --out study`.

First every method's learning rate is searched for on every reward, with a seed of its own; then each runs with the best
one and three seeds; then SDPO's parts are changed one at a time. Every part is an `sdpo compare`, given to `workers`
processes that share its runs. Given again it goes on where it was. `--small` is a small one for a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

REWARDS = {
    "style": "{emoji-style: {style: 3d}}",
    "jpeg": "{jpeg-incompressibility: {}}",
    "colour": "{colorfulness: {}}",
}
MEASURES = {"style": "emoji-style", "jpeg": "jpeg-incompressibility", "colour": "colorfulness"}
RATES = ("3e-4", "1e-3", "3e-3")
SDPO = ("objective.sdpo.clip=1e-3", "objective.sdpo.gamma=0.9")
HALVES = "train.batch=16"
"""Two optimiser steps an epoch, as DDPO and GRPO publish."""

METHODS = {
    "sdpo": ("sdpo", SDPO),
    "sdpo-2step": ("sdpo", (*SDPO, "rollout.steps=2")),
    "ddpo": ("ddpo", ("objective.ddpo.clip=1e-3", HALVES)),
    "prdp": ("prdp", ("objective.prdp.clip=1e-3", HALVES)),
    "d3po": ("d3po", ()),
    "d3po-sharp": ("d3po", ("objective.d3po.beta=100",)),
    "grpo": ("grpo", ("objective.grpo.clip=1e-3", "train.batch=4")),
}
CHANGES = {
    "sdpo": (),
    "credit-current": ("objective.sdpo.credit=current",),
    "no-dense": ("objective.sdpo.dense.mode=final",),
    "exact": ("objective.sdpo.dense.mode=exact",),
    "arc": ("objective.sdpo.dense.predictor=arc", "objective.sdpo.dense.anchor=middle"),
    "no-shuffle": ("objective.sdpo.updates=accumulated",),
    "gamma-0": ("objective.sdpo.gamma=0",),
    "no-decay": ("objective.sdpo.lambda=1",),
    "no-clip": ("objective.sdpo.clip=0",),
    "steps-3": ("rollout.steps=3",),
    "steps-8": ("rollout.steps=8",),
    "steps-8-current": ("rollout.steps=8", "objective.sdpo.credit=current"),
    "renoise": ("rollout.transition=renoise",),
    "cps": ("rollout.transition=cps", "rollout.eta=0.7"),
}


def compare(out: Path, reward: str, arms: dict[str, tuple[str, Sequence[str]]], workers: int, *more: str) -> None:
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
    command += [f"--objectives={names}", *told, *more]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1"} if workers > 1 else dict(os.environ)
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=quiet) for _ in range(workers)]
    for one in running:
        one.wait()
    subprocess.run(command, check=True, env=quiet)


def searched(out: Path, reward: str, methods: Sequence[str], workers: int, budget: int, seed: int = 1000) -> None:
    """Every method at every learning rate, one seed that is used for nothing else."""
    arms = {
        f"{name}-{rate}": (METHODS[name][0], (*METHODS[name][1], f"train.learning_rate={rate}"))
        for name in methods
        for rate in RATES
    }
    compare(out, reward, arms, workers, f"--set=seed={seed}", "--seeds=1", f"--budget=images={budget}", "--points=1")


def best_rates(out: Path, reward: str, methods: Sequence[str]) -> dict[str, str]:
    """The learning rate of each method whose trained reward is highest, the mean over step counts."""
    table = json.loads((out / "comparison.json").read_text())["table"]
    found = {
        arm: fmean(
            row["mean"]
            for row in table
            if row["arm"] == arm and row["axis"] == "images" and row["measure"] == MEASURES[reward]
        )
        for arm in {row["arm"] for row in table}
    }
    return {name: max(RATES, key=lambda rate: found.get(f"{name}-{rate}", float("-inf"))) for name in methods}


def main() -> None:
    """All of it, the most telling first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("study"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    told = parser.parse_args()
    told.out.mkdir(parents=True, exist_ok=True)
    methods = ["sdpo", "ddpo", "prdp", "d3po", "grpo"] if told.small else list(METHODS)
    rewards, search, budget, seeds = (["style"], 0, 256, 1) if told.small else (list(REWARDS), 512, 1024, 3)
    for place, reward in enumerate(rewards):
        rates = dict.fromkeys(methods, "1e-3")
        if search:
            searched(told.out / f"rates-{reward}", reward, methods, told.workers, search)
            rates = best_rates(told.out / f"rates-{reward}", reward, methods)
        arms = {name: (METHODS[name][0], (*METHODS[name][1], f"train.learning_rate={rates[name]}")) for name in methods}
        (told.out / f"rates-{reward}.json").write_text(json.dumps(rates, indent=1))
        compare(told.out / reward, reward, arms, told.workers, f"--seeds={seeds}", f"--budget=images={budget}")
        if place == 0 and not told.small:
            changes = {name: ("sdpo", (*SDPO, "train.learning_rate=1e-3", *own)) for name, own in CHANGES.items()}
            compare(told.out / "parts", "style", changes, told.workers, "--seeds=3", f"--budget=images={budget}")


if __name__ == "__main__":
    main()
