"""Pictures as Qwen2-VL sees them: resized to nearly one area, in patches of 14 pixels, four of which make a token."""

import math

from jaxtyping import Float, UInt8
from torch import Tensor

from sdpo_cli.api import UsageError
from sdpo_cli.api.images import normalise, resize, to_uint8

PATCH, MERGED, FRAMES = 14, 2, 2
UNIT = PATCH * MERGED
AREA = 256 * UNIT * UNIT
LONGEST = 200


def target_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of about AREA pixels, in multiples of UNIT, in the proportion of a picture.

    A picture of more than AREA shrinks to at most AREA, one of less grows to at least AREA. UsageError for strips.
    Source: `smart_resize` of qwen-vl-utils, which hpsv3 1.0.0 uses.
    """
    if max(height, width) > LONGEST * min(height, width):
        fault = f"a picture of {width} x {height} pixels is longer than {LONGEST} times its width"
        raise UsageError(fault, place="reward hpsv3", remedy="leave it out or cut it")
    rough = [max(round(side / UNIT), 1) * UNIT for side in (height, width)]
    if math.prod(rough) == AREA:
        return rough[0], rough[1]
    factor = math.sqrt(AREA / (height * width))
    to_whole = math.floor if math.prod(rough) > AREA else math.ceil
    return to_whole(height * factor / UNIT) * UNIT, to_whole(width * factor / UNIT) * UNIT


def sized(images: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 h w"]:
    """Pictures 0..1 as levels of their target size, resized bit for bit as Pillow does."""
    return resize(to_uint8(images), *target_size(images.shape[2], images.shape[3]))


def patches(levels: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "N 1176"]:
    """Normalised patches, the four of a token after one another; each is there twice, for a picture is a still film."""
    count, colours, height, width = levels.shape
    rows, columns = height // UNIT, width // UNIT
    pixels = normalise(levels.float() / 255)
    split = pixels.reshape(count, colours, rows, MERGED, PATCH, columns, MERGED, PATCH)
    ordered = split.permute(0, 2, 5, 3, 6, 1, 4, 7)[..., None, :, :]
    return ordered.expand(*ordered.shape[:-3], FRAMES, PATCH, PATCH).flatten(5).flatten(0, 4)
