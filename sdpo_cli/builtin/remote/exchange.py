"""One message to a server and its answer, and how often that is tried: bounded, patient, suspicious of what is told."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import httpx2
from pydantic import ValidationError

from sdpo_cli.api.remote import Message, Refusal, first_fault
from sdpo_cli.builtin.remote import HttpOptions
from sdpo_cli.errors import PluginError, one_line

LARGEST_ANSWER = 8_000_000
"""Bytes of an answer that are read."""

LONGEST_PAUSE = 30.0
"""Seconds between two tries at the most."""

TRY_AGAIN = (408, 425, 429)
"""Statuses below 500 that may be different next time."""

LOG = "look at the server's log"

M = TypeVar("M", bound=Message)
T = TypeVar("T")


class FailedError(Exception):
    """One try failed; `again` says whether another one may do better."""

    def __init__(self, fault: str, remedy: str = LOG, *, again: bool = True) -> None:
        self.fault, self.remedy, self.again = one_line(fault), remedy, again
        super().__init__(self.fault)


async def patiently(options: HttpOptions, urls: Sequence[str], attempt: Callable[[str], Awaitable[T]]) -> tuple[str, T]:
    """The first success, each try with the next of `urls`, and the URL it came from.

    PluginError, naming server, fault and remedy, after the last try.
    """
    for number in range(options.retries + 1):
        url = urls[number % len(urls)]
        try:
            return url, await attempt(url)
        except FailedError as error:
            failed = error
        if not failed.again:
            break
        if number < options.retries:
            await asyncio.sleep(min(options.backoff * 2**number, LONGEST_PAUSE))
    tries = f" ({number + 1} tries)" if number else ""
    raise PluginError(f"{url}{tries} {failed.fault}", place="reward http", remedy=failed.remedy)


async def exchange(
    client: httpx2.AsyncClient, method: str, url: str, kind: type[M], timeout: float, content: bytes | None = None
) -> M:
    """Send `content` and read the answer as `kind`. FailedError where there is none."""
    try:
        async with asyncio.timeout(timeout), client.stream(method, url, content=content) as response:
            body = await limited_body(response)
    except (TimeoutError, httpx2.TimeoutException):
        raise FailedError(f"gave no answer in {timeout:g} s", "raise timeout, or look at the server") from None
    except httpx2.ConnectError as error:
        remedy = "start it with `sdpo serve-reward NAME`, or correct urls"
        raise FailedError(f"cannot be reached ({error or type(error).__name__})", remedy) from None
    except httpx2.HTTPError as error:
        raise FailedError(f"broke off ({error or type(error).__name__})") from None
    refuse_status(response, body)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        fault = f"answers something else than protocol 1 ({first_fault(error)})"
        raise FailedError(fault, "ask a server that `sdpo serve-reward` or docs/remote-rewards.md describes") from None


async def limited_body(response: httpx2.Response) -> bytes:
    """The body as it comes, unpacked by nobody. FailedError where it is too large or packed."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FailedError("compresses its answer unasked")
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > LARGEST_ANSWER:
            raise FailedError(f"answers with more than {LARGEST_ANSWER // 1_000_000} MB")
    return bytes(body)


def refuse_status(response: httpx2.Response, body: bytes) -> None:
    """FailedError unless the status is 200."""
    status = response.status_code
    if status == 200:
        return
    if 300 <= status < 400:
        where = response.headers.get("location", "nowhere")[:200]
        raise FailedError(f"redirects to {where}", "name that address in urls if you trust it", again=False)
    try:
        said = Refusal.model_validate_json(body).error[:1000]
    except ValidationError:
        said = f"status {status}"
    if status in (401, 403):
        raise FailedError(f"refuses: {said}", "put its token into the variable that token_env names", again=False)
    raise FailedError(f"refuses: {said}", again=status >= 500 or status in TRY_AGAIN)
