"""Work that is tried in smaller parts where the device's memory runs out."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from sdpo_cli.api.graphs import any_recordings, give_up_recordings
from sdpo_cli.errors import TrainingError

T = TypeVar("T")


def fitting(call: Callable[[int], T], batch: int, what: str) -> tuple[T, int]:
    """`call(batch)`, with `batch` halved until it fits; gives the result and the batch that fitted.

    What recorded passes hold is given back first where pairs do not fit: other sizes need other recordings. For
    pictures that comes last: fewer at a time cost less than recording anew.

    Args:
        call: may be called several times; must leave nothing behind when it runs out of memory.
        batch: how many to begin with.
        what: what one of them is called, for the error: `pair` or `picture`.

    Raises:
        TrainingError: not even one fits.
    """
    while True:
        try:
            return call(batch), batch
        except torch.OutOfMemoryError as error:
            if batch == 1 and not any_recordings():
                raise TrainingError(
                    f"one {what} does not fit into the device's memory",
                    remedy="use model.dtype bfloat16 or a smaller model",
                ) from error
        # outside the handler: the exception no longer holds the memory of what failed
        if not ((what == "pair" or batch == 1) and give_up_recordings()):
            batch //= 2
        release()


def release() -> None:
    """Give back to the device what nothing refers to any longer."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
