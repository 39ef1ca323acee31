"""The reward `http`: pictures to several servers at once, values back in order."""

import asyncio
import io
from collections.abc import Sequence
from functools import partial

import httpx2
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from sdpo_cli.api.remote import Answer, Info, Limits, Picture, Question, base64_text, number_lists
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.builtin.remote import HttpOptions
from sdpo_cli.builtin.remote.exchange import exchange, patiently
from sdpo_cli.errors import PluginError
from sdpo_cli.maths.images import to_uint8

PLACE = "reward http"

FRAME = 2000
"""Bytes of a question around the data of one picture, its prompt included, roughly."""


class RemoteReward:
    """A reward that servers hold. Each of them is asked one question at a time; a failed one goes to the next server.

    Attributes:
        identity: name, version and options of what is served; should it change, that is an error.
    """

    def __init__(self, options: HttpOptions, token: str | None) -> None:
        self.options = options
        self._headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self._tls = httpx2.create_ssl_context() if any(url.startswith("https") for url in options.urls) else False
        infos = asyncio.run(self._meet())
        self._info, self._limits = infos[0], least([info.limits for info in infos])
        self.identity = described(infos[0])

    def score(self, request: ScoreRequest) -> ScoreResult:
        """The servers' values. PluginError, naming server, fault and remedy, when the last try has failed."""
        device = request.images.device
        answers = asyncio.run(self._ask_all(request)) if len(request.images) else []
        lists = [dict(number_lists(answer)) for answer in answers]
        if any(one.keys() != lists[0].keys() for one in lists):
            raise PluginError("gives details of some pictures only", place=PLACE, remedy="mend the served reward")
        names = list(answers[0].details) if answers else []
        columns = [[number for answer in answers for number in answer.values]]
        columns += [[number for answer in answers for number in answer.details[name]] for name in names]
        values, *details = (torch.tensor(column, dtype=torch.float32, device=device) for column in columns)
        return ScoreResult(values, dict(zip(names, details, strict=True)))

    def _client(self) -> httpx2.AsyncClient:
        # Nothing from the environment and no redirects: a proxy or another host would get the token.
        return httpx2.AsyncClient(
            headers=self._headers, verify=self._tls, trust_env=False, follow_redirects=False, timeout=None
        )

    async def _meet(self) -> list[Info]:
        """What each server says about itself. PluginError where they do not serve the same."""
        infos: list[Info] = []
        async with self._client() as client:
            for url in self.options.urls:
                ask = partial(self._info_of, client)
                infos.append((await patiently(self.options, [url], ask))[1])
                if described(infos[-1]) != described(infos[0]):
                    fault = f"{url} serves {described(infos[-1])}, {self.options.urls[0]} {described(infos[0])}"
                    raise PluginError(fault, place=PLACE, remedy="let all servers serve the same")
        return infos

    async def _info_of(self, client: httpx2.AsyncClient, url: str) -> Info:
        return await exchange(client, "GET", f"{url}/info", Info, self.options.timeout)

    async def _ask_all(self, request: ScoreRequest) -> list[Answer]:
        levels = to_uint8(request.images).permute(0, 2, 3, 1).contiguous().cpu()
        gates = {url: asyncio.Semaphore(1) for url in self.options.urls}
        parts = torch.arange(len(levels)).split(self._batch(levels))
        async with self._client() as client:
            asked = [
                self._ask(client, gates, number, request, levels, rows.tolist()) for number, rows in enumerate(parts)
            ]
            return list(await asyncio.gather(*asked))

    def _batch(self, levels: UInt8[Tensor, "B H W 3"]) -> int:
        """How many pictures of this size a question may hold; at least one."""
        pixels, limits = levels.shape[1] * levels.shape[2], self._limits
        room = min(limits.max_pixels // pixels, limits.max_bytes // (4 * pixels + FRAME))
        return max(1, min(self.options.batch, limits.max_images, room))

    async def _ask(
        self,
        client: httpx2.AsyncClient,
        gates: dict[str, asyncio.Semaphore],
        number: int,
        request: ScoreRequest,
        levels: UInt8[Tensor, "B H W 3"],
        rows: Sequence[int],
    ) -> Answer:
        """The answer to question `number`, which goes to the server whose turn it is first."""

        async def ask(url: str) -> Answer:
            async with gates[url]:  # the question is made when it can be sent: many of them take memory
                content = question(request, levels, rows, self.options.encoding).model_dump_json().encode()
                return await exchange(client, "POST", f"{url}/score", Answer, self.options.timeout, content)

        first = number % len(self.options.urls)
        turn = self.options.urls[first:] + self.options.urls[:first]
        url, answer = await patiently(self.options, turn, ask)
        self._check(url, answer, len(rows))
        return answer

    def _check(self, url: str, answer: Answer, count: int) -> None:
        """PluginError unless it is the reward that was met, with a number for each picture."""
        if (answer.reward, answer.version) != (self._info.reward, self._info.version):
            known = f"{self._info.reward} {self._info.version}"
            fault = f"{url} serves {answer.reward} {answer.version} now and served {known} before"
            raise PluginError(fault, place=PLACE, remedy="serve one version to the end")
        for name, numbers in number_lists(answer):
            if len(numbers) != count:
                fault = f"{url} gave {len(numbers)} {name} for {count} pictures"
                raise PluginError(fault, place=PLACE, remedy="mend the served reward")


def described(info: Info) -> str:
    """`emoji-style 1 (style=flat)`"""
    options = ", ".join(f"{name}={value}" for name, value in sorted(info.options.items()))
    return f"{info.reward} {info.version}" + f" ({options})" * bool(options)


def least(limits: Sequence[Limits]) -> Limits:
    """What all servers take."""
    return Limits(**{name: min(getattr(one, name) for one in limits) for name in Limits.model_fields})


def question(request: ScoreRequest, levels: UInt8[Tensor, "B H W 3"], rows: Sequence[int], encoding: str) -> Question:
    """Some of the pictures, with their prompts and metadata."""
    height, width = levels.shape[1:3]
    return Question(
        images=[
            Picture(encoding=encoding, height=height, width=width, data=base64_text(encoded(levels[row], encoding)))
            for row in rows
        ],
        prompts=[request.prompts[row] for row in rows],
        metadata=[dict(request.metadata[row]) for row in rows] if request.metadata else [],
    )


def encoded(levels: UInt8[Tensor, "H W 3"], encoding: str) -> bytes:
    """The bytes of one picture."""
    if encoding == "rgb8":
        return levels.numpy().tobytes()
    file = io.BytesIO()
    Image.fromarray(levels.numpy()).save(file, "PNG", compress_level=1)
    return file.getvalue()
