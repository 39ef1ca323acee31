"""Asks the judge about each picture and gives the ratings in their order."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sdpo_cli.api import PluginError
from sdpo_cli.api.images import to_uint8
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_reward_vlm import VlmOptions
from sdpo_reward_vlm.answer import Rating, rating
from sdpo_reward_vlm.client import Client
from sdpo_reward_vlm.question import PLACE, question

TOP_LOGPROBS = 20
"""The most that the protocol allows."""


class Judge:
    """The rating of each picture, asked for on its own."""

    def __init__(self, options: VlmOptions) -> None:
        self.options, self.question, self.client = options, question(options), Client(options)

    def score(self, request: ScoreRequest) -> ScoreResult:
        """One value a picture. PluginError where the server fails, or an answer is unreadable and that is an error."""
        pool, stop = ThreadPoolExecutor(self.options.concurrency), Event()
        ask = partial(self.ask, stop)
        try:
            ratings = list(pool.map(ask, range(len(request.images)), request.images.cpu(), request.prompts))
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)  # after a fault, questions under way are left to end
        asked, device = self.question, request.images.device
        raw = torch.tensor([one.value if one else asked.low for one in ratings], dtype=torch.float32, device=device)
        values = (raw - asked.low) / (asked.high - asked.low) if self.options.scale == "unit" else raw
        details = {
            "rating": raw,
            "rating_mass": torch.tensor([one.mass if one else 0.0 for one in ratings], device=device),
            "unreadable": torch.tensor([float(one is None) for one in ratings], device=device),
        }
        return ScoreResult(values, details)

    def ask(self, stop: Event, index: int, image: Float[Tensor, "3 H W"], prompt: str) -> Rating | None:
        """The rating of one picture; None where it is unreadable and that counts the lowest."""
        completion = self.client.complete(self.body(image, prompt), stop)
        found = rating(self.question, completion)
        if found is None and self.options.on_unreadable == "error":
            said = " ".join((completion["choices"][0]["message"]["content"] or "").split())[:200]
            raise PluginError(
                f"no rating can be read from the answer about picture {index}: {said!r}",
                place=PLACE,
                remedy="ask in another way (template, pattern, tokens), or set on_unreadable to min",
            )
        return found

    def body(self, image: Float[Tensor, "3 H W"], prompt: str) -> dict[str, Any]:
        """The chat request about one picture."""
        content = [
            {"type": "image_url", "image_url": {"url": data_url(image, self.options.max_side)}},
            {"type": "text", "text": self.question.template.replace("{prompt}", prompt)},
        ]
        body: dict[str, Any] = {
            "model": self.options.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "seed": self.options.seed,
            "max_tokens": self.question.max_tokens,
        }
        if self.question.mode == "logprobs":
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return body


def data_url(image: Float[Tensor, "3 H W"], max_side: int) -> str:
    """A picture 0..1 as a PNG in a data URL, made smaller where a side is above `max_side` pixels."""
    picture = Image.fromarray(to_uint8(image).permute(1, 2, 0).numpy())
    picture.thumbnail((max_side, max_side), Image.Resampling.BICUBIC, reducing_gap=None)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
