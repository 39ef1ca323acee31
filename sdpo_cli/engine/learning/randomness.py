"""Every random number is a function of (seed, purpose, indices), never of global state or of the order of work."""

import hashlib
import json
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def derived_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derived_seed(0, "noise", epoch, pair)`."""
    digest = hashlib.sha256(json.dumps([seed, *path]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator for one purpose: the same numbers on every device."""
    return torch.Generator().manual_seed(derived_seed(seed, *path))


def normal(shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device) -> Float[Tensor, "..."]:
    """Standard normal numbers [len(generators), *shape], each row drawn on the CPU from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=one) for one in generators]).to(device, non_blocking=True)


def shuffled(count: int, source: torch.Generator) -> list[int]:
    """0..count-1 in random order."""
    return torch.randperm(count, generator=source).tolist()
