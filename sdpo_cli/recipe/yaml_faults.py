"""What PyYAML finds wrong with a text, in the words of somebody who writes recipes: a fault and its remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

import yaml

from sdpo_cli.errors import RecipeError, one_line

_FLOW = "separate its entries by commas and close it"
_SAID: tuple[tuple[str, str, str], ...] = (
    ("expected ',' or ']'", "a list that begins with [ does not go on like this", _FLOW + " with ]"),
    ("expected ',' or '}'", "a mapping that begins with { does not go on like this", _FLOW + " with }"),
    ("character '\\t'", "a tab before a value", "indent with spaces"),
    ("cannot start any token", "no value can begin with this letter", "put the text in quotes"),
    ("another document", "a second document begins", "keep one, without lines ---"),
    ("end of stream", "a quoted text has no end", "close its quotes"),
    ("document separator", "a quoted text has no end", "close its quotes"),
    ("mapping values are not allowed", "no field can begin here", "indent it like its neighbours, or quote the text"),
    ("sequence entries are not allowed", "no list can begin here", "begin it on a line of its own, or write [a, b]"),
    ("mapping keys are not allowed", "no field can begin here", "put the text in quotes"),
    ("expected ':'", "a field without a colon", "write `field: value`"),
    (
        "expected <block end>",
        "this does not fit what is above it",
        "indent neighbours alike, close quotes and brackets",
    ),
    ("escape", "an unknown escape in a quoted text", "write \\\\ for a backslash, or use single quotes"),
    ("expected the node content", "a value is missing", "write one, or null"),
    ("alphabetic or numeric", "no name follows & or *", "put a text that begins with them in quotes"),
    ("indicator", "an unknown mark after | or >", "begin the text on the next line"),
    ("<document start>", "this belongs to no field", "write lines `field: value` alone"),
)
"""What the parser's words hold, and what to say in their place; the first that fits."""


class YamlFault(yaml.MarkedYAMLError):
    """What this project does not take in YAML, already in its own words."""

    def __init__(self, fault: str, remedy: str, mark: yaml.Mark) -> None:
        self.fault, self.remedy = fault, remedy
        super().__init__(problem=fault, problem_mark=mark)


@contextmanager
def readable(text: str, place: str) -> Iterator[None]:
    """Turns whatever reading `text` raises inside into one RecipeError `place: line, column: fault; remedy`."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        raise _fault(error.problem_mark or error.context_mark, place, *_words(error)) from error
    except yaml.reader.ReaderError as error:
        line, column = text.count("\n", 0, error.position), text.rfind("\n", 0, error.position)
        mark = yaml.Mark("", error.position, line, error.position - column - 1, None, None)
        raise _fault(mark, place, f"control character U+{error.character:04X}", "remove it") from error
    except ValueError as error:  # from chr(): an escape above U+10FFFF
        raise _fault(None, place, "an escape of no character", "write the character itself") from error
    except RecursionError as error:
        raise _fault(None, place, "nested too deep to read", "a recipe needs a few levels") from error


def _words(error: yaml.MarkedYAMLError) -> tuple[str, str]:
    """Fault and remedy."""
    if isinstance(error, YamlFault):
        return error.fault, error.remedy
    problem = error.problem or error.context or ""
    known = [(fault, remedy) for fragment, fault, remedy in _SAID if fragment in problem]
    return known[0] if known else (problem or "not YAML", "put the text in quotes")


def _fault(mark: yaml.Mark | None, place: str, fault: str, remedy: str) -> RecipeError:
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return RecipeError([one_line(f"{where}{fault}", place, remedy)])
