"""The laws of a reward."""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.tensors import ImageEmbedder, Reward, ScoreRequest, ScoreResult
from sdpo_cli.testing.laws import BrokenLawError, NotTriedError, Stage, close, keep, noise, require, require_floats

PROMPTS = ("a red cat", "a dog on the moon", "")
ODD_PROMPTS = (
    "🐈‍⬛ under a 🌈",
    "tab\tline\nbell\x07 null\x00",
    "a cat " * 1700,
    "<|startoftext|> a <|endoftext|> b",
    '{0} %s "quoted" \\',
    "猫 кошка قطة",
)


def check_reward(reward: Reward, prompts: Sequence[str] = PROMPTS, size: int = 64) -> None:
    """Scores are [B], float32, finite, repeatable, of each picture alone, of any size, and leave the request as it is.

    Args:
        reward: as `load` returns it.
        prompts: what the pictures are said to show; at least two.
        size: height and width, pixels, of the pictures; others are tried too.
    PluginError names the law that is broken.
    """
    keep(reward_laws(reward, prompts, size))


def reward_laws(reward: Reward, prompts: Sequence[str] = PROMPTS, size: int = 64) -> list[Stage]:
    """The laws of `check_reward`."""
    trial = _Trial(reward, prompts, size)
    return [
        {"scores are finite float32, one a picture": lambda: require_floats(trial.values, (len(prompts),))},
        {
            "details are finite float32, one a picture": trial.details,
            "a request is left as it is": trial.request_kept,
            "scores are repeatable": trial.repeatable,
            "a picture's score is its own": trial.alone,
            "an empty batch has no scores": lambda: trial.scored(trial.images[:0], []),
            "pictures of any size are scored": trial.sizes,
            "flat pictures are scored": trial.flat,
            "prompts of any text are scored": trial.odd_prompts,
            "metadata may be missing": trial.without_metadata,
            "pictures on another device have the same scores": trial.elsewhere,
            "embeddings are unit vectors": trial.embeddings,
        },
    ]


class _Trial:
    """A reward under trial, with pictures of noise."""

    def __init__(self, reward: Reward, prompts: Sequence[str], size: int) -> None:
        self.reward, self.prompts, self.size = reward, prompts, size
        self.images = noise(len(prompts), 3, size, size).sigmoid()
        self.request = ScoreRequest(self.images.clone(), list(prompts), [{"a": 1} for _ in prompts])

    @cached_property
    def result(self) -> ScoreResult:
        """The answer to `request`."""
        with torch.no_grad():
            result = self.reward.score(self.request)
        require(isinstance(result, ScoreResult), f"it gives a {type(result).__name__}, not a ScoreResult")
        return result

    @property
    def values(self) -> Tensor:
        return self.result.values

    def scored(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[str]) -> Tensor:
        """The scores of other pictures, if they are what scores must be."""
        with torch.no_grad():
            values = self.reward.score(ScoreRequest(images.clone(), prompts, [{} for _ in prompts])).values
        require_floats(values, (len(prompts),))
        return values

    def details(self) -> None:
        for name, value in self.result.details.items():
            try:
                require_floats(value, (len(self.prompts),))
            except BrokenLawError as fault:
                raise BrokenLawError(f"{name}: {fault}") from None

    def request_kept(self) -> None:
        require(torch.equal(self.request.images, self.images), "the images were changed")
        require(list(self.request.prompts) == list(self.prompts), "the prompts were changed")
        require(list(self.request.metadata) == [{"a": 1} for _ in self.prompts], "the metadata was changed")

    def repeatable(self) -> None:
        require(close(self.scored(self.images, self.prompts), self.values), "a second call differs")

    def alone(self) -> None:
        alone = [self.scored(self.images[i : i + 1], self.prompts[i : i + 1]) for i in range(len(self.prompts))]
        require(close(torch.cat(alone), self.values), "scored alone it differs from scored among others")

    def sizes(self) -> None:
        for height, width in ((self.size // 2, self.size + 13), (2 * self.size + 1, self.size), (1, 1)):
            self.scored(noise(1, 3, height, width).sigmoid(), self.prompts[:1])

    def flat(self) -> None:
        black = torch.zeros_like(self.images[:1])
        self.scored(torch.cat([black, black + 1]), self.prompts[:2])

    def odd_prompts(self) -> None:
        self.scored(self.images[:1].expand(len(ODD_PROMPTS), -1, -1, -1), ODD_PROMPTS)

    def without_metadata(self) -> None:
        with torch.no_grad():
            self.reward.score(ScoreRequest(self.images[:1].clone(), self.prompts[:1]))

    def elsewhere(self) -> None:
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        if device == self.values.device:
            raise NotTriedError("there is no other device here")
        require(close(self.scored(self.images.to(device), self.prompts), self.values), f"those on {device} differ")

    def embeddings(self) -> None:
        if not isinstance(self.reward, ImageEmbedder):
            raise NotTriedError("it embeds no pictures")
        with torch.no_grad():
            vectors = self.reward.embed(self.images.clone())
        require_floats(vectors, (len(self.images), *vectors.shape[1:2]))
        require(close(vectors.norm(dim=-1), torch.ones(len(vectors))), "their lengths differ")
