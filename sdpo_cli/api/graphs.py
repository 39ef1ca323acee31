"""Which passes through a compiled network are recorded as CUDA graphs, and when recordings are given up.

The host starts thousands of kernels a pass, and on a fast device that takes longer than computing them. Recorded are
passes with a LoRA, with and without gradient, by the shapes of their inputs; anything else is computed as ever.
"""

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, update_wrapper
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sdpo_cli.api.recording import Kind, Pool, Recording, Replay, Slot, Turn, answered, free_cached, kind_of, untyped
from sdpo_cli.errors import first_line

WARM = 2
"""Calls of a kind that are computed before one is recorded: the first compiles, and kernels are chosen."""
MOST = 8
"""Recordings of a network."""
KINDS = 64
"""Kinds of calls that are told apart: more say that the shapes do not repeat."""
CHANCES = 2
"""How often a network gives up recordings that were of little use, because memory runs out, before it makes no more."""
WORTH = 100
"""Replays that pay for the seconds of recording: recordings that had more of them were of use."""
NOISE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""By how much of itself a recording's first answer may differ from the uncompiled network's."""


@dataclass(frozen=True)
class State:
    """What a network computes with, as far as a recording depends on it.

    Attributes:
        facts: identity, place and gradient of each weight and buffer, and the settings of each LoRA layer.
        slots: the trained weights.
        tensors: kept, so that no other tensor has the identity of one of them.
    """

    facts: tuple[Any, ...]
    slots: Sequence[Slot] = field(compare=False)
    tensors: Sequence[Tensor] = field(compare=False)

    @property
    def weights(self) -> list[Tensor]:
        """The trained weights."""
        return [getattr(module, name) for module, name in self.slots]


def state_of(network: nn.Module) -> State | None:
    """The network's state; None where nothing is recorded: without a LoRA at work, other weights trained, or hooks."""
    facts: list[Any] = [network.training]
    tensors: list[Tensor] = []
    slots: list[Slot] = []
    places: list[tuple[Any, bool]] = [(network, False)]
    while places:
        module, in_lora = places.pop()
        kind: Any = type(module)
        layer: Any = module if is_lora(kind) else None
        if layer is not None:
            if layer.disable_adapters:
                return None
            facts += [layer.merged, tuple(layer.active_adapters), tuple(layer.scaling.items())]
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return None
        for name, weight in module._parameters.items():
            if weight is not None:
                tensors.append(weight)
                if weight.requires_grad:
                    slots.append((module, name))
                    if not in_lora:
                        return None
        tensors += [one for one in module._buffers.values() if one is not None]
        for name, child in module._modules.items():
            if child is not None:
                places.append((child, in_lora or (layer is not None and name != "base_layer")))
    facts += [(id(one), one.data_ptr(), one.requires_grad) for one in tensors]
    return State(tuple(facts), slots, tensors) if slots else None


@cache
def is_lora(kind: type) -> bool:
    """Whether modules of a class are layers with a LoRA."""
    from peft.tuners.lora import LoraLayer

    return issubclass(kind, LoraLayer)


class Recorder:
    """Stands for a network's `forward`: computes, records and replays.

    Recordings are made in passes with gradient alone: no reward is asked meanwhile, whose thread could not draw random
    numbers on the device. Those with gradient come first, as the smaller ones find room in the memory of the larger.

    Attributes:
        recordings: made so far, by kind.
        pool: makes them, in its memory.
        fault: why nothing is recorded any more.
    """

    def __init__(self, network: Any, pool: Pool) -> None:
        self.network, self.plain, self.pool = network, network.forward, pool
        self.recordings: dict[Kind, Recording] = {}
        self.fault = ""
        self._state: State | None = None
        self._seen = Counter[Kind]()
        self._refused: set[Kind] = set()
        self._checked: set[Kind] = set()
        self._chances, self._replays = CHANCES, 0
        self._awaited: Callable[[], Turn | None] = lambda: None
        self._lock = threading.RLock()

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """The network's answer."""
        with self._lock:
            return self.answer(args, kwargs)

    def answer(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The network's answer, while no other thread gives up the recordings."""
        state = state_of(self.network) if is_recordable() else None
        kind, tensors = kind_of(args, kwargs, self.pool.device) if state else (None, [])
        if state is None or kind is None:
            return self.compute(args, kwargs)
        if self._state != state:
            self.forget()
            self._state = state
        if self._awaited() is not None:  # a backward pass needs what any recording would overwrite
            return self.compute(args, kwargs)
        if kind.gradient and self._seen[kind] >= WARM:
            self.record_known(state)
        recording = self.recordings.get(kind)
        if recording and (kind in self._checked or self.check(recording, kind, tensors, args, kwargs)):
            return self.replay(recording, tensors, state)
        answer = self.compute(args, kwargs)
        if kind in self._seen or len(self._seen) < KINDS:
            self._seen[kind] += 1
        return answer

    def compute(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The answer by the network itself, in the memory of the recordings if there is no other."""
        try:
            return self.plain(*args, **kwargs)
        except torch.OutOfMemoryError:
            if not self.recordings:
                raise
        self.give_up()  # outside the handler: the exception no longer holds the memory of what failed
        return self.plain(*args, **kwargs)

    @torch.no_grad()
    def check(
        self,
        recording: Recording,
        kind: Kind,
        tensors: Sequence[Tensor],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> bool:
        """Whether a recording's first answer is the uncompiled network's; else nothing is recorded any more.

        What a recording reads in the wrong place it has read while it was made, where all inputs were 0.
        """
        with torch.compiler.set_stance("force_eager"):
            expected, _ = answered(self.compute(args, kwargs))
        if kind not in self.recordings:  # given up meanwhile
            return False
        recording.fill(tensors)
        recording.forward.replay()
        for one, other in zip(recording.outputs, expected, strict=True):
            difference = float((one - other).float().norm() / other.float().norm().clamp_min(1e-12))
            if not difference <= NOISE.get(other.dtype, 1e-3):
                self.forget()
                self.fault = f"a recorded pass differs from the network by {difference:.2g} of its answer"
                free_cached()
                return False
        self._checked.add(kind)
        return True

    def replay(self, recording: Recording, tensors: Sequence[Tensor], state: State) -> Any:
        """The answer by a recording."""
        recording.fill(tensors)
        self._replays += 1
        if recording.backward is None:
            recording.forward.replay()
            outputs: Any = [one.clone() for one in recording.outputs]
        else:
            turn = Turn()
            self._awaited = weakref.ref(turn)
            outputs = untyped(Replay.apply)(recording, turn, self.end, *state.weights)
        return pytree.tree_unflatten(outputs, recording.spec)

    def end(self, turn: Turn) -> None:
        """A backward pass begins. RuntimeError where the recordings' memory no longer holds what it needs."""
        if self._awaited() is not turn:
            raise RuntimeError("the gradient of a recorded pass can be asked for once, before the next recorded pass")
        self._awaited = lambda: None

    def record_known(self, state: State) -> None:
        """Record the kinds of calls that are due, those with gradient first."""
        due = [kind for kind, calls in self._seen.items() if calls >= WARM and kind not in self.recordings]
        for kind in sorted(due, key=lambda kind: not kind.gradient):
            if kind not in self._refused and len(self.recordings) < MOST and not self.fault:
                self.record(kind, state)

    def record(self, kind: Kind, state: State) -> None:
        """Make one recording, or note that it cannot be made."""
        try:
            self.recordings[kind] = self.pool.record(self.plain, kind, state.slots)
            return
        except torch.OutOfMemoryError:
            self._refused.add(kind)
        except Exception as error:
            self.fault = f"{type(error).__name__}: {first_line(error)}"
        free_cached()  # outside the handler, as above

    def forget(self) -> None:
        """Drop all recordings and what led to them."""
        self.pool.close()
        self.recordings.clear()
        self._seen.clear()
        self._refused.clear()
        self._checked.clear()
        self._replays = 0

    def give_up(self) -> bool:
        """Give the recordings' memory back to the device; whether there were any. Any thread may ask for it."""
        with self._lock:
            if not self.recordings:
                return False
            self._chances -= self._replays < WORTH
            self.forget()
            if self._chances < 1:
                self.fault = "memory ran out"
            free_cached()
            return True


RECORDERS = weakref.WeakSet[Recorder]()


def record_passes(network: Any, pool: Pool) -> Recorder:
    """From now on record the passes through a network on CUDA whose blocks are compiled."""
    recorder = Recorder(network, pool)
    RECORDERS.add(recorder)
    network.forward = Forward(recorder)
    return recorder


class Forward:
    """A network's `forward` by a recorder. A copy of the network computes for itself."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        update_wrapper(self, recorder.plain)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's answer."""
        return self.recorder.call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """The forward of the copy that is being made."""
        network = memo[id(self.recorder.network)]
        return MethodType(type(network).forward, network)


def recording_faults() -> list[str]:
    """Why networks record nothing any more."""
    return [recorder.fault for recorder in list(RECORDERS) if recorder.fault]


def any_recordings() -> bool:
    """Whether any recordings hold memory."""
    return any(recorder.recordings for recorder in list(RECORDERS))


def give_up_recordings() -> bool:
    """Give the memory of all recordings back to the device; whether there were any."""
    return sum(recorder.give_up() for recorder in list(RECORDERS)) > 0


def held_by_recordings() -> int:
    """Bytes of the devices' memory that recordings hold between passes, where their kernels write."""
    return sum(recorder.pool.held for recorder in list(RECORDERS))


def is_recordable() -> bool:
    """Whether torch computes as it does in training: compiled, without autocast, and nobody else is recording."""
    stance = getattr(torch._dynamo.eval_frame, "_stance", None)
    eager = stance is None or stance.stance != "default"
    special = torch.is_autocast_enabled("cuda") or torch.is_inference_mode_enabled()
    recorded = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return not (eager or special or recorded)
