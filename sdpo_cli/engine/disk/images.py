"""Pictures in files: reading whatever people have, writing PNGs that say how they came about, grids to look at."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from sdpo_cli.engine.disk.files import write_bytes
from sdpo_cli.errors import ArtifactError
from sdpo_cli.maths.images import to_uint8

MAX_PIXELS = 64_000_000
"""A larger picture is refused before it is decoded."""

CELL = 128
"""Pictures in a grid are enlarged, by a whole factor, to about this many pixels."""

GAP, MARGIN, FONT_SIZE = 4, 8, 14


def read_image(path: Path) -> Float[Tensor, "3 H W"]:
    """A picture file as RGB 0..1, upright as its EXIF orientation says, transparent parts on white.

    Raises:
        ArtifactError: no file, no picture, broken, or above MAX_PIXELS.
    """
    with opened(path, str(path)) as picture:
        return levels(picture)


def read_png(content: bytes, place: str, size: tuple[int, int]) -> Float[Tensor, "3 H W"]:
    """The bytes of a PNG file of that width and height, as `read_image`; another size is refused unread."""
    with opened(io.BytesIO(content), place, formats=("PNG",)) as picture:
        if picture.size != size:
            fault = f"has {picture.size[0]} x {picture.size[1]} pixels, not {size[0]} x {size[1]}"
            raise ArtifactError(fault, place=place)
        return levels(picture)


def levels(picture: Image.Image) -> Float[Tensor, "3 H W"]:
    """An open picture as RGB 0..1, upright."""
    return torch.from_numpy(np.array(rgb(ImageOps.exif_transpose(picture)))).permute(2, 0, 1).float().div_(255)


@contextmanager
def opened(file: Path | io.BytesIO, place: str, formats: Sequence[str] | None = None) -> Iterator[Image.Image]:
    """A picture file open to read from; whatever is wrong with it, also while reading, is one ArtifactError.

    `place` names it in the error; `formats` are those of Pillow's that it may have, all of them where None.
    """
    remedy = "remove or replace the file" if isinstance(file, Path) else ""
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures; the limit here is ours.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if isinstance(file, Path) and file.exists() and not file.is_file():  # a pipe would be waited for
                raise ArtifactError("is no file", place=place, remedy=remedy)
            with Image.open(file, formats=formats) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise ArtifactError(f"has {width} x {height} pixels, above 64 million", place=place, remedy=remedy)
                yield picture
    except FileNotFoundError:
        raise ArtifactError("no such file", place=place, remedy="correct the path") from None
    except UnidentifiedImageError:
        empty = isinstance(file, Path) and file.stat().st_size == 0
        raise ArtifactError("is empty" if empty else "is no picture", place=place, remedy=remedy) from None
    except Image.DecompressionBombError:
        raise ArtifactError("has above 64 million pixels", place=place, remedy=remedy) from None
    except ArtifactError:
        raise
    except Exception as error:  # what a decoder makes of broken bytes is up to it
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"cannot be read as a picture ({reason})", place=place, remedy=remedy) from None


def rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode in RGB: 16-bit gray by its high byte, transparency on white."""
    if picture.mode.startswith("I"):
        deep = np.asarray(picture).astype(np.int64)
        return Image.fromarray((deep >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def write_png(path: Path, image: Float[Tensor, "3 H W"], text: Mapping[str, str]) -> None:
    """Write a picture 0..1 as a PNG with `text` in its metadata, whole or not at all."""
    information = PngImagePlugin.PngInfo()
    for key, value in text.items():
        information.add_itxt(key, value)
    write_bytes(path, png_bytes(as_picture(image), information))


def png_bytes(picture: Image.Image, information: PngImagePlugin.PngInfo | None = None) -> bytes:
    """A picture as the bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=information)
    return file.getvalue()


def read_png_text(path: Path) -> dict[str, str]:
    """A PNG's metadata texts by name; nothing for other files. ArtifactError as `read_image`."""
    with opened(path, str(path)) as picture:
        texts = getattr(picture, "text", {})
        return {str(key): str(value) for key, value in texts.items()}


def as_picture(image: Float[Tensor, "3 H W"]) -> Image.Image:
    """A picture 0..1 for Pillow."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())


def picture_grid(
    images: Float[Tensor, "N 3 H W"],
    columns: int,
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
) -> Image.Image:
    """Pictures row by row on white, with labels above the columns and left of the rows.

    Small pictures are enlarged by a whole factor so that every pixel stays a crisp square.
    """
    height, width = images.shape[-2:]
    factor = max(1, CELL // max(height, width))
    step_x, step_y = width * factor + GAP, height * factor + GAP
    rows = -(-len(images) // columns)
    font = ImageFont.load_default(FONT_SIZE)
    left = MARGIN + (text_width(row_labels, font) + MARGIN if row_labels else 0)
    top = MARGIN + (FONT_SIZE + MARGIN if column_labels else 0)
    grid = Image.new("RGB", (left + columns * step_x - GAP + MARGIN, top + rows * step_y - GAP + MARGIN), "white")
    for index, image in enumerate(images):
        picture = as_picture(image).resize((width * factor, height * factor), Image.Resampling.NEAREST)
        grid.paste(picture, (left + index % columns * step_x, top + index // columns * step_y))
    pen = ImageDraw.Draw(grid)
    for column, label in enumerate(column_labels):
        shown = fitted(label, step_x - GAP, font)
        pen.text((left + column * step_x + (step_x - GAP) // 2, MARGIN), shown, "black", font, anchor="ma")
    for row, label in enumerate(row_labels):
        pen.text((left - MARGIN, top + row * step_y + (step_y - GAP) // 2), label, "black", font, anchor="rm")
    return grid


def text_width(labels: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    """Pixels that the widest label takes."""
    return max(round(font.getlength(label)) for label in labels)


def fitted(label: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The label, cut to `width` pixels with an ellipsis."""
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(f"{label}…") > width:
        label = label[:-1]
    return f"{label}…"
