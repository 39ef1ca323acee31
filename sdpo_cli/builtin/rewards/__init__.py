"""The shipped rewards: by the embedded scorer, by CLIP ViT-L/14, and the classic ones that need no network."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdpo_cli.api import HubFiles, LoadContext, Options, RewardSpec, UserPath, hookimpl
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
    from sdpo_cli.api.clip import ClipSource
    from sdpo_cli.api.tensors import Reward

SDPO_PLUGIN_API = 1

CLIP_L = HubFiles("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", ("model.safetensors",))
AESTHETIC_HEAD = HubFiles(
    "ttj/sac-logos-ava1-l14-linearMSE", "1e77fa05081323d99725fc40a9bf9f88180490e7", ("model.safetensors",)
)


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


class ClipOptions(Options):
    """Which CLIP ViT-L/14, and how it computes."""

    path: UserPath | None = Field(
        default=None, description="file or folder of CLIP ViT-L/14 weights; OpenAI's from the model hub where null"
    )
    dtype: Literal["float32", "float16"] = Field(
        default="float32", description="float16 is faster; scores move by up to 5 % of their spread"
    )


class AestheticOptions(ClipOptions):
    """Which CLIP and which head."""

    head: UserPath | None = Field(
        default=None, description="the head, safetensors or the original .pth; from the model hub where null"
    )


class ClipScoreOptions(ClipOptions):
    """Which CLIP and which of the circulating scales."""

    scale: Literal["cos", "logit", "paper", "percent"] = Field(
        default="cos",
        description="cos; logit: 100 cos; paper (Hessel): 2.5 max(cos, 0); percent (torchmetrics): 100 max(cos, 0)",
    )


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


def load_aesthetic(options: AestheticOptions, context: LoadContext) -> "Reward":
    """LAION's aesthetic predictor."""
    from sdpo_cli.api.clip import image_tower
    from sdpo_cli.api.hub import fetch
    from sdpo_cli.builtin.rewards.aesthetic import Aesthetic

    head = Path(options.head) if options.head else fetch(AESTHETIC_HEAD)
    return Aesthetic(image_tower(clip_source(options, context)), head)


def load_clipscore(options: ClipScoreOptions, context: LoadContext) -> "Reward":
    """Cosine of picture and prompt by CLIP ViT-L/14, in the chosen scale."""
    from sdpo_cli.builtin.rewards.clipscore import clipscore

    return clipscore(clip_source(options, context), options.scale)


def clip_source(options: ClipOptions, context: LoadContext) -> "ClipSource":
    """The CLIP that the options mean."""
    from sdpo_cli.api import clip
    from sdpo_cli.api.hub import fetch

    path = Path(options.path) if options.path else fetch(CLIP_L)
    return clip.ClipSource(path, clip.CLIP_L, context.device, options.dtype)


def aesthetic_needs(options: AestheticOptions) -> Sequence[HubFiles]:
    """CLIP and the head, where they are not given."""
    return [*clip_needs(options), *([] if options.head else [AESTHETIC_HEAD])]


def clip_needs(options: ClipOptions) -> Sequence[HubFiles]:
    """CLIP, where it is not given."""
    return [] if options.path else [CLIP_L]


@hookimpl
def sdpo_rewards() -> Sequence[RewardSpec]:
    """Four rewards by the embedded scorer, two by CLIP, three without a network."""
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
            name="aesthetic",
            summary="LAION's aesthetic predictor v2: about 4 to 7, nominally 1 to 10",
            version="1",
            source="Schuhmann, improved-aesthetic-predictor, sac+logos+ava1-l14-linearMSE",
            options=AestheticOptions,
            load=load_aesthetic,
            needs=aesthetic_needs,
            facts={
                "licence": "code and head Apache-2.0, CLIP MIT",
                "scale": "raw, no clamp",
                "preprocessing": "as CLIP's with Pillow, exactly",
            },
        ),
        RewardSpec(
            name="clipscore",
            summary="how well a picture shows its prompt, by CLIP ViT-L/14: cosine, about 0.2 to 0.35",
            version="1",
            source="Hessel et al., CLIPScore, arXiv 2104.08718",
            options=ClipScoreOptions,
            load=load_clipscore,
            needs=clip_needs,
            facts={
                "licence": "MIT",
                "scale": "cos; the option `scale` names others; the detail `cos` is the cosine in any case",
                "preprocessing": "as CLIP's with Pillow, exactly",
            },
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
