"""A reward that scores files: what its rows say about it, and what becomes of pictures it fails on."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.tensors import Reward, ScoreRequest
from sdpo_cli.engine.rewards.pictures import Picture
from sdpo_cli.engine.rewards.scoring import checked_score
from sdpo_cli.errors import ArtifactError, PluginError, UsageError

GIVE_UP = 8
"""Pictures in a row that a reward fails on before it is asked no more: its server may be gone."""


@dataclass(frozen=True)
class FileReward:
    """A reward ready to score files, and what its rows say about it; `plugin` is the full name `dist:name`."""

    name: str
    plugin: str
    version: str
    options: Mapping[str, Any]
    reward: Reward

    @property
    def said(self) -> dict[str, Any]:
        """Its part of a row."""
        return {
            "reward": self.name,
            "plugin": self.plugin,
            "version": self.version,
            "options": dict(self.options),
        }


@dataclass(frozen=True)
class Asking:
    """Asks rewards for the ends of rows; `failed` counts the pictures in a row that each has failed on just now."""

    failed: Counter[int] = field(default_factory=Counter)

    def outcomes(
        self, reward: FileReward, pictures: Sequence[Picture], images: Float[Tensor, "B 3 H W"]
    ) -> list[dict[str, Any]]:
        """Value and details of each picture, or its error. When a batch fails its pictures are tried one by one."""
        if self.failed[id(reward)] >= GIVE_UP:
            fault = f"not scored: reward {reward.name} failed on {GIVE_UP} pictures in a row"
            return [{"error": f"{picture.path}: {fault}"} for picture in pictures]
        texts = [picture.prompt or "" for picture in pictures]
        request = ScoreRequest(images, texts, [picture.metadata for picture in pictures])
        try:
            result = checked_score(reward.name, reward.reward, request)
        except (PluginError, UsageError, ArtifactError) as error:  # not StoppedError
            if len(pictures) > 1:
                single = [self.outcomes(reward, [one], images[n : n + 1]) for n, one in enumerate(pictures)]
                return [outcome for (outcome,) in single]
            self.failed[id(reward)] += 1
            return [{"error": f"{pictures[0].path}: {error}"}]
        self.failed[id(reward)] = 0
        details = [{key: detail[n].item() for key, detail in result.details.items()} for n in range(len(pictures))]
        return [
            {"value": value} | ({"details": own} if own else {})
            for value, own in zip(result.values.tolist(), details, strict=True)
        ]
