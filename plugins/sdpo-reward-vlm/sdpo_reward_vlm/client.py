"""Asks an OpenAI-compatible server: bounded in time, size and tries; it follows no redirect."""

import json
import os
import random
import time
from collections.abc import Mapping
from threading import Event
from typing import Any

import httpx2

from sdpo_cli.api import PluginError, UsageError
from sdpo_reward_vlm import VlmOptions
from sdpo_reward_vlm.question import PLACE

BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that may pass."""

MAX_BYTES = 4_000_000
"""Of an answer."""

MAX_WAIT = 30.0
"""Seconds between two tries, whatever the server asks for."""


class _PassingError(Exception):
    """A fault that may be gone at the next try.

    Args:
        fault: what happened.
        wait: seconds the server asks to wait.
    """

    def __init__(self, fault: str, wait: float = 0.0) -> None:
        super().__init__(fault)
        self.wait = wait


class Client:
    """Posts to `url`/chat/completions. Safe to use from several threads."""

    def __init__(self, options: VlmOptions) -> None:
        self.options = options
        self.url = f"{options.url.rstrip('/')}/chat/completions"
        self.key = api_key(options.api_key_variable)
        self.http = httpx2.Client(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=options.timeout,
            limits=httpx2.Limits(max_connections=options.concurrency),
            follow_redirects=False,
        )

    def complete(self, body: Mapping[str, Any], stop: Event) -> Any:
        """The server's answer to a chat request, as JSON says it; `stop` ends the tries. PluginError without one."""
        tries = self.options.retries + 1
        for number in range(tries):
            try:
                return self.post(body)
            except _PassingError as error:
                fault, wait = str(error), error.wait
            if number + 1 < tries and stop.wait(waiting(self.options.backoff, number, wait)):
                break
        raise self.fault(
            f"{fault}, in {tries} {'try' if tries == 1 else 'tries'}", "is the server up and not too busy?"
        )

    def post(self, body: Mapping[str, Any]) -> Any:
        """One try. _PassingError where another may succeed, else PluginError."""
        deadline = time.monotonic() + self.options.timeout
        data = bytearray()
        try:
            with self.http.stream("POST", self.url, json=body) as response:
                for chunk in response.iter_bytes():
                    data += chunk
                    if len(data) > MAX_BYTES:
                        raise self.fault(f"the answer is above {MAX_BYTES} bytes", "is it the right server?")
                    if time.monotonic() > deadline:
                        raise _PassingError(f"no whole answer within {self.options.timeout:g} s")
        except httpx2.TimeoutException:
            raise _PassingError(f"no answer within {self.options.timeout:g} s") from None
        except httpx2.HTTPError as error:
            raise _PassingError(f"{type(error).__name__}: {error}".removesuffix(": ")) from None
        return self.read(response, bytes(data))

    def read(self, response: httpx2.Response, data: bytes) -> Any:
        """The JSON of a good answer. Errors as for `post`."""
        said = self.hidden(" ".join(data[:2000].decode(errors="replace").split()))[:200]
        if response.status_code in BUSY:
            raise _PassingError(f"status {response.status_code}: {said}", retry_after(response))
        if response.is_redirect:
            where = self.hidden(response.headers.get("location", ""))[:200]
            raise self.fault(f"it redirects to {where}, which is not followed", "set url to where the server is")
        if response.status_code != 200:
            raise self.fault(f"status {response.status_code}: {said}", "check model, url and the key")
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise self.fault(f"the answer is no JSON: {said}", "is url that of an OpenAI-compatible API?") from None

    def hidden(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self.key, "[key]") if self.key else text

    def fault(self, fault: str, remedy: str) -> PluginError:
        """An error about this server."""
        return PluginError(f"{self.url}: {self.hidden(fault)}", place=PLACE, remedy=remedy)


def api_key(variable: str) -> str:
    """The key in an environment variable; empty where no variable is named. UsageError where it holds none."""
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        fault = "holds no key" if not key else "holds what is no key"
        raise UsageError(f"the environment variable {variable} {fault}", place=PLACE, remedy=f"export {variable}=...")
    return key


def waiting(backoff: float, number: int, asked: float) -> float:
    """Seconds to wait after try `number`: backoff * 2^number less up to a half, or what the server asks; at most 30."""
    return min(max(backoff * 2**number * random.uniform(0.5, 1), asked), MAX_WAIT)


def retry_after(response: httpx2.Response) -> float:
    """The seconds that a busy server asks for; 0 where it does not, or names a date."""
    try:
        return max(0.0, float(response.headers.get("retry-after", "0")))
    except ValueError:
        return 0.0
