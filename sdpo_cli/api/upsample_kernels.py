"""Triton kernels between the four convolutions of a small picture and the picture of twice its size; channels-last."""

import triton
import triton.language as tl

TALL, WIDE = 32, 64
"""Of the tile of places and channels that a program holds."""


@triton.jit
def interleave_kernel(parts, bias, out, height, width, channels, tall: tl.constexpr, wide: tl.constexpr):
    """out [N 2H 2W C]: place (2y + a, 2x + b) is part (a, b) of parts [N H+1 W+1 2 2 C] at (y + a, x + b), and bias."""
    picture, row = (tl.program_id(0) // (2 * height)).to(tl.int64), tl.program_id(0) % (2 * height)
    place = tl.program_id(1) * tall + tl.arange(0, tall)
    channel = tl.program_id(2) * wide + tl.arange(0, wide)
    inside = (place < 2 * width)[:, None] & (channel < channels)[None, :]
    odd, side = row % 2, place % 2
    line = (picture * (height + 1) + row // 2 + odd) * (width + 1)
    source = (line + place // 2 + side) * 4 * channels + (2 * odd + side) * channels
    value = tl.load(parts + source[:, None] + channel[None, :], inside, 0.0).to(tl.float32)
    value += tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)[None, :]
    target = ((picture * 2 * height + row) * 2 * width + place) * channels
    tl.store(out + target[:, None] + channel[None, :], value.to(out.dtype.element_ty), inside)


@triton.jit
def separate_kernel(grad, out, height, width, channels, tall: tl.constexpr, wide: tl.constexpr):
    """The gradient of `parts` from that of the whole picture; 0 where no place comes from a part."""
    picture, line = (tl.program_id(0) // (height + 1)).to(tl.int64), tl.program_id(0) % (height + 1)
    place = tl.program_id(1) * tall + tl.arange(0, tall)
    blocks = tl.cdiv(channels, wide)
    part = tl.program_id(2) // blocks
    channel = tl.program_id(2) % blocks * wide + tl.arange(0, wide)
    odd, side = part // 2, part % 2
    y, x = line - odd, place - side
    known = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    source = ((picture * 2 * height + 2 * y + odd) * 2 * width + 2 * x + side) * channels
    value = tl.load(grad + source[:, None] + channel[None, :], known[:, None] & (channel < channels)[None, :], 0.0)
    target = ((picture * (height + 1) + line) * (width + 1) + place) * 4 * channels + part * channels
    inside = (place < width + 1)[:, None] & (channel < channels)[None, :]
    tl.store(out + target[:, None] + channel[None, :], value, inside)
