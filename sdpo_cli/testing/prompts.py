"""The laws of a prompt source."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_cli.api import Prompt
from sdpo_cli.testing.laws import Stage, keep, require


def check_prompt_source(prompts: Sequence[Prompt]) -> None:
    """There are prompts, each a `Prompt` with a text, and metadata is what JSON can say. PluginError names the law."""
    keep(prompt_laws(prompts))


def prompt_laws(prompts: Sequence[Prompt]) -> list[Stage]:
    """The laws of `check_prompt_source`."""
    return [
        {"a source has prompts": lambda: require(len(prompts) > 0, "it is empty")},
        {"a source gives Prompts": lambda: _each(prompts, _is_prompt)},
        {
            "a prompt says something": lambda: _each(prompts, _says_something),
            "metadata is what JSON can say": lambda: _each(prompts, _is_sayable),
        },
    ]


def _each(prompts: Sequence[Prompt], law: Any) -> None:
    for index, prompt in enumerate(prompts):
        law(index, prompt)


def _is_prompt(index: int, prompt: Any) -> None:
    require(isinstance(prompt, Prompt), f"number {index} is a {type(prompt).__name__}")


def _says_something(index: int, prompt: Prompt) -> None:
    said = isinstance(prompt.text, str) and prompt.text.strip() != ""
    require(said, f"number {index} is {prompt.text!r}")


def _is_sayable(index: int, prompt: Prompt) -> None:
    try:
        json.dumps(prompt.metadata)
        sayable = isinstance(prompt.metadata, Mapping)
    except (TypeError, ValueError):
        sayable = False
    require(sayable, f"that of number {index} is not")
