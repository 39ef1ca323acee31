"""Work that is tried in smaller parts where the device's memory runs out."""

from collections.abc import Callable
from typing import TypeVar

import torch

from sdpo_cli.api.graphs import any_recordings, give_up_recordings
from sdpo_cli.api.recording import free_cached as release
from sdpo_cli.errors import TrainingError

T = TypeVar("T")

REMEDIES = {
    "pair": "use model.options.gradient_checkpointing, model.dtype bfloat16, smaller pictures or a smaller model",
    "picture": "use model.options.vae_tiling or tiny_vae, model.dtype bfloat16, smaller pictures or a smaller model",
}


def fitting(call: Callable[[int], T], batch: int, what: str) -> tuple[T, int]:
    """`call(batch)`, with `batch` halved until it fits; gives the result and the batch that fitted.

    What recorded passes hold is given back first where pairs do not fit: other sizes need other recordings. For
    pictures that comes last: fewer at a time cost less than recording anew.

    Args:
        call: may be called several times; must leave nothing behind when it runs out of memory.
        batch: how many to begin with, and again when recordings have been given up.
        what: what one of them is called, for the error: `pair` or `picture`.

    Raises:
        TrainingError: not even one fits.
    """
    first, tried = batch, set[int]()
    while True:
        try:
            return call(batch), batch
        except torch.OutOfMemoryError as error:
            recorded = any_recordings() and batch not in tried  # made anew they may be in the way again
            if batch == 1 and not recorded:
                raise TrainingError(
                    f"one {what} does not fit into the device's memory",
                    remedy=REMEDIES[what],
                ) from error
        # outside the handler: the exception no longer holds the memory of what failed
        if recorded and (what == "pair" or batch == 1):
            tried.add(batch)
            give_up_recordings()
            batch = batch if what == "pair" else first
        else:
            batch //= 2
        release()


def with_room(call: Callable[[], T]) -> T:
    """`call()`, once more where memory runs out beside recorded passes, which are given up."""
    try:
        return call()
    except torch.OutOfMemoryError:
        if not any_recordings():
            raise
    give_up_recordings()
    release()
    return call()
