"""The plan of every method that knows one reward a rollout: that of its last clean estimate."""

from sdpo_cli.api.tensors import LearningPlan
from sdpo_cli.builtin.objectives.options import AdvantageOptions

TERMINAL = LearningPlan(dense="final", credit="next", gamma=0.0)
"""Every action earns the reward of the last clean estimate.

Differs: the last action, which comes after that estimate and cannot change it, is left out; the publications train it
too, on what is noise to it.
"""


def prompt_statistics(options: AdvantageOptions) -> dict[str, int | float]:
    """The plan's fields that say how rewards become advantages by prompt."""
    return {
        "statistics_size": options.statistics.size,
        "statistics_min_count": options.statistics.min_count,
        "advantage_clip": options.advantage_clip,
    }
