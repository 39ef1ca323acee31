"""The tables of docs/evidence.md that are made of runs: `python docs/evidence/tables.py [TABLE ...]`.

`STUDY=FOLDER python docs/evidence/tables.py` makes them of a study of your own, as far as it has come. A test asserts
that the page has those of docs/evidence/results.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import fmean

from arms import MEASURES
from reading import (
    BY_STEPS,
    DIGITS,
    FOLDER,
    HOLDING,
    ONE_QUERY,
    STEPS,
    alone,
    base_row,
    cell,
    emphasised,
    head,
    held,
    line,
    number,
    read,
    spread,
)
from search import chosen, worded

from sdpo_cli.engine.comparing.comparison import is_told_apart

NAMES = {"style": "style", "jpeg": "JPEG", "colour": "colour"}


def settings() -> Iterator[str]:
    """What the search chose, in words."""
    yield from head("chosen settings", *NAMES.values())
    for method in (*ONE_QUERY, "sdpo-gain"):
        yield line(method, *(worded(method, chosen(reward, method)[0]) for reward in NAMES))


def unseen() -> Iterator[str]:
    """What the chosen settings had reached in the search, and what with the seeds of the evaluation."""
    yield from head("in the search → evaluated", *NAMES.values())
    for method in ONE_QUERY:
        cells = []
        for reward in NAMES:
            runs, digits = read(reward)[method], DIGITS[reward]
            after = fmean(value for steps in (1, 4) for value in held(runs, reward, steps, 512))
            cells.append(f"{number(chosen(reward, method)[1], digits)} → {number(after, digits)}")
        yield line(method, *cells)


def methods(reward: str) -> Iterator[str]:
    """All methods at equal pictures; what asks for more rewards apart, at equal queries too."""
    runs, digits = read(reward), DIGITS[reward]
    yield from head(f"`{MEASURES[reward]}`", *BY_STEPS)
    yield base_row(runs, reward)
    there = [arm for arm in ONE_QUERY if arm in runs]
    columns = [[held(runs[arm], reward, steps, 1024) for arm in there] for steps in STEPS]
    for row, arm in enumerate(there):
        yield line(arm, *emphasised(columns, row, digits))
    if "sdpo-gain" not in runs:
        return
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


def overall(arm: str, reward: str, file: str) -> list[float]:
    """Of each seed an arm's mean over numbers of steps."""
    runs = read(file)[arm]
    return [fmean(values) for values in zip(*(held(runs, reward, steps, 1024) for steps in STEPS), strict=True)]


def ahead() -> Iterator[str]:
    """By how much SDPO is ahead of each other method, in the mean over numbers of steps; bold where told apart."""
    yield from head("SDPO is ahead of", *NAMES.values())
    for arm in ONE_QUERY[1:]:
        cells = []
        for reward in NAMES:
            own, other = (overall(name, reward, reward) for name in ("sdpo", arm))
            difference = fmean(own) - fmean(other)
            text = f"{'-' if difference < 0 else '+'}{number(abs(difference), DIGITS[reward])}"
            cells.append(f"**{text}**" if is_told_apart(cell(own), cell(other)) else text)
        yield line(arm, *cells)


def earlier() -> Iterator[str]:
    """What this and the two earlier searches chose, by the mean over numbers of steps."""
    yield from head("first / second / this search", *NAMES.values())
    first = {"sdpo": {"style": "sdpo-2step", "jpeg": "sdpo", "colour": "sdpo-2step"}}
    for arm in ONE_QUERY:
        cells = []
        for reward in NAMES:
            entry = first.get(arm, {}).get(reward, arm)
            means = [
                fmean(overall(name, reward, file))
                for name, file in ((entry, f"first-{reward}"), (arm, f"second-{reward}"), (arm, reward))
            ]
            cells.append(" / ".join(number(mean, DIGITS[reward]) for mean in means))
        yield line(arm, *cells)


def rewards_alone() -> Iterator[str]:
    """Reward and alignment at the end, at 4 sampling steps."""
    yield from head("after 1,024 pictures", *(cell for name in NAMES.values() for cell in (name, "alignment")))
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
    names = {name: name for name in ONE_QUERY}
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


def alike() -> Iterator[str]:
    """Stepwise advantages and one for a whole trajectory: held, and the reward alone."""
    runs = read("alike")
    yield from head("", "1 step", "4 steps", "4 steps, after 256 / 512 pictures")
    for steps in (4, 8):
        for name, label in {"next": "stepwise (`next`)", "trajectory": "alike (`trajectory`)"}.items():
            some = runs[f"{name}-{steps}"]
            cells = [spread(held(some, "style", drawn, 512), 3) for drawn in (1, 4)]
            reached = [spread(alone(some, "emoji-style", 4, amount), 3) for amount in (256, 512)]
            yield line(f"{steps} steps, {label}", *cells, " / ".join(reached))


RATES = {
    "current-1.5e-3": "`current`, 1.5e-3", "current-6e-3": "`current`, 6e-3", "current-1e-2": "`current`, 1e-2",
    "published-3e-3": "all as published, 3e-3", "published-1e-2": "all as published, 1e-2",
    "next-1.5e-3": "`next`, 1.5e-3", "next-6e-3": "`next`, 6e-3", "next-1e-2": "`next`, 1e-2",
}  # fmt: skip


def rates() -> Iterator[str]:
    """The published credit and the published form at several rates; some of them on one reward alone."""
    yield from head("4 steps", "style, 1 step", "4 steps", "JPEG, 1 step", "4 steps", "colour, 1 step", "4 steps")
    found = {reward: read(f"rates-{reward}") for reward in MEASURES}
    base = [
        number(fmean(run.points[0].means[steps, measure] for run in next(iter(found[reward].values()))), DIGITS[reward])
        for reward, measure in MEASURES.items()
        for steps in (1, 4)
    ]
    yield line("base model", *base)
    for arm, name in RATES.items():
        cells = [
            spread(held(found[reward][arm], reward, steps, 256), DIGITS[reward]) if arm in found[reward] else ""
            for reward in MEASURES
            for steps in (1, 4)
        ]
        yield line(name, *cells)


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
    "published predictor (interior anchor: the same runs)": ("predictors", "published"),
    "middle anchor, along the arc": ("steps-16", "dense-1e-3"),
    "no dense reward (`dense.mode: final`)": ("steps-16", "final-1e-3"),
    "interior anchor, `credit: current`": ("predictors", "interior-current"),
}


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
    yield base_row(read("predictors"), "style", "")
    for name, (file, arm) in PREDICTORS.items():
        runs = read(file)[arm]
        cells = [spread(alone(runs, "emoji-style", steps, 256), 3) for steps in STEPS]
        yield line(name, f"{runs[0].points[-1].queries:,}", *cells)


TABLES: Mapping[str, Callable[[], Iterator[str]]] = {
    **{f"methods, {reward}": partial(methods, reward) for reward in MEASURES},
    "ahead": ahead,
    "settings": settings,
    "unseen": unseen,
    "earlier": earlier,
    "within 512": partial(within, 512),
    "within 256": partial(within, 256),
    "small": small,
    "rewards alone": rewards_alone,
    "credit": credit,
    "alike": alike,
    "rates": rates,
    "branched": parts,
    "16 steps": sixteen,
    "50 steps": fifty,
    "changes": changes,
    "predictors": predictors,
}


def main() -> None:
    """All of them, or those named; of a study that is not over those that there are runs for."""
    unknown = [name for name in sys.argv[1:] if name not in TABLES]
    if unknown or not FOLDER.is_dir():
        fault = f"no table {unknown[0]}; there are: {'; '.join(TABLES)}" if unknown else f"no folder {FOLDER}"
        raise SystemExit(fault)
    for name in sys.argv[1:] or TABLES:
        try:
            print(f"{name}\n", *TABLES[name](), "", sep="\n")
        except FileNotFoundError as error:
            print(f"{name}: {error.filename} is not there\n")
        except KeyError as error:
            print(f"{name}: there are no runs of {error}\n")


if __name__ == "__main__":
    main()
