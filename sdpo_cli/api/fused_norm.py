"""Group normalisation with SiLU and sums of pictures, each in few passes over memory; on CUDA, with Triton."""

from typing import Any

import torch
from torch import Tensor

LAST = torch.channels_last
CHUNK_ROWS = 256
MOST_CHUNKS = 64
"""Chunks of a picture that are summed by a program each: enough of them to fill the device, few enough to add up."""


class NormAct(torch.autograd.Function):
    """Group normalisation of x + addend, then SiLU where `act`. Weight, bias and addend get no gradient.

    x and the result are channels-last [N C H W]; addend [N C] or None.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, addend: Tensor | None, weight: Tensor, bias: Tensor, groups: int, epsilon: float, act: bool
    ) -> Tensor:
        """The normalised x."""
        from sdpo_cli.api import norm_kernels as kernels

        x, out = x.contiguous(memory_format=LAST), torch.empty_like(x, memory_format=LAST)
        count, channels, rows = len(x), x.shape[1], x[0, 0].numel()
        addend = None if addend is None else addend.contiguous()
        scale, shift = x.new_empty(2, count, channels, dtype=torch.float32)
        mean, deviation = x.new_empty(2, count, groups, dtype=torch.float32)
        grid, sums, parts, chunk = plan_sums(x, kernels)
        kernels.sums_kernel[grid](x, sums, rows, channels, chunk, kernels.TALL, kernels.WIDE)
        kernels.coefficients_kernel[count, groups](
            *(x, sums, addend, weight, bias, scale, shift, mean, deviation, rows, channels, channels // groups, parts),
            *(epsilon, addend is not None, MOST_CHUNKS, max(kernels.GROUP, power_of_2(channels // groups))),
        )
        grid = tiles(x, kernels)
        kernels.normalise_kernel[grid](x, scale, shift, out, rows, channels, act, kernels.TALL, kernels.WIDE)
        ctx.save_for_backward(x, addend, weight, scale, shift, mean, deviation)
        ctx.act = act
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x."""
        from sdpo_cli.api import norm_kernels as kernels

        x, addend, weight, scale, shift, mean, deviation = ctx.saved_tensors
        grad, out = grad.contiguous(memory_format=LAST), torch.empty_like(x)
        count, channels, rows, groups = len(x), x.shape[1], x[0, 0].numel(), mean.shape[1]
        constant, slope = x.new_empty(2, count, channels, dtype=torch.float32)
        grid, sums, parts, chunk = plan_sums(x, kernels)
        shape = (kernels.TALL, kernels.WIDE)
        kernels.grad_sums_kernel[grid](x, grad, scale, shift, sums, rows, channels, chunk, ctx.act, *shape)
        kernels.grad_coefficients_kernel[count, groups](
            *(x, sums, addend, weight, mean, deviation, constant, slope, rows, channels, channels // groups, parts),
            *(addend is not None, MOST_CHUNKS, max(kernels.GROUP, power_of_2(channels // groups))),
        )
        kernels.grad_input_kernel[tiles(x, kernels)](
            *(x, grad, scale, shift, constant, slope, out, rows, channels, ctx.act, *shape)
        )
        return out, None, None, None, None, None, None


class Sum(torch.autograd.Function):
    """one + other + bias: pictures [N C H W], channels-last, and a number for each channel, which gets no gradient."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, bias: Tensor) -> Tensor:
        """The sum."""
        from sdpo_cli.api import norm_kernels as kernels

        one, other = one.contiguous(memory_format=LAST), other.contiguous(memory_format=LAST)
        out, rows, channels = torch.empty_like(one), one[0, 0].numel(), one.shape[1]
        kernels.sum_kernel[tiles(one, kernels)](one, other, bias, out, rows, channels, kernels.TALL, kernels.WIDE)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of `one` and `other`."""
        return grad, grad, None


def tiles(x: Tensor, kernels: Any) -> tuple[int, int, int]:
    """Programs that hold a tile of a picture each."""
    rows, channels = x[0, 0].numel(), x.shape[1]
    return -(-rows // kernels.TALL), len(x), -(-channels // kernels.WIDE)


def plan_sums(x: Tensor, kernels: Any) -> tuple[tuple[int, int, int], Tensor, int, int]:
    """Programs that add up a chunk of a picture each, room for their sums, chunks of a picture, and rows of a chunk."""
    rows = x[0, 0].numel()
    wanted = min(MOST_CHUNKS, -(-rows // CHUNK_ROWS))
    chunk = -(-rows // (wanted * kernels.TALL)) * kernels.TALL
    parts = -(-rows // chunk)
    grid = (parts, len(x), -(-x.shape[1] // kernels.WIDE))
    return grid, x.new_empty(2, len(x), parts, x.shape[1], dtype=torch.float32), parts, chunk


def power_of_2(number: int) -> int:
    """The smallest one that is not below `number`."""
    return 1 << (number - 1).bit_length()
