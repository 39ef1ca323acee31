"""How rewards are asked over HTTP: the records of protocol 1, all JSON. `docs/remote-rewards.md` tells it to people.

`GET /health` gives `{"status": "ok"}` to anybody. With `Authorization: Bearer TOKEN`, where the server has a token,
`GET /info` gives an `Info`, and `POST /score` with a `Question` as `application/json` gives an `Answer`. A status of
400 or above comes with a `Refusal`. Pictures are sent with 8 bits a channel, as a file would hold them.
"""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

PROTOCOL: Literal[1] = 1
"""Raised when an old client could misunderstand a new server."""

Number = Annotated[float, Field(allow_inf_nan=False)]


class Message(BaseModel):
    """Base of all records: strict types; unknown keys are ignored, so that a newer side may say more."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    protocol: Literal[1] = Field(default=PROTOCOL, description="Version of the protocol.")


class Picture(BaseModel):
    """One picture; `data` is in base64."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    encoding: Literal["rgb8", "png"] = Field(description="rgb8: height x width x 3 bytes, row by row. png: a PNG file.")
    height: int = Field(ge=1, description="Pixels.")
    width: int = Field(ge=1, description="Pixels.")
    data: str = Field(description="The bytes in base64.")

    def content(self) -> bytes:
        """The bytes. ValueError where `data` is no base64."""
        return base64.b64decode(self.data, validate=True)


class Question(Message):
    """Pictures of one size to score; no prompts or no metadata at all stands for empty ones."""

    # FailFast: an error for each of millions of bad pictures would fill the memory
    images: Annotated[list[Picture], FailFast()] = Field(description="The pictures, all of one size.")
    prompts: Annotated[list[str], FailFast()] = Field(default_factory=list, description="The prompt of each picture.")
    metadata: Annotated[list[dict[str, Any]], FailFast()] = Field(
        default_factory=list, description="What is said about each prompt."
    )


class Answer(Message):
    """The scores of one question."""

    reward: str = Field(description="Name of the reward.")
    version: str = Field(description="Its version; other numbers, other text.")
    values: Annotated[list[Number], FailFast()] = Field(description="One value a picture, in order.")
    details: dict[str, list[Number]] = Field(default_factory=dict, description="Further numbers of each picture.")


class Limits(BaseModel):
    """How much a server takes in one question."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    max_images: int = Field(default=64, ge=1, description="Pictures in one question.")
    max_pixels: int = Field(default=64_000_000, ge=1, description="Pixels of all pictures of a question together.")
    max_bytes: int = Field(default=400_000_000, ge=1, description="Bytes of a question.")
    timeout: float = Field(default=300.0, gt=0, description="Seconds a question may take, its waiting time included.")


class Info(Message):
    """What a server serves."""

    reward: str = Field(description="Name of the reward.")
    version: str = Field(description="Its version; other numbers, other text.")
    summary: str = Field(default="", description="The reward in one line, with its scale.")
    source: str = Field(default="", description="Paper, repository or URL it follows.")
    options: dict[str, Any] = Field(default_factory=dict, description="Its options, defaults included.")
    limits: Limits = Field(default_factory=Limits, description="How much one question may hold.")


class Refusal(Message):
    """Why there is no answer."""

    error: str = Field(description="One line.")


def is_token(text: str) -> bool:
    """Whether a header can carry the text: printable ASCII without blanks. Else libraries would quote it in errors."""
    return text.isascii() and text.isprintable() and " " not in text


def base64_text(content: bytes) -> str:
    """`Picture.data` of some bytes."""
    return base64.b64encode(content).decode("ascii")


def first_fault(error: ValidationError) -> str:
    """What is wrong with a message, in one line, without the message itself, which may be long."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else str(fault["msg"])


def number_lists(answer: Answer) -> Sequence[tuple[str, list[float]]]:
    """`values` and the details by their names."""
    return [("values", answer.values), *((f"details[{name!r}]", numbers) for name, numbers in answer.details.items())]
