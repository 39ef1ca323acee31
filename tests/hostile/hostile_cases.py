"""Properties over hostile input: how many cases each gets, that it gets them, and what may come of one."""

import json
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sdpo_cli.errors import RecipeError, SdpoError

COUNTS = {
    "yaml": 5000,
    "recipe bytes": 500,
    "recipe": 2500,
    "set": 3000,
    "prompts txt": 800,
    "prompts csv": 800,
    "prompts jsonl": 1000,
    "scores": 1500,
    "scored": 60,
    "pictures lists": 600,
    "pictures": 500,
    "checkpoint bytes": 300,
    "checkpoint state": 300,
    "lora": 300,
    "records": 700,
    "entry points": 300,
    "file names": 1500,
    "pages": 100,
    "questions": 600,
    "answers": 600,
}
"""Cases of each property."""

GENERATED: Counter[str] = Counter()
"""Cases generated so far in this session."""


def cases(name: str, *strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[[Path], None]]:
    """A test of COUNTS[name] cases out of `check(place, *drawn)`; it fails where fewer were generated."""

    def decorate(check: Callable[..., None]) -> Callable[[Path], None]:
        def count(place: Path, drawn: tuple[Any, ...]) -> None:
            GENERATED[name] += 1
            check(place, *drawn)

        count.__name__ = count.__qualname__ = check.__name__
        rules = settings(
            max_examples=COUNTS[name],
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        generate = rules(given(drawn=st.tuples(*strategies))(count))

        def test(place: Path) -> None:
            before, beside = GENERATED[name], tree(place.parent, place)
            generate(place=place)
            assert GENERATED[name] - before >= COUNTS[name]
            assert tree(place.parent, place) == beside

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


def outcome(call: Callable[[], Any]) -> Any:
    """What `call` gives, or the SdpoError it raised, of which every fault is one line with a place; all else fails."""
    try:
        return call()
    except SdpoError as error:
        fault = error
    assert type(fault) is not SdpoError
    lines = fault.faults if isinstance(fault, RecipeError) else [str(fault)]
    assert lines
    for line in lines:
        assert ": " in line
        assert len(line.splitlines()) == 1
        assert not set(map(ord, line)) & {*range(32), *range(127, 160), *range(0x202A, 0x202F)}
    return fault


def tree(folder: Path, without: Path) -> dict[str, bytes]:
    """Every file under `folder` and outside `without`, with its content."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(without)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


NASTY = [
    "", " ", "\x00", "a\x00b", "\x1b[2J", "\u202e", "\u2028", "\x85", "\ufeff", "..", "../../x", "/", "~", "~nobody/x",
    "CON", "nul.txt", "x" * 300, "犬" * 200, "{{7*7}}", "${HOME}", "%s%n", "'\"><script>", "os:system", "a/b", "\n",
    "1e999", "null", "\ud800", "-", ":", "=", "<<", "🐕‍🦺", "\u0301",
]  # fmt: skip
"""Texts that have broken programs before."""

texts = st.sampled_from(NASTY) | st.text(max_size=6)
numbers = st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -1e308, 5e-324, 0.1, -0.0])
scalars = st.none() | st.booleans() | numbers | texts
junk = scalars | st.lists(scalars, max_size=2) | st.dictionaries(texts, scalars, max_size=2)
"""What JSON can say, one level deep."""


def as_json(value: Any) -> str:
    """The value as JSON, with NaN and infinities as Python writes them, halves of characters escaped."""
    return json.dumps(value)


edits = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(["cut", "drop", "put", "flip"]), st.binary(max_size=4)),
    min_size=1,
    max_size=3,
)


def edited(data: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    """The bytes with a few places cut off, left out, put in or flipped."""
    for at, kind, more in changes:
        where = at % (len(data) + 1)
        if kind == "cut":
            data = data[:where]
        elif kind == "drop":
            data = data[:where] + data[where + 1 + at % 7 :]
        elif kind == "put":
            data = data[:where] + more + data[where:]
        else:
            data = data[:where] + bytes(byte ^ (1 + at % 255) for byte in data[where : where + 1]) + data[where + 1 :]
    return data


def safetensors(header: Any, body: bytes, size: int | None = None) -> bytes:
    """A safetensors file that says what it is told, its size of the header included."""
    text = header if isinstance(header, bytes) else as_json(header).encode()
    return struct.pack("<Q", len(text) if size is None else size % 2**64) + text + body
