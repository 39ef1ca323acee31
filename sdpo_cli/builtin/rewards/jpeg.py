"""The size of a picture's JPEG file, as the rewards of DDPO have it (arXiv 2305.13301)."""

import io

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.maths.images import to_uint8


class JpegSize:
    """`sign` times the JPEG's size in kB (1000 bytes): 1 rewards detail, -1 rewards flatness."""

    def __init__(self, sign: int, quality: int) -> None:
        self.sign, self.quality = sign, quality

    def score(self, request: ScoreRequest) -> ScoreResult:
        """One signed size a picture."""
        return ScoreResult(self.sign * jpeg_kilobytes(request.images, self.quality))


def jpeg_kilobytes(images: Float[Tensor, "B 3 H W"], quality: int) -> Float[Tensor, " B"]:
    """Bytes / 1000 of each picture as a JPEG, chroma 4:2:0, by Pillow.

    Encoders differ: libjpeg-turbo releases by up to 0.1 kB at quality 95.
    """
    levels = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    sizes = [jpeg_bytes(picture, quality) / 1000 for picture in levels]
    return torch.tensor(sizes, dtype=torch.float32, device=images.device)


def jpeg_bytes(picture: np.ndarray, quality: int) -> int:
    """The length of an [H W 3] picture's JPEG file."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.tell()
