"""The study behind docs/evidence.md: `python docs/evidence/study.py --workers 48 --gpus 2 --out study`.

On every reward each method's settings are searched for, as many for each, with seeds used for nothing else: all with
one, the better ones with three; then each runs with its best and six other seeds. Beside that SDPO's parts are
changed one at a time, and rollouts of 16 and 50 steps are compared. Every part is an `sdpo compare`, given to processes
that share its runs. Given again it goes on where it was. `--small` is a small one for a CPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from arms import (
    ALIKE,
    CHANGES,
    CREDIT,
    FIFTY,
    GAIN,
    MEASURES,
    METHODS,
    PARTS,
    PREDICTORS,
    RATES,
    REWARDS,
    SIXTEEN,
    Arms,
)
from search import chosen


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
    if {one.wait() for one in running} & {130, -signal.SIGINT}:
        raise SystemExit(130)  # stopped: nothing more is begun
    subprocess.run(command, check=True, env=machine.environment(0))


ROUNDS = ((1, None), (3, 6))
"""Of the search: with how many seeds, and of each method how many settings, the best ones of the round before."""
FINAL_RUNS = ("--set=seed=3", "--seeds=6", "--budget=images=1024", "--points=8")
"""With seeds that nothing was chosen with: 0 to 2 had been looked at before."""
SEARCHED = {**METHODS, "sdpo-gain": GAIN}


def best_settings(out: Path, reward: str, machine: Machine) -> Arms:
    """Every method with the settings by which the reward came highest before alignment fell by 0.1.

    The mean over 1 and 4 steps and over seeds, in runs of 512 pictures. The reward alone would choose rates at which
    nothing but noise is drawn. Of few settings with more seeds each: successive halving (Jamieson and Talwalkar,
    arXiv 1502.07943).
    """
    left = {
        name: {f"{name}.{number}": (*method.own, *settings) for number, settings in enumerate(method.settings())}
        for name, method in SEARCHED.items()
    }
    record: dict[str, dict[str, list[float]]] = {name: {} for name in SEARCHED}
    found: dict[str, float] = {}
    for seeds, best in ROUNDS:
        if best:
            left = {
                name: dict(sorted(arms.items(), key=lambda arm: -found[arm[0]])[:best]) for name, arms in left.items()
            }
        arms = {arm: (SEARCHED[name].objective, own) for name, some in left.items() for arm, own in some.items()}
        compare(out, reward, arms, machine, "--set=seed=1000", f"--seeds={seeds}", "--budget=images=512", "--steps=1,4")
        found = held_at(out, reward)
        for name, some in left.items():
            for arm, own in some.items():
                record[name].setdefault(" ".join(own), []).append(round(found[arm], 4))
    (out.parent / f"search-{reward}.json").write_text(json.dumps(record, indent=1) + "\n")
    return {
        name: (SEARCHED[name].objective, some[max(some, key=lambda arm: found[arm])]) for name, some in left.items()
    }


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
    compare(out / reward, reward, best, machine, *FINAL_RUNS)


def parts(out: Path, machine: Machine) -> None:
    """SDPO's parts, one changed at a time, and long rollouts."""
    few = ("--seeds=3", "--budget=images=256", "--points=2")
    compare(out / "steps-16", "style", SIXTEEN, machine, *few)
    compare(out / "credit-style", "style", CREDIT, machine, "--seeds=3", "--budget=images=512")
    compare(out / "alike", "style", ALIKE, machine, "--seeds=3", "--budget=images=512", "--points=4", "--steps=1,4")
    for reward in REWARDS:
        compare(out / f"rates-{reward}", reward, RATES[reward], machine, *few, "--steps=1,4")
    for reward in REWARDS:
        compare(out / f"parts-{reward}", reward, PARTS, machine, "--seeds=3", "--budget=images=512")
    compare(out / "changes", "style", CHANGES, machine, "--seeds=3", "--budget=images=512")
    compare(out / "predictors", "style", PREDICTORS, machine, *few)
    compare(out / "steps-50", "style", FIFTY, machine, *few)


def chosen_arms(reward: str, named: Iterable[str]) -> Arms:
    """Methods with the settings that the stored search chose."""
    return {name: (SEARCHED[name].objective, tuple(chosen(reward, name)[0].split())) for name in named}


def main() -> None:
    """All of it, the rewards side by side, or what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("study"))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--reward", choices=REWARDS, help="with --methods: no search, these alone")
    parser.add_argument("--methods", metavar="NAME,NAME")
    told = parser.parse_args()
    if bool(told.reward) != bool(told.methods):
        parser.error("--reward and --methods go together")
    unknown = set((told.methods or "sdpo").split(",")) - set(SEARCHED)
    if unknown:
        parser.error(f"no method {min(unknown)}; there are {', '.join(SEARCHED)}")
    told.out.mkdir(parents=True, exist_ok=True)
    machine = Machine(told.workers, told.gpus)
    if told.small:
        small = ("--seeds=1", "--budget=images=256", "--points=2")
        compare(told.out / "small", "style", chosen_arms("style", METHODS), machine, *small)
        return
    if told.reward and told.methods:
        again = chosen_arms(told.reward, told.methods.split(","))
        compare(told.out / told.reward, told.reward, again, machine, *FINAL_RUNS)
        return
    each = machine.share(len(REWARDS) + 1)
    with ThreadPoolExecutor(len(REWARDS) + 1 if told.workers > 1 else 1) as pool:
        made = [pool.submit(methods_of, told.out, reward, each) for reward in REWARDS]
        made.append(pool.submit(parts, told.out, each))
        for one in made:
            one.result()


if __name__ == "__main__":
    main()
