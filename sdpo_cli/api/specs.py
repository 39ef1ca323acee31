"""The frozen records that a plug-in's hooks return. Importing this module imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict

if TYPE_CHECKING:
    from sdpo_cli.api.tensors import BaseModel, Objective, Reward  # noqa: F401 (used as strings)


class Options(PydanticModel):
    """Base of every options class: strict types, unknown keys are errors, values never change after loading.

    Give every field a default, bounds and a `description`: `sdpo plugins show NAME` prints them.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        validate_by_alias=True,
        validate_by_name=True,
        defer_build=True,  # `sdpo plugins list` builds no validator
    )


IS_PATH = "a path meant from the recipe's folder"
"""Marks the options that `UserPath` types."""

UserPath = Annotated[str, IS_PATH]
"""Type of an option that names a file or folder: what is there is made absolute before `load` gets it."""


@dataclass(frozen=True)
class HubFiles:
    """Files of a model-hub repository, which `sdpo_cli.api.hub.fetch` brings onto this machine.

    Attributes:
        repo: `OWNER/NAME`.
        revision: commit that pins them; None means the newest.
        files: their names; `*` stands for any part of one.
    """

    repo: str
    revision: str | None
    files: tuple[str, ...]


def needs_nothing(options: Any) -> Sequence[HubFiles]:
    """No downloads."""
    return ()


@dataclass(frozen=True)
class LoadContext:
    """Where and how a plug-in's object is loaded.

    Attributes:
        device: torch device name: `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: name of the torch dtype of the networks: `float32`, `bfloat16`, `float16`.
        folder: folder that relative paths in the recipe are meant from.
        compile: whether networks are to be compiled by torch.compile; what cannot do so may ignore it.
    """

    device: str = "cpu"
    dtype: str = "float32"
    folder: Path = field(default_factory=Path)
    compile: bool = False


@dataclass(frozen=True)
class Prompt:
    """One prompt, and whatever its source says about it (passed to rewards as metadata)."""

    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


T = TypeVar("T")


@dataclass(frozen=True)
class Spec(Generic[T]):
    """What every plug-in record says.

    Attributes:
        name: lower-case words joined by hyphens; how recipes and commands name it.
        summary: one line for `sdpo plugins list`.
        version: raised whenever the numbers it produces change; stored beside every score.
        source: paper, repository or URL it follows.
        options: class of its options; `load` receives a validated instance.
        load: does the heavy imports and builds the object.
        needs: what `load` takes from the model hub, given the options; imports nothing heavy.
        facts: what else a user should know (licence, scale, hardware), for `sdpo plugins show`.
    """

    name: str
    summary: str
    version: str
    source: str
    options: type[Options]
    load: Callable[[Any, LoadContext], T]
    needs: Callable[[Any], Sequence[HubFiles]] = needs_nothing
    facts: Mapping[str, str] = field(default_factory=dict)

    kind: ClassVar[str] = "plug-in"


@dataclass(frozen=True)
class Example:
    """A score that a reward's authors published; `sdpo plugins check NAME --online` compares it with ours.

    Attributes:
        picture: its web address, or the path of a file that comes with the plug-in.
        prompt: its prompt.
        value: the published score.
        tolerance: how far from it ours may be.
        source: where it was published.
        options: the reward's options that it was published for.
    """

    picture: str
    prompt: str
    value: float
    tolerance: float
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardSpec(Spec["Reward"]):
    """A reward; `load` gives a `sdpo_cli.api.tensors.Reward`.

    Attributes:
        examples: published scores that its real weights must meet.
    """

    kind: ClassVar[str] = "reward"
    examples: Sequence[Example] = ()


@dataclass(frozen=True)
class BaseModelSpec(Spec["BaseModel"]):
    """A base model; `load` gives a `sdpo_cli.api.tensors.BaseModel`.

    Attributes:
        families: the diffusers pipeline classes it adapts (`_class_name` in `model_index.json`), for which it is
            also used, with the option `path`, when a recipe names a folder or hub id; empty when it only answers to
            its name.
        load_random: like `load`, with the checkpoint's own architecture and random weights, and no download: for
            `sdpo bench --random-weights`. None where the architecture is not known without a download.
    """

    kind: ClassVar[str] = "base model"
    families: tuple[str, ...] = ()
    load_random: Callable[[Any, LoadContext], BaseModel] | None = None


@dataclass(frozen=True)
class PromptSourceSpec(Spec[Sequence[Prompt]]):
    """A prompt source; `load` gives the prompts."""

    kind: ClassVar[str] = "prompt source"


@dataclass(frozen=True)
class ObjectiveSpec(Spec["Objective"]):
    """An objective; `load` gives a `sdpo_cli.api.tensors.Objective`."""

    kind: ClassVar[str] = "objective"
