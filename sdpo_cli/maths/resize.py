"""Resizing by the antialiased bicubic filter: bit for bit as Pillow does it on levels, and smoothly on floats.

Both are two products with small band matrices, so they are batched and run on any device. An output window is part of
the request: only its pixels are computed, so resize and crop in one go cost no more memory than the crop.

Source: Pillow, `src/libImaging/Resample.c` (the arithmetic); Keys, Cubic convolution interpolation, 1981 (the filter).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

SUPPORT = 2.0
PRECISION = 1 << 22
OUTPUTS_A_BAND = 16


@dataclass(frozen=True)
class Axis:
    """How one side of a picture is resized: `source` pixels become `target`, of which `count` from `first` on are kept.

    Attributes:
        source, target: side in pixels before and after, at least 1.
        first, count: the window of the resized side that is wanted; 0 <= first, first + count <= target.
    """

    source: int
    target: int
    first: int
    count: int

    @classmethod
    def whole(cls, source: int, target: int) -> "Axis":
        """The whole resized side."""
        return cls(source, target, 0, target)


@dataclass(frozen=True)
class Band:
    """What a run of neighbouring outputs sees: `weights` on the inputs from `first` on; each output's sum to 1."""

    first: int
    weights: Float[Tensor, "outputs inputs"]

    @property
    def last(self) -> int:
        """One past the last input."""
        return self.first + self.weights.shape[1]


def resize_levels(levels: UInt8[Tensor, "B C H W"], rows: Axis, columns: Axis) -> UInt8[Tensor, "B C h w"]:
    """Pillow's `resize(..., BICUBIC)`, cropped: 0 differing values where Pillow's horizontal pass comes first.

    Weights are rounded to 22 bits, and sums to levels after the first (horizontal) pass and again after the second. All
    numbers are integers below 2⁵³, so float64 holds them exactly and the order of summation is no matter.

    Differs: before Pillow 13 the horizontal pass is always first, and so it is here, whatever is installed. Pillow 13
    begins with the vertical one where h < H and H - h > 2 (W - w): of pictures shrunk in proportion, those more than
    twice as tall as wide. There its levels differ from earlier ones, and from these, by a few.
    """
    top, bottom = _inputs(rows)
    half = _to_levels(_pass(levels[:, :, top:bottom].mT, level_bands(columns), 0)).mT.contiguous()
    return _to_levels(_pass(half, level_bands(rows), top))


def resize_floats(images: Float[Tensor, "B C H W"], rows: Axis, columns: Axis) -> Float[Tensor, "B C h w"]:
    """The same filter without any rounding or clamp, differentiable: values overshoot 0..1 by up to about 0.1.

    Equals torch's `interpolate(mode="bicubic", antialias=True)`. Differs from `resize_levels`, in grey levels: mean
    0.3, at most about 15 when shrinking and 28 when enlarging natural pictures.
    """
    top, bottom = _inputs(rows)
    half = _pass(images[:, :, top:bottom].mT, float_bands(columns, images.dtype), 0).mT
    return _pass(half, float_bands(rows, images.dtype), top)


@lru_cache(maxsize=128)
def bands(axis: Axis) -> tuple[Band, ...]:
    """The weights of an axis, float64 on the CPU, in runs of neighbouring outputs.

    w(x) = f((x + ½ - c) / s) / Σ f for every input x with |x + ½ - c| < 2 s inside the picture, c the output's centre
    in input pixels, s = max(1, source / target), f the cubic with a = -½.
    """
    last = axis.first + axis.count
    starts = range(axis.first, last, OUTPUTS_A_BAND)
    return tuple(_band(axis, start, min(start + OUTPUTS_A_BAND, last)) for start in starts)


@lru_cache(maxsize=128)
def level_bands(axis: Axis) -> tuple[Band, ...]:
    """`bands` in units of 1 / PRECISION, rounded to the nearest integer, halves away from zero."""
    found = [(band.first, band.weights * PRECISION) for band in bands(axis)]
    return tuple(Band(first, (weights + weights.sign() / 2).trunc()) for first, weights in found)


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # gradients pass these, whoever asks for them first
def float_bands(axis: Axis, dtype: torch.dtype) -> tuple[Band, ...]:
    """`bands` in another dtype."""
    return tuple(Band(band.first, band.weights.to(dtype)) for band in bands(axis))


def cubic(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Keys' cubic with a = -½: 1 at 0, 0 at ±1, 0 from ±2 on."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _band(axis: Axis, start: int, stop: int) -> Band:
    """The outputs `start` to `stop`. Every operation is in the order of the C code, so that rounding agrees too."""
    scale = axis.source / axis.target
    stretch = max(scale, 1.0)
    centre = (torch.arange(start, stop, dtype=torch.float64, device="cpu") + 0.5) * scale
    low = (centre - SUPPORT * stretch + 0.5).trunc().clamp(min=0)
    high = (centre + SUPPORT * stretch + 0.5).trunc().clamp(max=axis.source)
    first = int(low[0])
    x = torch.arange(first, int(high[-1]), dtype=torch.float64, device="cpu")
    seen = (x >= low[:, None]) & (x < high[:, None])
    weights = cubic((x - centre[:, None] + 0.5) * (1 / stretch)) * seen
    return Band(first, weights / weights.cumsum(dim=1)[:, -1:])


def _inputs(axis: Axis) -> tuple[int, int]:
    """First and one past the last input that the window sees."""
    found = bands(axis)
    return found[0].first, found[-1].last


def _pass(x: Shaped[Tensor, "B C n m"], found: tuple[Band, ...], offset: int) -> Float[Tensor, "B C count m"]:
    """Resize the axis before the last, in the bands' dtype; `x` begins at its input number `offset`."""
    pieces = []
    for band in found:
        seen = x[:, :, band.first - offset : band.last - offset]
        pieces.append(band.weights.to(x.device) @ seen.to(band.weights.dtype))
    return torch.cat(pieces, dim=2)


def _to_levels(sums: Float[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
    """Sums in units of 1 / PRECISION as levels: halves up, held to 0..255."""
    return sums.div(PRECISION).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


def shortest_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width whose shorter one is `size`, the longer one rounded down, as CLIP's processors do."""
    short = min(height, width)
    return int(size * height / short), int(size * width / short)


def longest_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width whose longer one is `size`, the shorter one rounded half to even and at least 1."""
    scale = size / max(height, width)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def centre(axis: Axis, size: int, rounded: bool) -> Axis:
    """The middle `size` of a whole side; an odd rest is halved down, or with `rounded` half to even."""
    rest = axis.target - size
    return Axis(axis.source, axis.target, round(rest / 2) if rounded else rest // 2, size)
