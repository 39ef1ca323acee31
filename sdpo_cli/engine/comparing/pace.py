"""How long the runs of a comparison that are still to come will take, by those that were made before them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """A run, or what is left of one: the arm it belongs to, and its epochs."""

    arm: str
    epochs: int


@dataclass(frozen=True)
class Made(Work):
    """What was made of a run, and the seconds it took, its evaluations among them."""

    seconds: float


def foreseen(made: Sequence[Made], to_come: Sequence[Work]) -> float | None:
    """Seconds that the runs to come will take, one after the other; None while no epoch was made.

    An epoch as long as one of the same arm has taken, where none was made as one of all arms.
    """
    made = [one for one in made if one.epochs]
    if not made:
        return None
    each = {one.arm: mean([other for other in made if other.arm == one.arm] or made) for one in to_come}
    return sum((one.epochs * each[one.arm] for one in to_come), start=0.0)


def mean(made: Sequence[Made]) -> float:
    """Seconds an epoch."""
    return sum(one.seconds for one in made) / sum(one.epochs for one in made)
