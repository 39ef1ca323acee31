"""Which pictures to score, and what they should show."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo_cli.api import Prompt
from sdpo_cli.engine.disk.files import read_json_lines, read_text
from sdpo_cli.errors import ArtifactError, UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Picture:
    """A picture file to score.

    Attributes:
        path: the file.
        prompt: what it should show; None until one is found.
        metadata: what the prompt's source says about it.
    """

    path: Path
    prompt: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def find_pictures(sources: Sequence[Path]) -> list[Picture]:
    """The pictures of files, folders and JSON-lines lists, each once, in order.

    A folder that holds a `samples.jsonl` stands for that list, any other for all pictures in and under it, sorted. A
    list has rows `{"file": path relative to the list, "prompt": ...}`.

    Raises:
        UsageError: nothing there, or no picture in it.
        ArtifactError: a list that cannot be read.
    """
    found: dict[Path, Picture] = {}
    for source in sources:
        pictures = list(source_pictures(source))
        if not pictures:
            kinds = " ".join(SUFFIXES)
            raise UsageError("no pictures in it", place=str(source), remedy=f"looked for {kinds}")
        for picture in pictures:
            found.setdefault(picture.path.resolve(), picture)
    return list(found.values())


def source_pictures(source: Path) -> Iterator[Picture]:
    """The pictures of one file, folder or list."""
    if not source.exists():
        raise UsageError("no such file or folder", place=str(source), remedy="correct the path")
    listing = source / "samples.jsonl" if source.is_dir() else source
    if listing.suffix.lower() == ".jsonl" and listing.is_file():
        yield from listed_pictures(listing)
    elif source.is_dir():
        under = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES)
        yield from (Picture(path) for path in under if path.is_file() and not path.name.startswith("."))
    else:
        yield Picture(source)


def listed_pictures(listing: Path) -> Iterator[Picture]:
    """The pictures that a JSON-lines list names, each file once."""
    for number, row in enumerate(read_json_lines(listing), start=1):
        file, prompt = row.get("file"), row.get("prompt", "")
        if not isinstance(file, str) or "\0" in file or not isinstance(prompt, str):
            remedy = 'rows are like {"file": "a.png", "prompt": "a dog"}'
            raise ArtifactError(f"row {number} names no file", place=str(listing), remedy=remedy)
        rest = {key: value for key, value in row.items() if key not in ("file", "prompt")}
        yield Picture(listing.parent / file, prompt, rest)


def with_prompts(pictures: Sequence[Picture], given: Sequence[Prompt], source: Path | None) -> list[Picture]:
    """The pictures with their prompts: from the prompts file, else the PNG's own, else NAME.txt, else their list.

    Args:
        given: the prompts of the file `source`; with a `file` entry they belong to that picture, else to the
            pictures in order.

    Raises:
        UsageError: the prompts file does not fit the pictures.
        ArtifactError: a NAME.txt cannot be read.
    """
    matched = matched_prompts(pictures, given, source) if source else [None] * len(pictures)
    return [with_prompt(picture, prompt) for picture, prompt in zip(pictures, matched, strict=True)]


def matched_prompts(pictures: Sequence[Picture], given: Sequence[Prompt], source: Path) -> list[Prompt | None]:
    """The given prompt of each picture, by file or by place."""
    named = [prompt for prompt in given if "file" in prompt.metadata]
    if not named and len(given) != len(pictures):
        fault = f"has {len(given)} prompts for {len(pictures)} pictures"
        raise UsageError(fault, place=str(source), remedy="give one a picture, or a CSV with columns file,prompt")
    if not named:
        return list(given)
    unfit = [prompt.metadata["file"] for prompt in named if "\0" in str(prompt.metadata["file"])]
    if unfit:
        raise UsageError(f"{unfit[0]!r} is no file's name", place=str(source), remedy="correct the entry `file`")
    by_file = {(source.parent / str(prompt.metadata["file"])).resolve(): prompt for prompt in named}
    by_name = {str(prompt.metadata["file"]): prompt for prompt in named}
    matched = [by_file.get(picture.path.resolve(), by_name.get(picture.path.name)) for picture in pictures]
    if not any(matched):
        raise UsageError("names none of the pictures", place=str(source), remedy="write paths relative to this file")
    return matched


def with_prompt(picture: Picture, given: Prompt | None) -> Picture:
    """The picture with the first prompt that there is; an empty one where there is none."""
    if given is not None:
        return Picture(picture.path, given.text, {**picture.metadata, **given.metadata})
    sidecar = picture.path.with_suffix(".txt")
    own = embedded_prompt(picture.path)
    if own is None and sidecar.is_file():
        own = read_text(sidecar).strip()
    return Picture(picture.path, own if own is not None else picture.prompt or "", picture.metadata)


def embedded_prompt(path: Path) -> str | None:
    """The `prompt` in a PNG's metadata; None also where the file cannot be read, which scoring will tell."""
    from sdpo_cli.engine.disk.images import read_png_text  # imports torch; paths at fault are told before

    try:
        return read_png_text(path).get("prompt")
    except ArtifactError:
        return None
