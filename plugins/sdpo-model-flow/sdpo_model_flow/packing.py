"""Latents as rows of tokens, 2 x 2 positions each, channel by channel, as FLUX and Qwen-Image read them."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def pack(latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N C4"]:
    """N = H W / 4 tokens of 4 C numbers."""
    return pixel_unshuffle(latents, 2).flatten(2).mT


def unpack(tokens: Float[Tensor, "B N C4"], height: int, width: int) -> Float[Tensor, "B C H W"]:
    """The latents of that height and width."""
    return pixel_shuffle(tokens.mT.unflatten(2, (height // 2, width // 2)), 2)
