"""How colourful a picture looks. Source: Hasler and Süsstrunk, Measuring colourfulness in natural images, 2003."""

import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.maths.images import to_uint8


class Colorfulness:
    """The M³ measure of each picture: 0 is gray, 15 slightly, 45 quite, 109 extremely colourful."""

    def score(self, request: ScoreRequest) -> ScoreResult:
        """One measure a picture."""
        return ScoreResult(colorfulness(request.images))


def colorfulness(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """M = √(σ_rg² + σ_yb²) + 0.3 √(μ_rg² + μ_yb²) on levels 0..255; rg = R - G, yb = (R + G) / 2 - B.

    σ and μ are over a picture's pixels, σ the population's.
    """
    red, green, blue = to_uint8(images).float().unbind(dim=1)
    opponents = torch.stack([red - green, (red + green) / 2 - blue], dim=1).flatten(2)
    mean = opponents.mean(dim=-1)
    variance = (opponents - mean[..., None]).square().mean(dim=-1)
    return variance.sum(dim=1).sqrt() + 0.3 * mean.square().sum(dim=1).sqrt()
