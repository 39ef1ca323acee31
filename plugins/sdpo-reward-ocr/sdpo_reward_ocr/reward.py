"""Reads pictures with RapidOCR and compares what they say with what they should say."""

import numpy as np
import torch
from jaxtyping import Float
from rapidocr import RapidOCR
from torch import Tensor

from sdpo_cli.api import UsageError
from sdpo_cli.api.images import to_uint8
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_reward_ocr import OcrOptions
from sdpo_reward_ocr.text import accuracy, cleaned, wanted


class Ocr:
    """1 - edit distance / length of the wanted text, of each picture alone."""

    def __init__(self, options: OcrOptions) -> None:
        self.options = options
        threads = options.threads or -1  # -1: ONNX Runtime takes every core
        self.engine = RapidOCR(
            params={
                "Global.log_level": "critical",  # it warns of every picture without text
                "Global.text_score": options.min_confidence,
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def score(self, request: ScoreRequest) -> ScoreResult:
        """One value a picture, 0..1. UsageError where a prompt wants no text and `no_target` is `error`."""
        metadata = request.metadata or [{} for _ in request.prompts]
        targets = [
            self.target(index, prompt, dict(said))
            for index, (prompt, said) in enumerate(zip(request.prompts, metadata, strict=True))
        ]
        texts = [
            cleaned(self.options, self.read(image)) if target else ""
            for image, target in zip(request.images, targets, strict=True)
        ]
        values = [
            accuracy(target, text, contained=self.options.contained) if target else 0.0
            for target, text in zip(targets, texts, strict=True)
        ]
        device = request.images.device
        read = torch.tensor([len(text) for text in texts], dtype=torch.float32, device=device)
        return ScoreResult(torch.tensor(values, dtype=torch.float32, device=device), {"characters_read": read})

    def target(self, index: int, prompt: str, metadata: dict[str, object]) -> str:
        """The wanted text as it is compared; empty where there is none and that counts 0."""
        target = cleaned(self.options, wanted(self.options, prompt, metadata))
        if not target and self.options.no_target == "error":
            raise UsageError(
                f"picture {index} has no wanted text: {shortened(prompt)!r} has none in double quotes",
                place="reward ocr",
                remedy="quote it in the prompt, set the option target, or set no_target to zero",
            )
        return target

    def read(self, image: Float[Tensor, "3 H W"]) -> str:
        """Every line that the reader finds in a picture, from top to bottom, joined by a space."""
        levels = to_uint8(image).permute(1, 2, 0).cpu().numpy()
        lines = self.engine(np.ascontiguousarray(levels[:, :, ::-1])).txts  # it takes an array for BGR
        return " ".join(lines or ())


def shortened(text: str, limit: int = 60) -> str:
    """The text, cut to `limit` letters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
