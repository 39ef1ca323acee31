"""Pictures as vision networks want them, for authors of rewards. Batched, on any device, the same numbers on all.

Neither torchvision nor an image processor is used: what those compute depends on which of them is installed.

    pixels = clip_pixels(request.images)            # CLIP's own preprocessing, as with Pillow
    levels = resize(to_uint8(request.images), 448, 336)
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from sdpo_cli.maths.images import to_uint8
from sdpo_cli.maths.resize import Axis, centre, longest_side, resize_floats, resize_levels, shortest_side

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "CropRule",
    "centre_levels",
    "clip_pixels",
    "clip_pixels_smooth",
    "normalise",
    "padded_pixels",
    "resize",
    "to_uint8",
]

CropRule = Literal["floor", "round"]
"""Where an odd rest goes when the centre is cut out: `floor` as transformers (and CLIP scores made with it), `round` as
torchvision (OpenAI's code, ImageReward)."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

PIXELS_AT_ONCE = 1 << 24


def resize(levels: UInt8[Tensor, "B 3 H W"], height: int, width: int) -> UInt8[Tensor, "B 3 h w"]:
    """Pictures of another size, bit for bit those of Pillow's bicubic resize.

    That of Pillow before 13; later ones differ by a few levels in pictures that are shrunk in height by more than twice
    as many pixels as in width.
    """
    return _exact(levels, Axis.whole(levels.shape[2], height), Axis.whole(levels.shape[3], width))


def centre_levels(
    images: Float[Tensor, "B 3 H W"], size: int = 224, crop: CropRule = "floor"
) -> UInt8[Tensor, "B 3 s s"]:
    """The centre square of pictures 0..1, as CLIP's preprocessing with Pillow cuts it out, bit for bit as `resize`.

    Rounded to 8 bits, the shortest side resized to `size`, the centre cut out. Only what the centre needs is computed,
    so strips and huge pictures take little memory.
    """

    def levels(some: Float[Tensor, "B 3 H W"]) -> Tensor:
        return _exact(to_uint8(some), *_centre_square(some, size, crop))

    return _in_parts(levels, images.detach())


def clip_pixels(
    images: Float[Tensor, "B 3 H W"], size: int = 224, crop: CropRule = "floor"
) -> Float[Tensor, "B 3 s s"]:
    """Pictures 0..1 as CLIP sees them, without gradients: `centre_levels`, normalised."""
    return normalise(centre_levels(images, size, crop).float() / 255)


def clip_pixels_smooth(
    images: Float[Tensor, "B 3 H W"], size: int = 224, crop: CropRule = "floor"
) -> Float[Tensor, "B 3 s s"]:
    """`clip_pixels` without any rounding, so that gradients pass.

    Differs from it by 0.3 grey levels in the mean, at most about 15 when shrinking and 28 when enlarging.
    """
    return normalise(resize_floats(images.float(), *_centre_square(images, size, crop)))


def padded_pixels(images: Float[Tensor, "B 3 H W"], size: int = 224) -> Float[Tensor, "B 3 s s"]:
    """Pictures as HPS v2's package sees them: the longest side resized to `size`, black borders, then normalised.

    Without gradients. Rounded to 8 bits before the resize and not after. Differs: a strip's short side is at least one
    pixel, where the package fails.
    """

    def padded(some: Float[Tensor, "B 3 H W"]) -> Tensor:
        height, width = longest_side(some.shape[2], some.shape[3], size)
        levels = to_uint8(some).float() / 255
        resized = resize_floats(levels, Axis.whole(some.shape[2], height), Axis.whole(some.shape[3], width))
        top, left = (size - height) // 2, (size - width) // 2
        return pad(resized, (left, size - width - left, top, size - height - top))

    return normalise(_in_parts(padded, images))


def normalise(
    images: Float[Tensor, "B 3 H W"],
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> Float[Tensor, "B 3 H W"]:
    """(image - mean) / std of each colour."""
    shift, scale = (images.new_tensor(one)[:, None, None] for one in (mean, std))
    return (images - shift) / scale


def _centre_square(images: Tensor, size: int, crop: CropRule) -> tuple[Axis, Axis]:
    """How rows and columns are resized so that the centre square of `size` is left."""
    sides = images.shape[2], images.shape[3]
    targets = shortest_side(*sides, size)
    rows, columns = (Axis.whole(*pair) for pair in zip(sides, targets, strict=True))
    return centre(rows, size, crop == "round"), centre(columns, size, crop == "round")


def _exact(levels: UInt8[Tensor, "B 3 H W"], rows: Axis, columns: Axis) -> UInt8[Tensor, "B 3 h w"]:
    """`resize_levels` where the pictures are; on the CPU for Apple's GPUs, which have no float64."""
    if levels.device.type == "mps":
        return resize_levels(levels.cpu(), rows, columns).to(levels.device)
    return resize_levels(levels, rows, columns)


def _in_parts(step: Callable[[Tensor], Tensor], images: Float[Tensor, "B 3 H W"]) -> Tensor:
    """`step` of as many pictures at a time as have PIXELS_AT_ONCE, at least one."""
    count = max(PIXELS_AT_ONCE // (images.shape[2] * images.shape[3]), 1)
    return torch.cat([step(some) for some in torch.split(images, count)])
