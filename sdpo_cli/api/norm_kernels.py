"""Triton kernels of group normalisation with SiLU, for pictures kept channels-last, read and written once a pass.

torch's own kernel turns a channels-last picture into channels-first and leaves it so: every convolution around it then
turns it back. Sums are float32, in an order of their own: the same every time. What is summed is the difference from
the channel's first value, the `pivot`, so that means far above the standard deviation cost no digits.

A picture is a matrix [rows, channels], a row for each place. `u` is what SiLU sees: x * scale + shift, both of them of
each picture and channel. An addend [N C], such as a timestep's embedding, counts as part of x.
"""

import triton
import triton.language as tl

TALL, WIDE = 64, 64
"""Of the tile of a picture that a program holds."""
GROUP = 128
"""Channels that a program of a group has room for, if there are no more: one kernel for most groups."""


@triton.jit
def slope_of(u, grad, act: tl.constexpr):
    """The gradient of u from that of the output."""
    if act:
        gate = tl.sigmoid(u)
        return grad * gate * (1 + u * (1 - gate))
    return grad


@triton.jit
def tile_of(rows, channels, row, tall: tl.constexpr, wide: tl.constexpr):
    """Channels, places and mask of the tile that begins at `row` of this program's picture and block of channels."""
    picture = tl.program_id(1).to(tl.int64) * rows * channels
    column = tl.program_id(2) * wide + tl.arange(0, wide)
    place = row + tl.arange(0, tall)
    inside = (place < rows)[:, None] & (column < channels)[None, :]
    return column, picture + place[:, None] * channels + column[None, :], inside


@triton.jit
def pivot_of(x, picture, rows, channels, column):
    """The first value of a picture's channels."""
    return tl.load(x + picture.to(tl.int64) * rows * channels + column, column < channels, 0.0).to(tl.float32)


@triton.jit
def sums_kernel(x, sums, rows, channels, chunk, tall: tl.constexpr, wide: tl.constexpr):
    """Σ (x - pivot) and Σ (x - pivot)² over a chunk of rows, of each picture and channel: [2, N, chunks, C]."""
    part, picture = tl.program_id(0), tl.program_id(1)
    column = tl.program_id(2) * wide + tl.arange(0, wide)
    pivot = pivot_of(x, picture, rows, channels, column)[None, :]
    first, second = tl.zeros([tall, wide], tl.float32), tl.zeros([tall, wide], tl.float32)
    for row in range(part * chunk, min(part * chunk + chunk, rows), tall):
        column, place, inside = tile_of(rows, channels, row, tall, wide)
        value = tl.where(inside, tl.load(x + place, inside, 0.0).to(tl.float32) - pivot, 0.0)
        first += value
        second += value * value
    parts = tl.num_programs(0)
    out = sums + (picture * parts + part) * channels + column
    tl.store(out, tl.sum(first, 0), column < channels)
    tl.store(out + tl.num_programs(1) * parts * channels, tl.sum(second, 0), column < channels)


@triton.jit
def grad_sums_kernel(
    x, grad, scale, shift, sums, rows, channels, chunk, act: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr
):
    """Σ g and Σ g (x - pivot) over a chunk of rows, g the gradient of u: [2, N, chunks, C]."""
    part, picture = tl.program_id(0), tl.program_id(1)
    column = tl.program_id(2) * wide + tl.arange(0, wide)
    known = column < channels
    factor = tl.load(scale + picture * channels + column, known, 0.0)[None, :]
    offset = tl.load(shift + picture * channels + column, known, 0.0)[None, :]
    pivot = pivot_of(x, picture, rows, channels, column)[None, :]
    first, second = tl.zeros([tall, wide], tl.float32), tl.zeros([tall, wide], tl.float32)
    for row in range(part * chunk, min(part * chunk + chunk, rows), tall):
        column, place, inside = tile_of(rows, channels, row, tall, wide)
        value = tl.load(x + place, inside, 0.0).to(tl.float32)
        slope = slope_of(value * factor + offset, tl.load(grad + place, inside, 0.0).to(tl.float32), act)
        first += slope
        second += slope * (value - pivot)
    parts = tl.num_programs(0)
    out = sums + (picture * parts + part) * channels + column
    tl.store(out, tl.sum(first, 0), known)
    tl.store(out + tl.num_programs(1) * parts * channels, tl.sum(second, 0), known)


@triton.jit
def summed(sums, channels, parts, column, known, room: tl.constexpr):
    """Both sums of a picture's channels over its chunks."""
    part = tl.arange(0, room)
    place = (tl.program_id(0) * parts + part)[:, None] * channels + column[None, :]
    inside = (part < parts)[:, None] & known[None, :]
    second = sums + tl.num_programs(0) * parts * channels
    return tl.sum(tl.load(sums + place, inside, 0.0), 0), tl.sum(tl.load(second + place, inside, 0.0), 0)


@triton.jit(do_not_specialize=["rows", "channels", "width", "parts"])
def coefficients_kernel(
    x, sums, addend, weight, bias, scale, shift, mean, deviation, rows, channels, width, parts, epsilon,
    added: tl.constexpr, room: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """scale and shift [N C], and mean and 1 / standard deviation [N groups], of a picture's group of channels."""
    picture, group = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, wide)
    known, column = lane < width, group * width + lane
    first, second = summed(sums, channels, parts, column, known, room)
    more, pivot = tl.zeros([wide], tl.float32), pivot_of(x, picture, rows, channels, column)
    if added:
        more = tl.load(addend + picture * channels + column, known, 0.0).to(tl.float32)
    count = rows * width
    average = tl.sum(tl.where(known, pivot + more + first / rows, 0.0), 0) / width
    from_mean = tl.where(known, pivot + more - average, 0.0)
    spread = tl.sum(second + from_mean * (2 * first + rows * from_mean), 0) / count
    inverse = tl.rsqrt(tl.maximum(spread, 0.0) + epsilon)
    factor = tl.load(weight + column, known, 0.0).to(tl.float32) * inverse
    offset = tl.load(bias + column, known, 0.0).to(tl.float32) + (more - average) * factor
    tl.store(scale + picture * channels + column, factor, known)
    tl.store(shift + picture * channels + column, offset, known)
    tl.store(mean + picture * tl.num_programs(1) + group, average)
    tl.store(deviation + picture * tl.num_programs(1) + group, inverse)


@triton.jit(do_not_specialize=["rows", "channels", "width", "parts"])
def grad_coefficients_kernel(
    x, sums, addend, weight, mean, deviation, constant, slope, rows, channels, width, parts,
    added: tl.constexpr, room: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """`constant` and `slope` [N C]: the gradient of x is scale * g + constant + slope * x."""
    picture, group = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, wide)
    known, column = lane < width, group * width + lane
    first, second = summed(sums, channels, parts, column, known, room)
    more, pivot = tl.zeros([wide], tl.float32), pivot_of(x, picture, rows, channels, column)
    if added:
        more = tl.load(addend + picture * channels + column, known, 0.0).to(tl.float32)
    from_mean = more - tl.load(mean + picture * tl.num_programs(1) + group)
    inverse = tl.load(deviation + picture * tl.num_programs(1) + group)
    factor = tl.load(weight + column, known, 0.0).to(tl.float32)
    count = rows * width
    per_element = -inverse * inverse * inverse * tl.sum(factor * (second + (pivot + from_mean) * first), 0) / count
    base = -inverse * tl.sum(factor * first, 0) / count
    tl.store(constant + picture * channels + column, base + per_element * from_mean, known)
    tl.store(slope + picture * channels + column, per_element + tl.zeros([wide], tl.float32), known)


@triton.jit
def normalise_kernel(x, scale, shift, out, rows, channels, act: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr):
    """u, or SiLU(u)."""
    column, place, inside = tile_of(rows, channels, tl.program_id(0) * tall, tall, wide)
    known, at = column < channels, tl.program_id(1) * channels + column
    factor, offset = tl.load(scale + at, known, 0.0)[None, :], tl.load(shift + at, known, 0.0)[None, :]
    u = tl.load(x + place, inside, 0.0).to(tl.float32) * factor + offset
    if act:
        u *= tl.sigmoid(u)
    tl.store(out + place, u.to(out.dtype.element_ty), inside)


@triton.jit
def grad_input_kernel(
    x, grad, scale, shift, constant, slope, out, rows, channels,
    act: tl.constexpr, tall: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """The gradient of x."""
    column, place, inside = tile_of(rows, channels, tl.program_id(0) * tall, tall, wide)
    known, at = column < channels, tl.program_id(1) * channels + column
    factor, offset = tl.load(scale + at, known, 0.0)[None, :], tl.load(shift + at, known, 0.0)[None, :]
    fixed, rising = tl.load(constant + at, known, 0.0)[None, :], tl.load(slope + at, known, 0.0)[None, :]
    value = tl.load(x + place, inside, 0.0).to(tl.float32)
    inner = slope_of(value * factor + offset, tl.load(grad + place, inside, 0.0).to(tl.float32), act)
    tl.store(out + place, (factor * inner + fixed + rising * value).to(out.dtype.element_ty), inside)


@triton.jit
def sum_kernel(one, other, bias, out, rows, channels, tall: tl.constexpr, wide: tl.constexpr):
    """one + other + bias, a number for each channel."""
    column, place, inside = tile_of(rows, channels, tl.program_id(0) * tall, tall, wide)
    more = tl.load(bias + column, column < channels, 0.0).to(tl.float32)[None, :]
    total = tl.load(one + place, inside, 0.0).to(tl.float32) + tl.load(other + place, inside, 0.0).to(tl.float32)
    tl.store(out + place, (total + more).to(out.dtype.element_ty), inside)
