"""A picture of twice the size, convolved, from four convolutions of the small picture; on CUDA, with Triton.

Every place of the small picture would be convolved four times over: of the nine places under a 3x3 kernel, four are
different. Four kernels of 2x2 do the same with 4/9 of the operations, and the large picture is written once.
"""

from typing import Any

import torch
from torch import Tensor

LAST = torch.channels_last
ROWS = ((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0))
"""[part, row of 2, row of 3]: for even and for odd rows, which of the 3x3 kernel's rows fall on the same place."""


def parts_of_kernel(weight: Tensor) -> Tensor:
    """[4 O I 2 2]: the kernels for (even, even), (even, odd), (odd, even) and (odd, odd) places, of a kernel [O I 3 3].

    Weights that fall on the same place are added up in float32.
    """
    rows = torch.tensor(ROWS, device=weight.device)
    parts = torch.einsum("aik,bjl,ockl->abocij", rows, rows, weight.float())
    return parts.flatten(0, 2).to(weight.dtype).contiguous(memory_format=LAST)


class Interleave(torch.autograd.Function):
    """Place (2y + a, 2x + b) from part (a, b) at (y + a, x + b), and a number for each channel, which gets no gradient.

    The parts [N 4 C H+1 W+1] are the convolutions by `parts_of_kernel`, one row and column of zeros around the picture.
    """

    @staticmethod
    def forward(ctx: Any, parts: Tensor, bias: Tensor) -> Tensor:
        """[N C 2H 2W]"""
        from sdpo_cli.api import upsample_kernels as kernels

        parts = parts.contiguous(memory_format=LAST)
        count, channels, height, width = len(parts), len(bias), parts.shape[2] - 1, parts.shape[3] - 1
        out = picture(parts, count, channels, 2 * height, 2 * width)
        grid = (2 * height * count, -(-2 * width // kernels.TALL), -(-channels // kernels.WIDE))
        kernels.interleave_kernel[grid](parts, bias, out, height, width, channels, kernels.TALL, kernels.WIDE)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """The gradient of the parts."""
        from sdpo_cli.api import upsample_kernels as kernels

        grad = grad.contiguous(memory_format=LAST)
        count, channels, height, width = len(grad), grad.shape[1], grad.shape[2] // 2, grad.shape[3] // 2
        out = picture(grad, count, 4 * channels, height + 1, width + 1)
        grid = ((height + 1) * count, -(-(width + 1) // kernels.TALL), 4 * -(-channels // kernels.WIDE))
        kernels.separate_kernel[grid](grad, out, height, width, channels, kernels.TALL, kernels.WIDE)
        return out, None


def picture(like: Tensor, *shape: int) -> Tensor:
    """Room for pictures, channels-last."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=LAST)
