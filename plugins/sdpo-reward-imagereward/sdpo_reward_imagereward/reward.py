"""ImageReward as a reward: pictures and prompts in, preferences out."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from sdpo_cli.api.checkpoints import locate
from sdpo_cli.api.images import clip_pixels
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_reward_imagereward import WEIGHTS, WORDS, ImageRewardOptions
from sdpo_reward_imagereward.files import LONGEST, read_tokenizer, read_weights
from sdpo_reward_imagereward.network import Network, build

MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Of raw rewards on the authors' data."""


class ImageReward:
    """The network with its tokenizer.

    Args:
        scale: `standard` or `raw`; the other one is in the details.
        batch: pictures that go through the network at once.
    """

    def __init__(self, network: Network, tokenizer: Tokenizer, scale: str, batch: int) -> None:
        self.network, self.tokenizer, self.scale, self.batch = network, tokenizer, scale, batch
        self.device = next(network.parameters()).device

    @torch.no_grad()
    def score(self, request: ScoreRequest) -> ScoreResult:
        """One preference a picture, and in the details the same on the other scale."""
        tokens, mask = self.tokenise(request.prompts)
        parts = [torch.zeros(0, device=self.device)]
        for start in range(0, len(request.images), self.batch):
            part = slice(start, start + self.batch)
            pixels = clip_pixels(request.images[part].to(self.device), self.network.side, "round")
            parts.append(self.network(pixels, tokens[part].to(self.device), mask[part].to(self.device)))
        raw = torch.cat(parts)
        scales = {"raw": raw, "standard": (raw - MEAN) / DEVIATION}
        return ScoreResult(scales.pop(self.scale), scales)

    def tokenise(self, prompts: Sequence[str]) -> tuple[Int[Tensor, "B L"], Int[Tensor, "B L"]]:
        """Tokens of the prompts, and 1 where there are any; each distinct prompt is worked on once."""
        distinct = {text: row for row, text in enumerate(dict.fromkeys(prompts))}
        # Half a surrogate pair, which JSON can say and UTF-8 cannot, becomes a question mark.
        found = self.tokenizer.encode_batch([text.encode("utf-8", "replace").decode() for text in distinct])
        rows = [distinct[text] for text in prompts]
        tokens = torch.tensor([one.ids for one in found], dtype=torch.long).reshape(-1, LONGEST)
        mask = torch.tensor([one.attention_mask for one in found], dtype=torch.long).reshape(-1, LONGEST)
        return tokens[rows], mask[rows]


def load_reward(options: ImageRewardOptions, device: str) -> ImageReward:
    """The reward on `device`. ArtifactError where files are missing or are not ImageReward's."""
    weights = locate(options.path, WEIGHTS, "ImageReward.safetensors")
    words = locate(options.path, WORDS)
    try:
        network = build(read_weights(weights), getattr(torch, options.dtype))
    except ValueError as error:
        raise weights.wrong(f"is no ImageReward: {error}") from error
    tokenizer = read_tokenizer(words, network.text.config.vocab_size)
    return ImageReward(network.to(device), tokenizer, options.scale, options.batch)
