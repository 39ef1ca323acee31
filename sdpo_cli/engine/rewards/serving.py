"""A reward behind HTTP: the server side of `sdpo_cli.api.remote`, as an ASGI application.

The reward scores one question at a time, in a thread of its own. At most two questions are held in memory, the one that
is being scored and the next; others wait unread. A question that is not answered in time is refused and its connection
closed; the reward itself cannot be interrupted, so the questions after it wait for it.
"""

import asyncio
import hmac
import os
import queue
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import ValidationError
from torch import Tensor

from sdpo_cli.api.remote import Answer, Info, Limits, Message, Picture, Question, Refusal, first_fault
from sdpo_cli.api.tensors import Reward, ScoreRequest, ScoreResult
from sdpo_cli.engine.disk.images import read_png
from sdpo_cli.engine.rewards.scorer import Worker
from sdpo_cli.engine.rewards.scoring import checked_score
from sdpo_cli.errors import ArtifactError, SdpoError, UsageError, one_line

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HELD = 2
"""Questions in memory at once."""

CONNECTIONS = 128
"""Connections at once; further ones are told to come back later."""

GRACE = 10
"""Seconds that a server told to stop gives to the questions it has taken."""

BACKLOG = 128


class RefusedError(Exception):
    """Why a question is not answered; `status` is HTTP's."""

    def __init__(self, status: int, error: str) -> None:
        self.status = status
        super().__init__(one_line(error))


@dataclass(frozen=True)
class Service:
    """What is served, and to whom.

    Attributes:
        info: what `/info` says; its limits are kept.
        reward: the plug-in's object.
        device: where it wants its pictures.
        token: what clients must know; None lets everybody in.
    """

    info: Info
    reward: Reward
    device: torch.device
    token: str | None


class Desk:
    """Takes questions one by one to the reward's thread."""

    def __init__(self, service: Service) -> None:
        self.service, self.worker = service, Worker(HELD)
        self.places = asyncio.Semaphore(HELD)

    async def answer(self, request: "Request") -> Answer:
        """The scores. RefusedError where there are none, whatever the reason."""
        limits = self.service.info.limits
        refuse_unfit(request.headers, limits)
        try:
            async with asyncio.timeout(limits.timeout), self.places:
                body = await limited_body(request, limits.max_bytes)
                asked = partial(score_question, self.service, body)
                result = await asyncio.wrap_future(self.worker.put(asked, timeout=0))
        except queue.Full:  # by questions that were given up
            raise RefusedError(503, "the reward is at work on a question that took too long") from None
        except TimeoutError:
            raise RefusedError(504, f"not answered within {limits.timeout:g} s") from None
        values = {name: detail.tolist() for name, detail in result.details.items()}
        info = self.service.info
        return Answer(reward=info.reward, version=info.version, values=result.values.tolist(), details=values)


def refuse_unfit(headers: Mapping[str, str], limits: Limits) -> None:
    """RefusedError where a question need not even be read."""
    if headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise RefusedError(415, "a question is sent as application/json")
    if "content-encoding" in headers:
        raise RefusedError(415, "a question is sent without compression")
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > limits.max_bytes:
        raise RefusedError(413, f"the question has {length} bytes, above {limits.max_bytes}; send fewer pictures")


async def limited_body(request: "Request", limit: int) -> bytes:
    """What the client sends, read no further than `limit`."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise RefusedError(413, f"the question has more than {limit} bytes; send fewer pictures")
    return bytes(body)


def parsed(body: bytes) -> Question:
    """The question. RefusedError where it is none."""
    try:
        return Question.model_validate_json(body)
    except ValidationError as error:
        raise RefusedError(400, first_fault(error)) from None


def score_question(service: Service, body: bytes) -> ScoreResult:
    """The scores, on the CPU. RefusedError where there are none."""
    question = parsed(body)
    refuse_too_large(question, service.info.limits)
    count = len(question.images)
    images = [decoded(picture, f"images.{number}") for number, picture in enumerate(question.images)]
    batch = torch.stack(images) if images else torch.zeros(0, 3, 1, 1)
    request = ScoreRequest(
        batch.to(service.device), question.prompts or [""] * count, question.metadata or [{}] * count
    )
    try:
        result = checked_score(service.info.reward, service.reward, request)
    except SdpoError as error:
        raise RefusedError(500, str(error)) from error
    return ScoreResult(result.values.cpu(), {name: detail.cpu() for name, detail in result.details.items()})


def refuse_too_large(question: Question, limits: Limits) -> None:
    """RefusedError where there is too much, or not as much of everything as there are pictures."""
    count, sizes = len(question.images), {(picture.height, picture.width) for picture in question.images}
    if count > limits.max_images:
        raise RefusedError(413, f"the question has {count} pictures, above {limits.max_images}; send fewer at once")
    if len(sizes) > 1:
        raise RefusedError(400, "images: the pictures of a question have one size; send a question for each size")
    pixels = sum(picture.height * picture.width for picture in question.images)
    if pixels > limits.max_pixels:
        raise RefusedError(413, f"the question has {pixels} pixels, above {limits.max_pixels}; send fewer pictures")
    for name, given in (("prompts", question.prompts), ("metadata", question.metadata)):
        if given and len(given) != count:
            raise RefusedError(400, f"{name}: there are {len(given)} for {count} pictures")


def decoded(picture: Picture, place: str) -> Float[Tensor, "3 H W"]:
    """The picture 0..1. RefusedError where its bytes are not of the size it claims."""
    try:
        content = picture.content()
    except ValueError:
        raise RefusedError(400, f"{place}.data: is no base64") from None
    height, width = picture.height, picture.width
    if picture.encoding == "png":
        try:
            image = read_png(content, place, (width, height))
        except ArtifactError as error:
            raise RefusedError(400, str(error)) from None
        if image.shape != (3, height, width):  # its EXIF orientation turns it
            raise RefusedError(400, f"{place}: lies on its side; send it upright")
        return image
    if len(content) != height * width * 3:
        raise RefusedError(400, f"{place}.data: has {len(content)} bytes, not {height} x {width} x 3")
    levels = np.frombuffer(content, np.uint8).reshape(height, width, 3)
    return torch.from_numpy(levels.copy()).permute(2, 0, 1).float() / 255


def make_app(service: Service) -> "Starlette":
    """The application."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from starlette.routing import Route

    desk = Desk(service)

    def route(path: str, method: str, work: Callable[["Request"], Awaitable[Message | Mapping[str, Any]]]) -> Route:
        async def endpoint(request: "Request") -> "Response":
            try:
                if path != "/health":
                    refuse_stranger(request.headers.get("authorization", ""), service.token)
                return reply(200, await work(request))
            except RefusedError as error:
                return reply(error.status, Refusal(error=str(error)))
            except ClientDisconnect:
                return reply(400, Refusal(error="the question ended early"))

        return Route(path, endpoint, methods=[method])

    async def health(request: "Request") -> Mapping[str, str]:
        return {"status": "ok"}

    async def info(request: "Request") -> Info:
        return service.info

    @asynccontextmanager
    async def lifespan(app: "Starlette") -> AsyncIterator[None]:
        yield
        desk.worker.close(wait=False)

    routes = [route("/health", "GET", health), route("/info", "GET", info), route("/score", "POST", desk.answer)]
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: elsewhere})


async def elsewhere(request: "Request", error: Exception) -> "Response":
    """The refusal of a path or method that there is not."""
    status: int = getattr(error, "status_code", 404)
    return reply(status, Refusal(error="there are GET /health, GET /info and POST /score"))


def refuse_stranger(authorization: str, token: str | None) -> None:
    """RefusedError unless the header has the token; how long that takes says nothing about the token."""
    if token is not None and not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
        raise RefusedError(401, "the token is missing or wrong")


def reply(status: int, said: Message | Mapping[str, Any]) -> "Response":
    """A message as JSON; after a refusal the connection is closed, for the question may not have been read."""
    from starlette.responses import JSONResponse

    content = said.model_dump(mode="json") if isinstance(said, Message) else dict(said)
    return JSONResponse(content, status, {"connection": "close"} if status >= 400 else None)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free. UsageError where it cannot."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        place, reason = f"{host}:{port}", os.strerror(error.errno) if (error.errno or 0) > 0 else error.strerror
        raise UsageError(f"cannot listen ({reason})", place=place, remedy="choose another --port or --host") from None


def serve(app: "Starlette", listener: socket.socket) -> None:
    """Answer until SIGINT or SIGTERM, which give the questions at hand `GRACE` seconds. Call it in the main thread."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
    uvicorn.Server(config).run(sockets=[listener])
