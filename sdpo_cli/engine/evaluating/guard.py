"""The guard's decisions: pure functions of a recipe's rules and the evaluations so far.

Nothing is remembered elsewhere: whoever has the same evaluations, a resumed run too, decides the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from sdpo_cli.recipe import GuardSection, KeepBestSection, StopRule

Action = Literal["go on", "stop", "go back"]

Table = Mapping[str, Mapping[int, float]]
"""Every measure's mean by step count."""


@dataclass(frozen=True)
class Evaluated:
    """What was measured after an epoch, of the base model and with the adapter."""

    epoch: int
    base: Table
    tuned: Table


@dataclass(frozen=True)
class Judgement:
    """What the guard makes of one evaluation.

    Attributes:
        epoch: after which it was made.
        values: what the rules look at, by label, of the adapter.
        broken: one line for each rule that is broken.
        streaks: of every rule, in how many evaluations in a row it has been broken.
        best: the epoch that is kept so far; None while every evaluation broke a rule, or nothing is to be kept.
        best_value: its measure.
        action: what follows.
        rollbacks: how often training has gone back, this time included.
    """

    epoch: int
    values: Mapping[str, float]
    broken: tuple[str, ...]
    streaks: tuple[int, ...]
    best: int | None
    best_value: float | None
    action: Action
    rollbacks: int

    def wants(self, epoch: int) -> bool:
        """Whether the checkpoint of `epoch` will be needed, whatever `train.checkpoint_every` says."""
        return epoch == self.best or (epoch == self.epoch and self.action == "stop")


def decide(guard: GuardSection, evaluations: Sequence[Evaluated]) -> tuple[Judgement, ...]:
    """A judgement of every evaluation, the oldest first, up to one that stops training.

    Kept is the epoch whose `keep_best` measure is best among the evaluations that break no rule, the earliest of
    equals. Where a rule has been broken `patience` times in a row, training goes back to that epoch as long as
    `rollback.times` allows, and counts anew; else it stops, as it does where there is nothing to go back to.
    """
    found: list[Judgement] = []
    for number in range(len(evaluations)):
        found.append(judge(guard, evaluations[: number + 1], found[-1] if found else None))
        if found[-1].action == "stop":
            break
    return tuple(found)


def judge(guard: GuardSection, seen: Sequence[Evaluated], before: Judgement | None) -> Judgement:
    """What follows from the last of the evaluations `seen`; `before` is the judgement of the one before it."""
    now, faults = seen[-1], [broken(rule, seen) for rule in guard.stop_if]
    counted = before.streaks if before and before.action != "go back" else (0,) * len(faults)
    streaks = tuple(count + 1 if fault else 0 for count, fault in zip(counted, faults, strict=True))
    best, best_value = (before.best, before.best_value) if before else (None, None)
    if guard.keep_best.measure is not None and not any(faults):
        value = measured(guard.keep_best, now.tuned)
        if best_value is None or better(guard.keep_best, value, best_value):
            best, best_value = now.epoch, value
    rollbacks = before.rollbacks if before else 0
    action: Action = "go on"
    if any(count >= rule.patience for count, rule in zip(streaks, guard.stop_if, strict=True)):
        action = "go back" if best is not None and rollbacks < guard.rollback.times else "stop"
    return Judgement(
        epoch=now.epoch,
        values={label(one): measured(one, now.tuned) for one in watched(guard)},
        broken=tuple(filter(None, faults)),
        streaks=streaks,
        best=best,
        best_value=best_value,
        action=action,
        rollbacks=rollbacks + (action == "go back"),
    )


def watched(guard: GuardSection) -> list[KeepBestSection | StopRule]:
    """Whatever names a measure."""
    return [*([guard.keep_best] if guard.keep_best.measure is not None else []), *guard.stop_if]


def measured(one: KeepBestSection | StopRule, table: Table) -> float:
    """The mean over the step counts that are looked at."""
    by_steps = table[str(one.measure)]
    return fmean(by_steps[steps] for steps in one.steps or by_steps)


def better(section: KeepBestSection, value: float, other: float) -> bool:
    """Whether `value` is nearer to the goal."""
    return value > other if section.goal == "highest" else value < other


def broken(rule: StopRule, seen: Sequence[Evaluated]) -> str:
    """What the last of the evaluations breaks of a rule, in words; nothing where it keeps it."""
    name, value, base = label(rule), measured(rule, seen[-1].tuned), measured(rule, seen[-1].base)
    if rule.below is not None:
        return f"{name} is {value:.4g}, below {rule.below:g}" if value < rule.below else ""
    if rule.above is not None:
        return f"{name} is {value:.4g}, above {rule.above:g}" if value > rule.above else ""
    whose, start = "the base model's", base
    if rule.since == "best":
        earlier = max((measured(rule, one.tuned) for one in seen[:-1]), default=base)
        whose, start = "its best", max(base, earlier)
    fell = rule.drop is not None and start - value > rule.drop
    return f"{name} fell from {whose} {start:.4g} to {value:.4g}, by more than {rule.drop:g}" if fell else ""


def label(one: KeepBestSection | StopRule) -> str:
    """`emoji-clip`, or `emoji-clip at 1 and 4 steps`."""
    if not one.steps:
        return str(one.measure)
    *first, last = map(str, one.steps)
    counts = f"{', '.join(first)} and {last}" if first else last
    return f"{one.measure} at {counts} step{'' if one.steps == (1,) else 's'}"


def in_words(guard: GuardSection, judgement: Judgement) -> str:
    """One line about a judgement: what was found, and what follows."""
    found = "; ".join(judgement.broken)
    keep, best = guard.keep_best, judgement.best
    if not found and keep.measure is None:
        return f"guard, epoch {judgement.epoch}: every rule is kept"
    if not found:
        value = f"{label(keep)} is {judgement.values[label(keep)]:.4g}"
        outcome = "the best so far" if best == judgement.epoch else f"epoch {best} stays the best"
        return f"guard, epoch {judgement.epoch}: {value}, {outcome}"
    follows = {
        "go on": "waiting for the next evaluation",
        "stop": "training stops",
        "go back": f"back to epoch {best}, at {lr_share(guard, judgement):g} of the learning rate",
    }
    return f"guard, epoch {judgement.epoch}: {found}; {follows[judgement.action]}"


def lr_share(guard: GuardSection, judgement: Judgement | None) -> float:
    """What is left of the recipe's learning rate after every going back."""
    return guard.rollback.lr_factor**judgement.rollbacks if judgement else 1.0


def conclusion(guard: GuardSection, judgements: Sequence[Judgement]) -> str:
    """Which epoch was kept, and why."""
    last = judgements[-1]
    if guard.keep_best.measure is None:
        return f"Kept: the last epoch, {last.epoch}; the guard was told to keep no other."
    if last.best_value is None:
        return f"Kept: the last epoch, {last.epoch}, for want of a better one: every evaluation broke a rule."
    among = " among the evaluations that broke no rule" if guard.stop_if else ""
    name = label(guard.keep_best)
    return f"Kept: epoch {last.best}, where {name}, {last.best_value:.4g}, was {guard.keep_best.goal}{among}."
