"""The shipped prompt sources: three lists for the embedded model, and files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pydantic import Field

from sdpo_cli.api import LoadContext, Options, Prompt, PromptSourceSpec, UserPath, hookimpl
from sdpo_cli.builtin.prompts.file import read_prompts

SDPO_PLUGIN_API = 1

LISTS = Path(__file__).parents[2] / "assets" / "prompts"


class ListOptions(Options):
    """None."""


class FileOptions(Options):
    """Which file."""

    path: UserPath = Field(min_length=1, description="a .txt, .jsonl or .csv file; relative to the recipe's folder")


def load_list(name: str, options: ListOptions, context: LoadContext) -> Sequence[Prompt]:
    """A shipped list."""
    return read_prompts(LISTS / f"{name}.txt")


def load_file(options: FileOptions, context: LoadContext) -> Sequence[Prompt]:
    """The prompts of a file."""
    return read_prompts(context.folder / Path(options.path).expanduser())


def shipped_list(name: str, summary: str, source: str) -> PromptSourceSpec:
    """The record of the list `NAME.txt`."""
    return PromptSourceSpec(
        name=name, summary=summary, version="1", source=source, options=ListOptions, load=partial(load_list, name)
    )


@hookimpl
def sdpo_prompt_sources() -> Sequence[PromptSourceSpec]:
    """The two prompt sets of the literature, one of scenes, one kept out of training for each kind, and files."""
    return [
        shipped_list("simple-animals", "45 animals, bare nouns", "Black et al., DDPO, arXiv 2305.13301"),
        shipped_list("complex-animals", "4 animals with a colour, number, companion or place", "arXiv 2411.11727"),
        shipped_list(
            "emoji-held-out", "20 other animals and 12 compositions that emoji-turbo can draw", "this package"
        ),
        shipped_list("scenes", "96 scenes in a few words each: people, animals, places, food, styles", "this package"),
        shipped_list("scenes-held-out", "32 more of that kind, in no training list", "this package"),
        PromptSourceSpec(
            name="file",
            summary="a .txt, .jsonl or .csv file of prompts",
            version="1",
            source="this package",
            options=FileOptions,
            load=load_file,
        ),
    ]
