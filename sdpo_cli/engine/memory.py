"""Work that is tried in smaller parts where the device's memory runs out."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from sdpo_cli.errors import TrainingError

T = TypeVar("T")


def fitting(call: Callable[[int], T], batch: int, what: str) -> tuple[T, int]:
    """`call(batch)`, with `batch` halved until it fits; gives the result and the batch that fitted.

    Args:
        call: may be called several times; must leave nothing behind when it runs out of memory.
        batch: how many to begin with.
        what: what one of them is called, for the error: `pair`, `picture`.

    Raises:
        TrainingError: not even one fits.
    """
    while True:
        try:
            return call(batch), batch
        except torch.OutOfMemoryError as error:
            if batch == 1:
                raise TrainingError(
                    f"one {what} does not fit into the device's memory",
                    remedy="use model.dtype bfloat16 or a smaller model",
                ) from error
        # outside the handler: the exception no longer holds the memory of what failed
        batch //= 2
        release()


def release() -> None:
    """Give back to the device what nothing refers to any longer."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
