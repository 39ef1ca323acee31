"""The processes of one run: rank 0, whose run it is, and workers that do their share of every task.

`torchrun` and `accelerate launch` start the same command several times and say so in the environment. Rank 0 tells
all others a task, does its own share, and gathers what they answer, be it a fault: nobody waits for one that failed.
Everything goes by gloo, through the host's memory. torch is imported only where there are several processes.
"""

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

from sdpo_cli.errors import SdpoError, TrainingError, UsageError, first_line

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(days=30)
"""How long a process waits for another: rank 0 may evaluate for hours, and one that dies is noticed at once."""

POLL = 0.1
"""Seconds after which rank 0, waiting for the others, sees that it is asked to stop."""

T = TypeVar("T")


class GoneError(TrainingError):
    """A process of the run has died, or cannot be reached."""

    def __init__(self, cause: BaseException) -> None:
        fault = f"a process of the run is gone ({first_line(cause)})"
        super().__init__(fault, remedy="see what ended it, and start the run again")


class ElsewhereError(Exception):
    """A bug that another process met; the text is its traceback."""


@dataclass(frozen=True)
class Answer:
    """What a process answers: a value, or its fault."""

    value: Any = None
    fault: Exception | None = None


class Team:
    """The processes of a run, seen from one of them; of size 1 it does nothing but call.

    Attributes:
        rank: the place of this process, 0 for the one whose run it is.
        size: how many processes there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._waiting = size > 1  # whether the others wait to be told something

    def span(self, count: int) -> slice:
        """This process's part of `count` neighbours; rank 0 has one whenever anybody has."""
        each, more = divmod(count, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def device(self, name: str) -> str:
        """What a recipe's `train.device` means for this process. UsageError where it has no device of its own."""
        if self.size == 1:
            return name
        import torch

        kind, place = name.partition(":")[0], f"device {name}"
        if kind == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        if kind not in ("cuda", "cpu"):
            raise UsageError("several processes need cuda or cpu", place=place, remedy="start one process")
        if kind == "cuda":
            local, cards = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
            local = 0 if cards == 1 and "CUDA_VISIBLE_DEVICES" in os.environ else local  # given to it alone
            if local >= cards:
                fault = f"needs a card of its own, and this machine has {cards}"
                raise UsageError(fault, place=place, remedy="start no more processes than cards")
            torch.cuda.set_device(local)
        return kind

    def perform(self, task: Callable[..., Any], seat: Any, *args: Any) -> list[Any]:
        """At rank 0: what every process's share of a task gives, `task(seat, *args)`, in the order of ranks.

        `task` is found by its name elsewhere.

        Raises:
            GoneError: a process has died.
            SdpoError: what the task raised here, else what it raised elsewhere, the rank told with it.
            ElsewhereError: a bug elsewhere.
        """
        if self.size == 1:
            return [task(seat, *args)]
        with self.told((task, args)) as others:
            own = task(seat, *args)
        return [own, *others]

    @contextmanager
    def told(self, order: Any) -> Iterator[list[Any]]:
        """At rank 0: while entered, the others work on `order`; afterwards the list given has what they answered.

        Errors as of `perform`. What is no Exception, such as Ctrl-C, waits for nobody: the others find rank 0 gone.
        """
        others: list[Any] = []
        if self.size == 1:
            yield others
            return
        self._tell(order)
        try:
            yield others
        except Exception:
            with suppress(GoneError):
                self._gather()
            raise
        answers = [unpacked(part) for part in self._gather()]
        faults = [answer.fault for answer in answers if answer.fault is not None]
        if faults:
            raise min(faults, key=lambda fault: isinstance(fault, GoneError))  # what made others gone
        others += [answer.value for answer in answers]

    def dismiss(self) -> bool:
        """At rank 0: let the others leave; False where they are in the middle of something, and will see it gone."""
        if self._waiting:
            with suppress(GoneError):
                self._send(None)
        return self._waiting

    def hear(self) -> "Tensor | None":
        """At a worker: what rank 0 tells next, packed; None at the end. GoneError where it has died."""
        import torch
        import torch.distributed as dist

        with together():
            size = torch.zeros(1, dtype=torch.int64)
            dist.broadcast(size, src=0)
            data = torch.empty(int(size), dtype=torch.uint8)
            if not len(data):
                return None
            dist.broadcast(data, src=0)
        return data

    def answer(self, order: "Tensor", obey: Callable[..., Any]) -> None:
        """At a worker: answer what `obey` gives, called with what the order holds, or its fault."""
        import torch
        import torch.distributed as dist

        try:
            data = packed(Answer(obey(*unpacked(order))))
        except BaseException as fault:
            data = self._packed_fault(fault)
        with together():
            dist.gather(torch.tensor([len(data)]), None, dst=0)
            dist.send(data, dst=0)

    def _tell(self, order: Any) -> None:
        data = packed(order)
        self._waiting = False
        self._send(data)

    def _send(self, data: "Tensor | None") -> None:
        import torch
        import torch.distributed as dist

        with together():
            dist.broadcast(torch.tensor([0 if data is None else len(data)]), src=0)
            if data is not None:
                dist.broadcast(data, src=0)

    def _gather(self) -> "list[Tensor]":
        with together():
            parts = interruptibly(partial(gathered, self.size))
        self._waiting = True
        return parts

    def _packed_fault(self, fault: BaseException) -> "Tensor":
        told = "".join(traceback.format_exception(fault))
        with suppress(Exception):  # a plug-in's error may hold what cannot be sent
            if isinstance(fault, SdpoError):
                return packed(Answer(fault=fault.within(f"rank {self.rank}")))
        return packed(Answer(fault=ElsewhereError(f"rank {self.rank}:\n{told}")))


ALONE = Team()
"""The team of a process that nobody has started beside others."""


def launched() -> tuple[int, int]:
    """Rank and number of processes, as the program that started them says; 0 and 1 where there is none."""
    with suppress(KeyError, ValueError):  # clusters set WORLD_SIZE for ends of their own
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return (rank, size) if size > 1 else (0, 1)
    return 0, 1


@contextmanager
def assembled() -> Iterator[Team]:
    """The team of this process, met by all; on the way out rank 0 lets the others leave.

    UsageError where the processes do not meet.
    """
    rank, size = launched()
    if size == 1:
        yield ALONE
        return
    import torch.distributed as dist

    meet()
    team = Team(rank, size)
    try:
        yield team
    finally:
        if rank > 0 or team.dismiss():
            dist.destroy_process_group()


def meet() -> None:
    """Connect the processes; Ctrl-C ends the waiting for them at once. UsageError where that fails."""
    import torch.distributed as dist

    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        dist.init_process_group("gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        fault = f"the processes do not meet ({first_line(error)})"
        raise UsageError(fault, place="sdpo train", remedy="start them with torchrun, or unset WORLD_SIZE") from error
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def together() -> Iterator[None]:
    """Turns the failure of what processes do at once into GoneError."""
    try:
        yield
    except RuntimeError as error:
        raise GoneError(error) from error


def interruptibly(call: Callable[[], T]) -> T:
    """What `call` gives, made in a thread that is left behind where a signal stops the waiting for it."""
    future: Future[T] = Future()

    def settle() -> None:
        try:
            future.set_result(call())
        except BaseException as fault:
            future.set_exception(fault)

    threading.Thread(target=settle, name="sdpo waiting", daemon=True).start()
    while True:
        with suppress(TimeoutError):
            return future.result(POLL)


def gathered(size: int) -> "list[Tensor]":
    """At rank 0: what the others answer, packed. All sizes are waited for at once: whoever dies at work is noticed."""
    import torch
    import torch.distributed as dist

    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
    dist.gather(torch.zeros(1, dtype=torch.int64), sizes, dst=0)
    parts = [torch.empty(int(one), dtype=torch.uint8) for one in sizes[1:]]
    for rank, part in enumerate(parts, start=1):
        dist.recv(part, src=rank)
    return parts


def packed(value: Any) -> "Tensor":
    """Anything as bytes [N], tensors included: sent as they are, where torch would copy objects several times."""
    import torch

    buffer = BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def unpacked(data: "Tensor") -> Any:
    """What was packed; tensors of another process's CUDA device are on this one's, those of the CPU stay there."""
    import torch

    def here(storage: Any, location: str) -> Any:
        return storage if location == "cpu" else storage.cuda()

    return torch.load(BytesIO(data.numpy()), map_location=here, weights_only=False)
