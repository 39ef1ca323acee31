"""How unlike several vectors are."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize


def mean_unlikeness(vectors: Float[Tensor, "*batch N D"]) -> Float[Tensor, "*batch"]:
    """1 - mean cosine of all pairs of N ≥ 2 vectors; 0 where all point the same way, 1 where they are unrelated."""
    count, unit = vectors.shape[-2], normalize(vectors.float(), dim=-1)
    similar = (unit @ unit.mT).sum((-2, -1)) - count
    return 1 - similar / (count * (count - 1))
