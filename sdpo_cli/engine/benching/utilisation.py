"""How much of the hardware is used: the matrix rate it reaches, what an epoch needs of it, and memory."""

import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from sdpo_cli.api.fused import as_published
from sdpo_cli.api.graphs import held_by_recordings
from sdpo_cli.api.tensors import BaseModel, Previewer

SIDES = {"cuda": 8192}
"""Of the square matrices whose product is timed; elsewhere `SMALL_SIDE`."""
SMALL_SIDE = 1024
PRODUCTS = 20
GIGABYTE = 1e9


@dataclass
class Work:
    """Calls and pictures of a model's two expensive methods."""

    network_calls: int = 0
    network_pictures: int = 0
    decodes: int = 0
    decoded_pictures: int = 0


@contextmanager
def counted(model: BaseModel) -> Iterator[Work]:
    """Count what the model does while entered; what runs out of memory does not count."""
    work = Work()

    def counting(method: Callable[..., Any], calls: str, pictures: str) -> Callable[..., Any]:
        @wraps(method)
        def call(given: torch.Tensor, *rest: Any) -> Any:
            answer = method(given, *rest)
            setattr(work, calls, getattr(work, calls) + 1)
            setattr(work, pictures, getattr(work, pictures) + len(given))
            return answer

        return call

    expensive = {"denoise": ("network_calls", "network_pictures"), "decode": ("decodes", "decoded_pictures")}
    if isinstance(model, Previewer):
        expensive["decode_preview"] = expensive["decode"]
    for name, names in expensive.items():
        setattr(model, name, counting(getattr(model, name), *names))
    try:
        yield work
    finally:
        for name in expensive:
            delattr(model, name)


def synchronise(device: torch.device) -> None:
    """Wait for whatever the device is still computing."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention in a call, gradients included.

    Those of the networks as published, whatever computes them with fewer. Compiled blocks run uncompiled meanwhile:
    nothing can be counted inside them.
    """
    with torch.compiler.set_stance("force_eager"), as_published(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large product of random square matrices: what this device reaches at best."""
    side = SIDES.get(device.type, SMALL_SIDE)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        left @ right
    synchronise(device)
    start = time.perf_counter()
    for _ in range(PRODUCTS):
        left @ right
    synchronise(device)
    return 2 * side**3 * PRODUCTS / (time.perf_counter() - start)


def peak_gb(device: torch.device) -> float:
    """Most memory in use so far, GB: the device's since it was last reset, elsewhere this process's.

    What CUDA graphs hold counts whether they run or not: torch does not count where their kernels write.
    """
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated(device) + held_by_recordings()) / GIGABYTE
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIGABYTE


def device_name(device: torch.device) -> str:
    """`NVIDIA H100 80GB HBM3`; a processor's kind and how many threads torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {torch.get_num_threads()} threads"
