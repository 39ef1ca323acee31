"""Prompts from a file, with every fault told by file and line."""

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_cli.api import Prompt, UsageError

COLUMNS = ("prompt", "text")
"""Where rows keep their prompt; the first that is there counts."""

Row = tuple[int, str, Mapping[str, Any]]
"""Line number, prompt, metadata."""


def read_prompts(path: Path) -> Sequence[Prompt]:
    """The prompts of a file, in its order.

    `.txt`: one a line, blank lines skipped. `.jsonl`: an object a line. `.csv`: comma-separated with a header. Objects
    and rows have their prompt under `prompt` or `text`; their other entries become its metadata.

    Raises:
        UsageError: no such file, another ending, not UTF-8, nothing in it, or a line that is no prompt.
    """
    check_file(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(
            f"a prompts file ends in {', '.join(READERS)}", place=str(path), remedy="rename or convert the file"
        )
    prompts = [checked(path, *row) for row in reader(path, read_text(path))]
    if not prompts:
        raise UsageError("has no prompts", place=str(path), remedy="write one prompt a line")
    return prompts


def check_file(path: Path) -> None:
    """UsageError where a folder lies there, whatever its name."""
    if path.is_dir():
        raise UsageError("is a folder", place=str(path), remedy="name a .txt, .jsonl or .csv file")


def read_text(path: Path) -> str:
    """The file's text, UTF-8 with or without a mark, line ends as `\\n`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError("no such file", place=str(path), remedy="correct the path") from None
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", place=str(path), remedy="check the file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise fault(path, line, "not UTF-8", "save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def text_rows(path: Path, text: str) -> Iterator[Row]:
    """Every line that is not blank."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line, {}


def json_rows(path: Path, text: str) -> Iterator[Row]:
    """Every line's JSON object."""
    for number, line, _ in text_rows(path, text):
        try:
            entry = json.loads(line)
            if "\\u" in line:
                json.dumps(entry, ensure_ascii=False).encode()  # an escape of half a character could not be written
        except UnicodeEncodeError:
            raise fault(path, number, "an escape of half a character", "write the character itself") from None
        except (ValueError, RecursionError) as error:
            raise fault(path, number, f"not JSON ({error})", "write one JSON object a line") from None
        if not isinstance(entry, dict):
            raise fault(path, number, "not a JSON object", 'write lines like {"prompt": "a dog"}')
        column = prompt_column(path, number, list(entry))
        if not isinstance(entry[column], str):
            raise fault(path, number, f"`{column}` is no text", "put the prompt in quotes")
        yield number, entry[column], {key: value for key, value in entry.items() if key != column}


def csv_rows(path: Path, text: str) -> Iterator[Row]:
    """Every row under the header."""
    lines = csv.reader(io.StringIO(text), strict=True)
    try:
        header = next((cells for cells in lines if cells), [])
        if not header:
            return
        column = prompt_column(path, lines.line_num, header)
        for cells in lines:
            if not cells:
                continue
            if len(cells) != len(header):
                fields = f"{len(cells)} fields under a header of {len(header)}"
                raise fault(path, lines.line_num, fields, "put texts with commas in double quotes")
            entry = dict(zip(header, cells, strict=True))
            yield lines.line_num, entry.pop(column), entry
    except csv.Error as error:
        raise fault(path, lines.line_num, f"not CSV ({error})", "check the quotes") from None


READERS = {".txt": text_rows, ".jsonl": json_rows, ".csv": csv_rows}


def prompt_column(path: Path, line: int, names: Sequence[str]) -> str:
    """Which of `names` holds the prompt."""
    for column in COLUMNS:
        if column in names:
            return column
    wrong = f"none of {', '.join(names)} is `prompt` or `text`" if names else "no `prompt` and no `text`"
    raise fault(path, line, wrong, "name the prompt `prompt`")


def checked(path: Path, line: int, text: str, metadata: Mapping[str, Any]) -> Prompt:
    """The prompt without blanks around it; a fault where nothing or something unprintable is left."""
    text = text.strip(" ")
    if not text.strip():
        raise fault(path, line, "the prompt is empty", "write one or remove the line")
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise fault(path, line, f"control character U+{ord(character):04X} in the prompt", "remove it")
    return Prompt(text, metadata)


def fault(path: Path, line: int, text: str, remedy: str) -> UsageError:
    """What is wrong with one line."""
    return UsageError(text, place=f"{path}:{line}", remedy=remedy)
