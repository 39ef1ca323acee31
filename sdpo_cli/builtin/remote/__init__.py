"""The reward `http`: asks rewards that run elsewhere, in an environment, on a GPU or on a machine of their own."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from sdpo_cli.api import LoadContext, Options, RewardSpec, UsageError, hookimpl

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import Reward

SDPO_PLUGIN_API = 1


def plain_url(url: str) -> str:
    """The URL without a slash at its end. ValueError unless it is an address alone: recipes are written down."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} should be a URL such as http://127.0.0.1:8765")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("should hold no user, password, query or fragment; a token comes from token_env")
    return url.rstrip("/")


class HttpOptions(Options):
    """Which servers, and how patiently they are asked."""

    urls: tuple[str, ...] = Field(
        min_length=1,
        max_length=256,
        description="address of `sdpo serve-reward`, or several that serve the same reward",
    )
    token_env: str = Field(
        default="SDPO_REWARD_TOKEN", min_length=1, description="environment variable that holds the servers' token"
    )
    timeout: float = Field(default=120.0, gt=0, le=86_400, description="seconds one try may take")
    retries: int = Field(default=3, ge=0, le=100, description="tries after the first one, each at the next server")
    backoff: float = Field(default=0.5, ge=0, le=60, description="seconds before the second try; then twice as many")
    batch: int = Field(default=16, ge=1, description="pictures in one question; servers may want fewer")
    encoding: Literal["rgb8", "png"] = Field(
        default="rgb8", description="how pictures travel: png is smaller and takes longer to make"
    )

    @field_validator("urls", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """One URL, or the list that JSON says, as a tuple."""
        if isinstance(value, str):
            return (value,)
        return tuple(value) if isinstance(value, list) else value

    @field_validator("urls")
    @classmethod
    def _plain(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(plain_url, urls))


def load_http(options: HttpOptions, context: LoadContext) -> "Reward":
    """A client that has asked every server what it serves. PluginError where they do not answer or differ.

    UsageError where the variable holds what is no token, or was named and is not there.
    """
    from sdpo_cli.api.remote import is_token
    from sdpo_cli.builtin.remote.client import RemoteReward

    token = os.environ.get(options.token_env)
    if token is None and options.token_env != HttpOptions.model_fields["token_env"].default:
        fault = f"the environment variable {options.token_env} of token_env is not set"
        raise UsageError(fault, place="reward http", remedy="set it to the servers' token, or leave token_env out")
    if token and not is_token(token):
        fault = f"the environment variable {options.token_env} holds other than printable ASCII letters"
        raise UsageError(fault, place="reward http", remedy="give it the servers' token, without a line break")
    return RemoteReward(options, token or None)


@hookimpl
def sdpo_rewards() -> Sequence[RewardSpec]:
    """The client of `sdpo serve-reward`."""
    return [
        RewardSpec(
            name="http",
            summary="a reward served elsewhere by `sdpo serve-reward`, over HTTP",
            version="1",
            source="this package; docs/remote-rewards.md has the protocol",
            options=HttpOptions,
            load=load_http,
            facts={"scale": "that of the served reward, whose version is kept beside every score"},
        )
    ]
