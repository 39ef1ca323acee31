"""Human Preference Score v2 and v2.1: an open_clip ViT-H-14 taught on rankings of pictures for a prompt.

Source: Wu et al., Human Preference Score v2, arXiv 2306.09341.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdpo_cli.api import Example, HubFiles, LoadContext, Options, RewardSpec, UserPath, hookimpl

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import Reward

SDPO_PLUGIN_API = 1

REPO, REVISION = "xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a"
FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}

PUBLISHED = Example(
    picture="https://raw.githubusercontent.com/tgxs002/HPSv2/HEAD/assets/demo_image.jpg",
    prompt="A cat with two horns on its head",
    value=0.2876,
    tolerance=0.01,
    source="a reply in issue 27 of github.com/tgxs002/HPSv2",
    options={"version": "v2.0"},
)
"""Not stated there: which release of the package, so whether its resize was antialiased."""


class HpsOptions(Options):
    """Which weights, how they compute, and what they are shown."""

    version: Literal["v2.0", "v2.1"] = Field(
        default="v2.1", description="v2.0 (the hpsv2 package's default) or v2.1; their scores cannot be compared"
    )
    preprocessing: Literal["official", "clip"] = Field(
        default="official", description="official: longest side to 224, black borders; clip: shortest side, centre"
    )
    path: UserPath | None = Field(
        default=None,
        description="file of HPS v2 weights (.pt or safetensors) or a folder; the authors' from the hub where null",
    )
    dtype: Literal["float32", "float16"] = Field(
        default="float32", description="float16 is faster; scores move by about 3 % of their spread"
    )
    scale: Literal["cos", "logit"] = Field(
        default="cos", description="cos, as the package has it; logit: exp(logit_scale) cos, about 25 to 35"
    )


def load(options: HpsOptions, context: LoadContext) -> "Reward":
    """The cosine of picture and prompt, in the chosen scale."""
    from sdpo_cli.api.clip import CLIP_H, ClipReward, ClipSource, image_tower, text_tower
    from sdpo_cli.api.hub import fetch
    from sdpo_cli.api.images import clip_pixels, padded_pixels

    path = Path(options.path) if options.path else fetch(weights(options))
    original = path / FILES[options.version]
    source = ClipSource(original if original.is_file() else path, CLIP_H, context.device, options.dtype)
    prepare = {"official": padded_pixels, "clip": clip_pixels}[options.preprocessing]
    text = text_tower(source, clean)
    factor = {"cos": 1.0, "logit": text.logit_scale}[options.scale]
    return ClipReward(image_tower(source), text, lambda cosines: factor * cosines, prepare)


def clean(prompt: str) -> str:
    """What open_clip does to a prompt first: mend Unicode, undo HTML's entities twice, single blanks, lower case."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split()).lower()


def weights(options: HpsOptions) -> HubFiles:
    """The authors' file of the chosen version."""
    return HubFiles(REPO, REVISION, (FILES[options.version],))


def needs(options: HpsOptions) -> Sequence[HubFiles]:
    """The weights, where they are not given."""
    return [] if options.path else [weights(options)]


@hookimpl
def sdpo_rewards() -> Sequence[RewardSpec]:
    """HPS v2 and v2.1."""
    return [
        RewardSpec(
            name="hpsv2",
            summary="Human Preference Score v2.1 or v2.0: cosine, about 0.25 to 0.35",
            version="1",
            source="Wu et al., Human Preference Score v2, arXiv 2306.09341",
            options=HpsOptions,
            load=load,
            needs=needs,
            examples=[PUBLISHED],
            facts={
                "licence": "code and weights Apache-2.0",
                "scale": "cos; the option `scale` names another; the detail `cos` is the cosine in any case",
                "preprocessing": "official: float, without rounding or clamp; clip: as CLIP's with Pillow, exactly",
            },
        )
    ]
