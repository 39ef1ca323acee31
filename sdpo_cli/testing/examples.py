"""Compares a reward with the scores that its authors published."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx2
import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api import Example, LoadContext
from sdpo_cli.api.hub import check_downloads
from sdpo_cli.api.tensors import Reward, ScoreRequest
from sdpo_cli.engine.disk.images import read_image
from sdpo_cli.errors import ArtifactError, PluginError, UsageError
from sdpo_cli.registry import Plugin, load_registry
from sdpo_cli.testing.laws import Verdict, require, verdict

MAX_BYTES = 20_000_000
"""Of a published picture."""

TIMEOUT = 30.0
"""Seconds in which each part of it must arrive."""


def compare(plugin: Plugin, context: LoadContext | None = None) -> Iterator[Verdict]:
    """A verdict on each score that a reward's authors published, by its real weights.

    Raises:
        PluginError: weights or a picture are not here and cannot be fetched.
    """
    examples: Sequence[Example] = getattr(plugin.spec, "examples", ())
    if not examples:
        yield Verdict("published scores are met", "skipped", "none are known")
    registry = load_registry()
    chosen = [registry.choose(plugin, example.options, f"{plugin.full_name}: examples") for example in examples]
    try:
        check_downloads([files for one in chosen for files in plugin.spec.needs(one.options)])
        pictures = [picture(example.picture) for example in examples]
        loaded = {repr(one.options): one.load(context or LoadContext()) for one in chosen}
    except (ArtifactError, UsageError) as error:
        raise PluginError(error.fault, place=error.place, remedy=error.remedy) from error
    for one, example, image in zip(chosen, examples, pictures, strict=True):
        yield met(loaded[repr(one.options)], example, image)


def met(reward: Reward, example: Example, image: Float[Tensor, "3 H W"]) -> Verdict:
    """Whether the reward gives a picture its published score."""
    ours: list[float] = [math.nan]

    def holds() -> None:
        with torch.no_grad():
            ours[0] = reward.score(ScoreRequest(image[None], [example.prompt], [{}])).values.item()
        require(abs(ours[0] - example.value) <= example.tolerance, f"it is {ours[0]:.4f}")

    name = example.picture.rpartition("/")[2]
    found = verdict(f"{name} scores {example.value:.4f} ± {example.tolerance:g} as in {example.source}", holds)
    return Verdict(found.law, found.result, found.why or f"it is {ours[0]:.4f}")


def picture(address: str) -> Float[Tensor, "3 H W"]:
    """The picture at a web address or path. ArtifactError where there is none."""
    if not address.startswith(("https://", "http://")):
        return read_image(Path(address))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(_fetched(address))
        return read_image(path)


def _fetched(address: str) -> bytes:
    data = bytearray()
    try:
        with httpx2.stream("GET", address, timeout=TIMEOUT, follow_redirects=True) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_BYTES:
                    raise ArtifactError(f"is above {MAX_BYTES} bytes", place=address, remedy="is it a picture?")
    except httpx2.HTTPError as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArtifactError(f"cannot be fetched ({reason})", place=address, remedy="try with a connection") from None
    return bytes(data)
