"""The tables of docs/evidence.md that are made of runs, from docs/evidence/results: `python docs/evidence/tables.py`.

A test asserts that the page has them.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, stdev, variance

from arms import MEASURES

from sdpo_cli.engine.comparison import Curve, Holding, Point, highest_while_holding, step_word, value_at

RESULTS = Path(__file__).parent / "results"
HOLDING = Holding("emoji-clip", 0.1)
STEPS = (1, 2, 4, 8)
DIGITS = {"style": 3, "jpeg": 2, "colour": 0}
ONE_QUERY = ("sdpo", "ddpo", "prdp", "d3po", "grpo")

Runs = Mapping[str, Sequence[Curve]]
"""The runs of each arm, one for each seed."""


def read(name: str, folder: Path = RESULTS) -> Runs:
    """What `sdpo compare` wrote as comparison.json."""
    runs: dict[str, list[Curve]] = {}
    for run in json.loads((folder / f"{name}.json").read_text())["runs"]:
        points = [
            Point(
                one["images"], one["queries"], {(mean["steps"], mean["measure"]): mean["mean"] for mean in one["means"]}
            )
            for one in run["points"]
        ]
        runs.setdefault(run["arm"], []).append(Curve(run["arm"], run["seed"], tuple(points)))
    return runs


def held(runs: Sequence[Curve], reward: str, steps: int, amount: int, axis: str = "images") -> list[float]:
    """Of each run the highest reward within `amount` pictures or queries before alignment fell by 0.1."""
    key = (steps, MEASURES[reward])
    return [highest_while_holding(run, axis, amount, key, HOLDING) for run in runs]  # type: ignore[arg-type]


def alone(runs: Sequence[Curve], measure: str, steps: int, amount: int) -> list[float]:
    """Of each run a measure after so many pictures."""
    return [value_at(run, "images", amount, (steps, measure)) for run in runs]


def number(value: float, digits: int) -> str:
    """`.786` below 1, `2.46`, `119`."""
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if digits == 3 else text


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation over seeds; of one seed its value."""
    if len(values) == 1:
        return number(values[0], digits)
    return f"{number(fmean(values), digits)} ± {number(stdev(values), digits)}"


def emphasised(columns: Sequence[Sequence[Sequence[float]]], row: int, digits: int) -> list[str]:
    """A row's cells, bold where they are the highest mean or within two standard errors of the difference from it."""
    cells = []
    for column in columns:
        best = max(column, key=fmean)
        values, text = column[row], spread(column[row], digits)
        error = math.sqrt(variance(values) / len(values) + variance(best) / len(best))
        cells.append(f"**{text}**" if fmean(best) - fmean(values) <= 2 * error else text)
    return cells


def line(*cells: str) -> str:
    """A table's row."""
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def head(*cells: str) -> list[str]:
    """A table's first two rows."""
    return [line(*cells), "|" + "---|" * len(cells)]


BY_STEPS = tuple(map(step_word, STEPS))


def base_row(runs: Runs, reward: str, *before: str) -> str:
    """The base model."""
    first = next(iter(runs.values()))
    cells = [
        number(fmean(run.points[0].means[steps, MEASURES[reward]] for run in first), DIGITS[reward]) for steps in STEPS
    ]
    return line("base model", *before, *cells)


def methods(reward: str) -> Iterator[str]:
    """All methods at equal pictures; what asks for more rewards apart, at equal queries too."""
    runs, digits = read(reward), DIGITS[reward]
    yield from head(f"`{MEASURES[reward]}`", *BY_STEPS)
    yield base_row(runs, reward)
    columns = [[held(runs[arm], reward, steps, 1024) for arm in ONE_QUERY] for steps in STEPS]
    for row, arm in enumerate(ONE_QUERY):
        yield line(arm, *emphasised(columns, row, digits))
    gain = runs["sdpo-gain"]
    asked = f"{gain[0].points[-1].queries:,}"
    for name, axis in ((f"1,024 pictures, {asked} queries", "images"), ("1,024 queries", "queries")):
        yield line(f"*sdpo-gain*, {name}", *(spread(held(gain, reward, steps, 1024, axis), digits) for steps in STEPS))


def means(arm: str, amount: int, file: str = "{}") -> list[str]:
    """An arm's means over seeds at 1 / 2 / 4 / 8 steps, reward by reward."""
    return [
        " / ".join(
            number(fmean(held(read(file.format(reward))[arm], reward, steps, amount)), DIGITS[reward])
            for steps in STEPS
        )
        for reward in MEASURES
    ]


def within(amount: int) -> Iterator[str]:
    """The means when fewer pictures had been drawn."""
    yield from head(f"within {amount} pictures", "style, 1 / 2 / 4 / 8 steps", "JPEG", "colour")
    for arm in ONE_QUERY:
        yield line(arm, *means(arm, amount))
    yield line(f"*sdpo-gain*, {7 * amount:,} queries", *means("sdpo-gain", amount))


def overall(arm: str, reward: str, file: str) -> float:
    """An arm's mean over seeds and numbers of steps."""
    runs = read(file)[arm]
    return fmean(value for steps in STEPS for value in held(runs, reward, steps, 1024))


def earlier() -> Iterator[str]:
    """What this and the two earlier searches chose, by the mean over numbers of steps."""
    names = {"style": "style", "jpeg": "JPEG", "colour": "colour"}
    yield from head("first / second / this search", *names.values())
    first = {"sdpo": {"style": "sdpo-2step", "jpeg": "sdpo", "colour": "sdpo-2step"}}
    for arm in ONE_QUERY:
        cells = []
        for reward in names:
            chosen = first.get(arm, {}).get(reward, arm)
            means = [
                overall(name, reward, file)
                for name, file in ((chosen, f"first-{reward}"), (arm, f"second-{reward}"), (arm, reward))
            ]
            cells.append(" / ".join(number(mean, DIGITS[reward]) for mean in means))
        yield line(arm, *cells)


def rewards_alone() -> Iterator[str]:
    """Reward and alignment at the end, at 4 sampling steps."""
    names = {"style": "style", "jpeg": "JPEG", "colour": "colour"}
    yield from head("after 1,024 pictures", *(cell for name in names.values() for cell in (name, "alignment")))
    for arm in (*ONE_QUERY, "sdpo-gain"):
        cells = []
        for reward, measure in MEASURES.items():
            runs = read(reward)[arm]
            cells.append(spread(alone(runs, measure, 4, 1024), DIGITS[reward]))
            cells.append(f"{fmean(alone(runs, HOLDING.measure, 4, 1024)):.2f}".replace("0.", "."))
        yield line(arm, *cells)


def styled(names: Mapping[str, str], file: str, amount: int, queries: bool = True) -> Iterator[str]:
    """Arms of one comparison on style, by the row's name: queries, and the highest reward before alignment fell."""
    runs = read(file)
    for arm, name in names.items():
        asked = [f"{runs[arm][0].points[-1].queries:,}"] if queries else []
        yield line(name, *asked, *(spread(held(runs[arm], "style", steps, amount), 3) for steps in STEPS))


def small() -> Iterator[str]:
    """The small study on a CPU."""
    yield from head("within 256 pictures, CPU", *BY_STEPS)
    yield base_row(read("small"), "style")
    names = {"sdpo": "sdpo, 3 steps", "d3po": "d3po", "prdp": "prdp", "ddpo": "ddpo", "grpo": "grpo"}
    yield from styled(names, "small", 256, queries=False)


CREDITED = {"current": "`current`", "next": "`next`", "gain": "`gain`", "gain-gamma-0": "`gain`, γ 0"}


def credit() -> Iterator[str]:
    """What an action is credited with: held, and the reward alone on the way."""
    yield from head("", "queries", *BY_STEPS, "after 128 / 256 / 512 pictures")
    runs = read("credit-style")
    for steps in (4, 8):
        for name, label in CREDITED.items():
            (row,) = styled({f"{name}-{steps}": f"{steps} steps, {label}"}, "credit-style", 512)
            reached = [fmean(alone(runs[f"{name}-{steps}"], "emoji-style", 4, amount)) for amount in (128, 256, 512)]
            yield f"{row} {' / '.join(f'{value:.2f}'.replace('0.', '.') for value in reached)} |"


SIXTEEN = {
    "final-2e-3": "sdpo, one query a picture, 2e-3", "branched-1e-2": "sdpo, branched, 1e-2", "ddpo-6e-3": "ddpo, 6e-3",
    "prdp-6e-3": "prdp, 6e-3", "d3po-2e-3": "d3po, antithetic, 2e-3", "grpo-6e-3": "grpo, 6e-3",
    "dense-3e-3": "sdpo, dense rewards (three queries), 3e-3", "gain-2e-3": "the same, credit `gain`, 2e-3",
    "gain-exact-2e-3": "sdpo, every reward, credit `gain`, 2e-3",
}  # fmt: skip
FIFTY = {
    "branched-3e-3": "branched, 3e-3", "branched-6e-3": "branched, 6e-3", "final-1e-3": "one query a picture, 1e-3",
    "final-2e-3": "one query a picture, 2e-3", "dense-1e-3": "dense rewards, 1e-3", "dense-2e-3": "dense rewards, 2e-3",
}  # fmt: skip
PARTS = {
    "sdpo": "**branched**, 3 steps", "own-noise": "branched, independent noise", "unbranched": "not branched",
    "unbranched-own-noise": "not branched, independent noise",
    "every-reward": "branched, every later step's reward (`dense.mode: exact`)", "steps-4": "branched, 4 steps",
    "steps-8": "branched, 8 steps", "dense": "not branched, 4 steps, dense rewards, 3e-3",
    "dense-current": "the same with `credit: current`",
}  # fmt: skip
CHANGES = {
    "sdpo-dense": "nothing", "own-noise": "`antithetic: false`", "credit-current": "`credit: current`",
    "final": "no dense reward (`dense.mode: final`)", "no-shuffle": "no shuffle (`updates: accumulated`)",
    "gamma-0": "γ 0 instead of 0.9", "no-decay": "λ 1 instead of 0.99", "clip-1e-3": "clip 1e-3 instead of 5e-3",
    "no-clip": "no clip", "steps-2": "2-step rollouts", "steps-3": "3-step rollouts", "steps-8": "8-step rollouts",
    "steps-8-current": "8-step rollouts, `credit: current`", "renoise": "transition `renoise`",
    "renoise-current": "`renoise`, `credit: current`", "cps": "transition `cps`, η 0.7",
}  # fmt: skip
PREDICTORS = {
    "published": "published predictor (interior anchor: the same runs)", "middle-arc": "middle anchor, along the arc",
    "final": "no dense reward (`dense.mode: final`)", "interior-current": "interior anchor, `credit: current`",
}  # fmt: skip


def sixteen() -> Iterator[str]:
    """All methods in 16 steps."""
    yield from head("16 steps", "queries", *BY_STEPS)
    yield from styled(SIXTEEN, "steps-16", 256)


def fifty() -> Iterator[str]:
    """SDPO in 50 steps."""
    yield from head("50 steps, SDPO", "queries", *BY_STEPS)
    yield from styled(FIFTY, "steps-50", 256)


def parts() -> Iterator[str]:
    """Branched pairs, on all rewards at 1 and 4 sampling steps."""
    yield from head("", "style, 1 step", "4 steps", "JPEG, 1 step", "4 steps", "colour, 1 step", "4 steps")
    found = {reward: read(f"parts-{reward}") for reward in MEASURES}
    for arm, name in PARTS.items():
        cells = [
            spread(held(found[reward][arm], reward, steps, 512), DIGITS[reward])
            for reward in MEASURES
            for steps in (1, 4)
        ]
        yield line(name, *cells)


def changes() -> Iterator[str]:
    """One part changed at a time: the reward alone, and at 4 steps what held and the alignment."""
    yield from head("", "queries", *BY_STEPS, "held", "alignment")
    for arm, name in CHANGES.items():
        runs = read("changes")[arm]
        cells = [spread(alone(runs, "emoji-style", steps, 512), 3) for steps in STEPS]
        aligned = f"{fmean(alone(runs, HOLDING.measure, 4, 512)):.2f}".replace("0.", ".")
        yield line(name, f"{runs[0].points[-1].queries:,}", *cells, spread(held(runs, "style", 4, 512), 3), aligned)


def predictors() -> Iterator[str]:
    """Training in 16 steps with other dense rewards: the reward alone."""
    yield from head("", "queries", *BY_STEPS)
    found = read("predictors")
    yield base_row(found, "style", "")
    for arm, name in PREDICTORS.items():
        cells = [spread(alone(found[arm], "emoji-style", steps, 256), 3) for steps in STEPS]
        yield line(name, f"{found[arm][0].points[-1].queries:,}", *cells)


TABLES: Mapping[str, Callable[[], Iterator[str]]] = {
    **{f"methods, {reward}": partial(methods, reward) for reward in MEASURES},
    "earlier": earlier,
    "within 512": partial(within, 512),
    "within 256": partial(within, 256),
    "small": small,
    "rewards alone": rewards_alone,
    "credit": credit,
    "branched": parts,
    "16 steps": sixteen,
    "50 steps": fifty,
    "changes": changes,
    "predictors": predictors,
}


def main() -> None:
    """All of them, or those named."""
    for name in sys.argv[1:] or TABLES:
        print(f"{name}\n", *TABLES[name](), "", sep="\n")


if __name__ == "__main__":
    main()
