"""The reward `ocr`: how much of the wanted text a text reader finds in the picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sdpo_cli.api import LoadContext, Options, RewardSpec, hookimpl

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import Reward

SDPO_PLUGIN_API = 1


class OcrOptions(Options):
    """Which text is wanted, how it is compared, and how pictures are read."""

    target: str = Field(default="", description="the wanted text of every picture; empty: the prompt says it")
    metadata_key: str = Field(
        default="text", description="where a prompt's metadata says the wanted text; else the first quotes do"
    )
    no_target: Literal["error", "zero"] = Field(
        default="error", description="a prompt that wants no text: stop, or score 0"
    )
    contained: bool = Field(default=True, description="other text around the wanted one costs nothing")
    ignore_case: bool = Field(default=True, description="compare in lower case")
    ignore_spaces: bool = Field(default=True, description="compare without white space")
    ignore_punctuation: bool = Field(default=False, description="compare letters and digits alone")
    fold_width: bool = Field(default=True, description="take full-width forms for plain ones (Unicode NFKC)")
    min_confidence: float = Field(default=0.5, ge=0, le=1, description="lines read with less confidence are left out")
    threads: int = Field(default=0, ge=0, le=256, description="CPU threads of the reader; 0: one a core")


def load(options: OcrOptions, context: LoadContext) -> "Reward":
    """The reward with its reader; the reader's models come with its package, and always run on the CPU."""
    from sdpo_reward_ocr.reward import Ocr

    return Ocr(options)


@hookimpl
def sdpo_rewards() -> Sequence[RewardSpec]:
    """One reward."""
    return [
        RewardSpec(
            name="ocr",
            summary="how much of the text in the prompt's quotes can be read in the picture, 0..1",
            version="1",
            source="the OCR reward of Flow-GRPO, arXiv 2505.05470, read by RapidOCR (PP-OCRv6)",
            options=OcrOptions,
            load=load,
            facts={
                "scale": "1 - edit distance / length of the wanted text: 0..1",
                "licence": "Apache-2.0; RapidOCR and its models Apache-2.0, ONNX Runtime MIT",
                "checkpoint": "PP-OCRv6 small, inside the package rapidocr; nothing is downloaded",
            },
        )
    ]
