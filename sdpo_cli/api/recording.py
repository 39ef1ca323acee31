"""One kind of pass through a network, recorded as CUDA graphs: one call of the host starts all of its kernels.

What a graph computes with is where it was when it was recorded: inputs are copied to their place, results and gradients
are copied out, as the next pass overwrites them. All recordings of a network take their memory from one pool: what a
forward pass keeps for its backward pass is lost as soon as another recording is replayed.
"""

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

PLAIN = (NoneType, bool, int, float, str, torch.dtype)
"""Types of arguments that tell by their value what is computed."""

Slot = tuple[nn.Module, str]
"""A trained weight: its module, and its name there."""

UNFINISHED: list[Any] = []
"""Graphs whose recording CUDA refused to end: torch's allocator for the host still asks them for their number."""


@dataclass(frozen=True)
class Kind:
    """What calls have in common that one recording can answer.

    Attributes:
        leaves: of each tensor among the arguments its shape and number format, of all else its type and value.
        structure: how they are nested, and their names.
        gradient: whether the trained weights get one.
        spec: the structure as `torch.utils._pytree` has it.
    """

    leaves: tuple[tuple[Any, Any], ...]
    structure: str
    gradient: bool
    spec: Any = field(compare=False)


def kind_of(args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device) -> tuple[Kind | None, list[Tensor]]:
    """The kind of a call, None where it cannot be recorded, and its tensors."""
    leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    described = [describe(leaf, device) for leaf in leaves]
    found = [one for one in described if one is not None]
    if len(found) < len(leaves):
        return None, []
    kind = Kind(tuple(found), str(spec), torch.is_grad_enabled(), spec)
    return kind, [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def describe(leaf: Any, device: torch.device) -> tuple[Any, Any] | None:
    """An argument in a kind; None where a recording cannot stand for it."""
    if type(leaf) is Tensor:
        return (leaf.shape, leaf.dtype) if leaf.device == device and not leaf.requires_grad else None
    return (type(leaf), leaf) if type(leaf) in PLAIN else None


@dataclass
class Recording:
    """Graphs of one kind of call, and the places that they read and write.

    Attributes:
        inputs: the arguments' tensors.
        forward: fills `outputs`, which `spec` makes the network's answer of.
        backward: fills `gradients`, one a trained weight, from `slopes`, the outputs' gradients; None without gradient.
    """

    inputs: Sequence[Tensor]
    forward: Any
    outputs: Sequence[Tensor]
    spec: Any
    backward: Any = None
    slopes: Sequence[Tensor] = ()
    gradients: Sequence[Tensor | None] = ()

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Put the arguments' tensors where they are read."""
        for place, tensor in zip(self.inputs, tensors, strict=True):
            place.copy_(tensor)


class Turn:
    """The time from a forward pass to its backward pass; gone when nothing can go back any more."""


class Replay(torch.autograd.Function):
    """A recorded pass whose gradient can be asked for once, before any other recording of the network is replayed."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, turn: Turn, end: Callable[[Turn], None], *weights: Tensor) -> Any:
        """The outputs."""
        ctx.recording, ctx.turn, ctx.end = recording, turn, end
        ctx.save_for_backward(*weights)
        recording.forward.replay()
        return tuple(one.clone() for one in recording.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The weights' gradients: copies, as torch may keep what it is given as a weight's `.grad`."""
        ctx.end(ctx.turn)
        recording: Recording = ctx.recording
        _ = ctx.saved_tensors  # an error where weights have been changed in between
        for slope, grad in zip(recording.slopes, grads, strict=True):
            slope.copy_(grad)
        recording.backward.replay()
        found = [one for one in recording.gradients if one is not None]
        copies = iter(torch._foreach_mul(found, 1.0) if found else ())  # torch refuses an empty list
        return None, None, None, *(None if one is None else next(copies) for one in recording.gradients)


class Pool:
    """The device's memory that all recordings of a network share, and the stream that they are made on.

    Attributes:
        held: bytes that they hold between passes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.held, self._made = device, 0, 0
        self._handle: Any = None
        self._stream: Any = None

    def record(self, network: Callable[..., Any], kind: Kind, slots: Sequence[Slot]) -> Recording:
        """A recording. Errors as for `record`."""
        self._stream = self._stream or untyped(torch.cuda.Stream)(self.device)
        if not self._made:  # torch forgets a pool with the last of its graphs
            self._handle = torch.cuda.graph_pool_handle()
        free_cached()
        before = torch.cuda.memory_reserved(self.device)
        recording = record(network, kind, slots, self._handle, self._stream)
        free_cached()
        self.held += torch.cuda.memory_reserved(self.device) - before
        self._made += 1
        return recording

    def close(self) -> None:
        """Wait until no recording runs any more: all of them are about to be dropped."""
        if self._made:
            torch.cuda.synchronize(self.device)
        self.held, self._made = 0, 0


def record(network: Callable[..., Any], kind: Kind, slots: Sequence[Slot], pool: Any, stream: Any) -> Recording:
    """A recording of a network that has computed this kind of call before, so that all is compiled.

    To be made while no other thread uses the device, and no gradient of another recording is awaited.

    Raises:
        torch.OutOfMemoryError: nothing is left behind but cached memory.
        RuntimeError and others: the pass does what cannot be recorded, such as waiting for the device.
    """
    device, current = stream.device, torch.cuda.current_stream(stream.device)
    leaves = [
        torch.zeros(one[0], dtype=one[1], device=device) if isinstance(one[0], torch.Size) else one[1]
        for one in kind.leaves
    ]
    args, kwargs = pytree.tree_unflatten(leaves, kind.spec)
    stream.wait_stream(current)
    with torch.cuda.stream(stream), torch.set_grad_enabled(kind.gradient), aliased(slots) as weights:
        with waiting_refused():
            outputs, _ = answered(network(*args, **kwargs))
            if kind.gradient:
                torch.autograd.grad(outputs, weights, [torch.zeros_like(one) for one in outputs], allow_unused=True)
            del outputs
        with uncollected():
            forward = torch.cuda.CUDAGraph()
            with capturing(forward, pool, stream):
                answer = network(*args, **kwargs)
            outputs, spec = answered(answer)
            del answer
            recording = Recording([one for one in leaves if isinstance(one, Tensor)], forward, outputs, spec)
            if kind.gradient:
                recording.backward = torch.cuda.CUDAGraph()
                recording.slopes = [torch.zeros_like(one) for one in outputs]
                with capturing(recording.backward, pool, stream):
                    grads = torch.autograd.grad(outputs, weights, recording.slopes, allow_unused=True)
                recording.gradients = grads
            recording.outputs = [one.detach() for one in outputs]
    current.wait_stream(stream)
    return recording


def answered(answer: Any) -> tuple[list[Tensor], Any]:
    """A network's answer as tensors and their structure. TypeError where it holds anything else."""
    outputs, spec = pytree.tree_flatten(answer)
    if not all(isinstance(one, Tensor) for one in outputs):
        raise TypeError("the network's answer is not made of tensors alone")
    return outputs, spec


def free_cached() -> None:
    """Give back to the device what nothing refers to any longer."""
    gc.collect()
    torch.cuda.empty_cache()


def untyped(function: Any) -> Any:
    """A function of torch that has no types."""
    return function


@contextmanager
def aliased(slots: Sequence[Slot]) -> Iterator[list[nn.Parameter]]:
    """While entered, each trained weight is another parameter of the same numbers in the same place.

    What autograd keeps of a weight remembers the stream that it was first used on, which is not the one that records.
    """
    weights = [module._parameters[name] for module, name in slots]
    aliases = [nn.Parameter(weight.data) for weight in weights if weight is not None]
    try:
        for (module, name), alias in zip(slots, aliases, strict=True):
            module._parameters[name] = alias
        yield aliases
    finally:
        for (module, name), weight in zip(slots, weights, strict=True):
            module._parameters[name] = weight


@contextmanager
def waiting_refused() -> Iterator[None]:
    """While entered, what makes the host wait for the device is a RuntimeError: a recording of it would break torch."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is new
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def uncollected() -> Iterator[None]:
    """While entered, Python collects no garbage: it may hold memory of the device, and cannot be freed in between."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def capturing(graph: Any, pool: Any, stream: Any) -> Iterator[None]:
    """While entered, kernels are recorded instead of run."""
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            yield
    except torch.OutOfMemoryError:
        raise
    except BaseException:
        # where CUDA refuses to end a recording, torch forgets to tell its allocator that it is over
        with suppress(RuntimeError, AttributeError):
            cuda: Any = torch._C
            cuda._cuda_endAllocateToPool(stream.device_index, pool)
            UNFINISHED.append(graph)
            cuda._cuda_releasePool(stream.device_index, pool)
        raise
