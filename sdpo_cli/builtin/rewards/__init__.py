"""The shipped rewards: by the embedded scorer, and the classic ones that need no network."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from sdpo_cli.api import LoadContext, Options, RewardSpec, hookimpl
from sdpo_cli.builtin.rewards.captions import (
    COLORS,
    PLACES,
    STYLES,
    Color,
    Place,
    Style,
    with_color,
    with_place,
    with_style,
)

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import Reward

SDPO_PLUGIN_API = 1


class AlignmentOptions(Options):
    """None."""


class StyleOptions(Options):
    """Which style is wanted."""

    style: Style = Field(default="3d", description="the style to be probable")


class ColorOptions(Options):
    """Which colour is wanted."""

    color: Color = Field(default="red", description="the colour of the first animal to be probable")


class PlaceOptions(Options):
    """Which place is wanted."""

    place: Place = Field(default="on the moon", description="the place to be probable")


class JpegOptions(Options):
    """How the JPEG is written."""

    quality: int = Field(default=95, ge=1, le=100, description="Pillow's JPEG quality")


class ColorfulnessOptions(Options):
    """None."""


def load_alignment(options: AlignmentOptions, context: LoadContext) -> "Reward":
    """Cosine of picture and prompt."""
    from sdpo_cli.builtin.rewards.emoji import EmojiAlignment, emoji_scorer

    return EmojiAlignment(emoji_scorer(context.device))


def load_style(options: StyleOptions, context: LoadContext) -> "Reward":
    """Probability of a style."""
    from sdpo_cli.builtin.rewards.emoji import EmojiAttribute, emoji_scorer

    return EmojiAttribute(emoji_scorer(context.device), options.style, STYLES, with_style)


def load_color(options: ColorOptions, context: LoadContext) -> "Reward":
    """Probability of a colour."""
    from sdpo_cli.builtin.rewards.emoji import EmojiAttribute, emoji_scorer

    return EmojiAttribute(emoji_scorer(context.device), options.color, COLORS, with_color)


def load_place(options: PlaceOptions, context: LoadContext) -> "Reward":
    """Probability of a place."""
    from sdpo_cli.builtin.rewards.emoji import EmojiAttribute, emoji_scorer

    return EmojiAttribute(emoji_scorer(context.device), options.place, PLACES, with_place)


def load_incompressibility(options: JpegOptions, context: LoadContext) -> "Reward":
    """JPEG size, large is good."""
    from sdpo_cli.builtin.rewards.jpeg import JpegSize

    return JpegSize(1, options.quality)


def load_compressibility(options: JpegOptions, context: LoadContext) -> "Reward":
    """JPEG size, small is good."""
    from sdpo_cli.builtin.rewards.jpeg import JpegSize

    return JpegSize(-1, options.quality)


def load_colorfulness(options: ColorfulnessOptions, context: LoadContext) -> "Reward":
    """Colourfulness."""
    from sdpo_cli.builtin.rewards.colorfulness import Colorfulness

    return Colorfulness()


@hookimpl
def sdpo_rewards() -> Sequence[RewardSpec]:
    """Four rewards by the embedded scorer, three without a network."""
    scorer = "the embedded CLIP `emoji-clip`; Radford et al., arXiv 2103.00020"
    ddpo = "Black et al., DDPO, arXiv 2305.13301"
    return [
        RewardSpec(
            name="emoji-clip",
            summary="how well an emoji picture shows its prompt: cosine, about 0.8 is good",
            version="1",
            source=scorer,
            options=AlignmentOptions,
            load=load_alignment,
        ),
        RewardSpec(
            name="emoji-style",
            summary="probability that an emoji picture is 3d, flat or cartoon",
            version="1",
            source=scorer,
            options=StyleOptions,
            load=load_style,
        ),
        RewardSpec(
            name="emoji-color",
            summary="probability that the animal of an emoji picture has a colour",
            version="1",
            source=scorer,
            options=ColorOptions,
            load=load_color,
        ),
        RewardSpec(
            name="emoji-place",
            summary="probability that an emoji picture is set in a place",
            version="1",
            source=scorer,
            options=PlaceOptions,
            load=load_place,
        ),
        RewardSpec(
            name="jpeg-incompressibility",
            summary="kB of the picture as a JPEG: detail",
            version="1",
            source=ddpo,
            options=JpegOptions,
            load=load_incompressibility,
        ),
        RewardSpec(
            name="jpeg-compressibility",
            summary="minus the kB of the picture as a JPEG: flatness",
            version="1",
            source=ddpo,
            options=JpegOptions,
            load=load_compressibility,
        ),
        RewardSpec(
            name="colorfulness",
            summary="colourfulness of the picture: 0 is gray, 109 extreme",
            version="1",
            source="Hasler and Süsstrunk, Measuring colourfulness in natural images, 2003",
            options=ColorfulnessOptions,
            load=load_colorfulness,
        ),
    ]
