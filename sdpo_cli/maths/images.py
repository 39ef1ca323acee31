"""Pictures as the eight-bit levels that files hold."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_uint8(images: Float[Tensor, "*batch 3 H W"]) -> UInt8[Tensor, "*batch 3 H W"]:
    """Pictures 0..1 as levels 0..255, rounded half to even; values outside are held to the range."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
