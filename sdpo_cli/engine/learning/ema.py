"""An exponential moving average of the trained weights, kept as a part of the optimiser's state.

There it is copied, saved, resumed and rolled back with the moments, which it resembles: a float32 tensor a weight, on
the weight's device. Rollouts and updates use the weights themselves; what is shown, measured and saved is the average.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

AVERAGE = "average"
"""Its name among the parts of a weight's state."""


def follow(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """From now on average the weights after each step of the optimiser.

    ē ← decay ē + (1 - decay) θ, beginning with ē = θ after the first step. The host does not wait for the device.
    Source: Polyak averaging as of arXiv 2006.11239 and torch.optim.swa_utils; `Differs:` no warm-up of the decay.
    """

    @torch.no_grad()
    def add(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        known = [(state[AVERAGE], one) for one, state in optimizer.state.items() if AVERAGE in state]
        if known:
            averages, weights = map(list, zip(*known, strict=True))
            torch._foreach_lerp_(averages, weights, 1 - decay)
        for one, state in optimizer.state.items():
            if state and AVERAGE not in state:
                state[AVERAGE] = one.detach().clone()

    optimizer.register_step_post_hook(add)


@contextmanager
def averaged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """While entered, the weights are their averages, where there are some."""
    exchange(optimizer)
    try:
        yield
    finally:
        exchange(optimizer)


@torch.no_grad()
def exchange(optimizer: torch.optim.Optimizer) -> None:
    """Let weights and averages change places; twice is as if never."""
    for weight, state in optimizer.state.items():
        if AVERAGE in state:
            kept: Tensor = weight.clone()
            weight.copy_(state[AVERAGE])
            state[AVERAGE].copy_(kept)
