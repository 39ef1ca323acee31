"""What the user should know of a run beside its numbers."""

from collections.abc import Iterable, Iterator

from sdpo_cli.api.graphs import recording_faults
from sdpo_cli.engine.events import Note
from sdpo_cli.engine.setup import Setup
from sdpo_cli.engine.training.shares import Seat


def beforehand(setup: Setup) -> Iterator[Note]:
    """What is known before the first epoch: steps that learn nothing, and compiling where it does not pay."""
    quiet, steps = int((setup.kernel.std == 0).sum()), len(setup.kernel)
    if quiet:
        yield Note(f"steps of a rollout that draw no noise, and so carry no gradient: {quiet} of {steps}")
    if setup.recipe.model.compile and setup.model.device.type == "cpu":
        yield Note("model.compile: on a CPU it costs minutes at first, and epochs were no faster then")


def remarks(seat: Seat) -> Iterator[Note]:
    """Why passes are not recorded as CUDA graphs any more, and what did not fit into memory."""
    for fault in recording_faults():
        yield Note(f"passes of the network are no longer recorded as CUDA graphs, which costs time alone: {fault}")
    wanted, fits = seat.setup.micro_batch, seat.micro_batch
    if fits < wanted:
        most = max(part for part in range(1, fits + 1) if seat.setup.batch % part == 0)  # a recipe has no other
        tried = f"{fits} pairs fit into memory where {wanted} did not"
        yield Note(f"{tried}; train.micro_batch={most} spares later runs the tries")
    wanted, shown = seat.setup.decoded_at_once(fits), seat.pictures
    if shown and shown < wanted:
        tried = f"{shown} pictures fit into memory where {wanted} did not"
        yield Note(f"{tried}; train.decode_batch={shown} spares later runs the tries")


def unheard(notes: Iterable[Note], heard: set[Note]) -> Iterator[Note]:
    """Those that have not been heard, which they now have."""
    for note in notes:
        if note not in heard:
            heard.add(note)
            yield note
