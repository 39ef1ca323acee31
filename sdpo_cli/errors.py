"""The faults a user can mend. Each prints as one line, `place: fault; remedy`, and owns an exit code."""

import re
from collections.abc import Sequence
from typing import Any, Self

_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal would obey rather than show: control characters, marks of direction, halves of characters."""


class SdpoError(Exception):
    """A fault the user can mend.

    Args:
        fault: what is wrong, lower case, without a final full stop.
        place: where: a file, a recipe field, a plug-in. Empty when there is no place.
        remedy: what to do about it. Empty only when the fault says it already.
    """

    exit_code = 1

    def __init__(self, fault: str, *, place: str = "", remedy: str = "") -> None:
        self.fault, self.place, self.remedy = fault, place, remedy
        super().__init__(one_line(fault, place, remedy))

    def __reduce__(self) -> tuple[Any, ...]:
        """How it goes to another process: as it is, for children are made in ways of their own."""
        return _made_anew, (type(self), self.args), self.__dict__

    def within(self, where: str) -> Self:
        """The same fault, its place told as one in `where`."""
        place = f"{where}, {self.place}" if self.place else where
        SdpoError.__init__(self, self.fault, place=place, remedy=self.remedy)
        return self


def _made_anew(kind: type[SdpoError], args: tuple[Any, ...]) -> SdpoError:
    """An error without its initialiser."""
    return kind.__new__(kind, *args)


class UsageError(SdpoError):
    """The command line or an input file asks for what cannot be done, or names what is not there."""

    exit_code = 2


class RecipeError(SdpoError):
    """One or several faults of a recipe, all reported at once, one line each."""

    exit_code = 2

    def __init__(self, faults: "Sequence[SdpoError | str]") -> None:
        self.faults = [one_line(str(fault)) for fault in faults]
        Exception.__init__(self, "\n".join(self.faults))

    def within(self, where: str) -> Self:
        """The same faults, each told as one in `where`."""
        RecipeError.__init__(self, [f"{where}, {fault}" for fault in self.faults])
        return self


class PluginError(SdpoError):
    """A plug-in is broken, or broke its contract."""

    exit_code = 3


class ArtifactError(SdpoError):
    """A file or folder that is there cannot be read or written, or is not what it should be."""

    exit_code = 4


class TrainingError(SdpoError):
    """Training or sampling cannot go on: non-finite numbers, disagreeing log-probabilities, and the like."""

    exit_code = 5


class StoppedError(SdpoError):
    """The user or the machine asked the program to stop; everything finished is saved.

    Args:
        signal_number: the signal; the exit code is 128 + it (130 for Ctrl-C, 143 for SIGTERM).
    """

    def __init__(self, fault: str, *, place: str = "", remedy: str = "", signal_number: int = 2) -> None:
        super().__init__(fault, place=place, remedy=remedy)
        self.exit_code = 128 + signal_number


def one_line(fault: str, place: str = "", remedy: str = "") -> str:
    """`place: fault; remedy`, leaving out the empty parts.

    Line breaks inside become spaces; of what a terminal would obey its escape is shown, such as `\\x1b`.
    """
    text = f"{place}: {fault}" if place else fault
    text = f"{text}; {remedy}" if remedy else text
    return _HIDDEN.sub(lambda hidden: ascii(hidden[0])[1:-1], " ".join(text.split()))


def encodable(text: str) -> bool:
    """Whether UTF-8 can hold a text: no halves of characters, as JSON's escapes and undecodable file names bring."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where there is none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
