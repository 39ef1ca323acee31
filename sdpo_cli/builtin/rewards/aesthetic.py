"""LAION's aesthetic predictor v2: an affine function of CLIP ViT-L/14's picture vector.

Source: Schuhmann, improved-aesthetic-predictor (Apache-2.0). Its head is five linear layers with nothing between them,
so it is folded into one vector and one number; the difference is about 1e-6.
"""

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.clip import ImageTower
from sdpo_cli.api.clip_weights import read_tensors, weights_file
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.errors import ArtifactError


class Aesthetic:
    """w · v + b of each picture's unit vector v: about 4 to 7, nominally 1 to 10, never clamped.

    Args:
        images: CLIP ViT-L/14's image tower.
        head: file or folder of the head's layers.
    """

    def __init__(self, images: ImageTower, head: Path) -> None:
        file = weights_file(head)
        try:
            weight, self.bias = folded(read_tensors(file))
        except (KeyError, ValueError, RuntimeError) as error:
            raise _misfit(file, "its tensors are no row of linear layers") from error
        if len(weight) != images.width:
            raise _misfit(file, f"it takes vectors of {len(weight)}, and CLIP gives {images.width}")
        self.images, self.weight = images, weight.to(images.network.device)

    def score(self, request: ScoreRequest) -> ScoreResult:
        """One score a picture."""
        return ScoreResult(self.embed(request.images) @ self.weight + self.bias)

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """CLIP's unit vectors of the pictures."""
        return self.images.embed(images)


def folded(layers: Mapping[str, Tensor]) -> tuple[Float[Tensor, " D"], float]:
    """One affine function in place of the linear layers `layers.N.{weight,bias}`, worked out in float64.

    KeyError, ValueError or RuntimeError where they are no such row that ends in one number.
    """
    names = [name.removesuffix(".weight") for name in layers if name.endswith(".weight")]
    first, *rest = sorted(names, key=lambda name: int(name.removeprefix("layers.")))
    weight, bias = layers[f"{first}.weight"].double(), layers[f"{first}.bias"].double()
    for name in rest:
        here = layers[f"{name}.weight"].double()
        weight, bias = here @ weight, here @ bias + layers[f"{name}.bias"].double()
    (row,), (offset,) = weight.float(), bias.tolist()
    return row, offset


def _misfit(file: Path, fault: str) -> ArtifactError:
    return ArtifactError(fault, place=str(file), remedy="name the head of LAION's aesthetic predictor v2")
