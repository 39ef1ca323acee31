"""Captions in the grammar that the embedded model and scorer were taught.

    [a picture of] [a|an|two|three|four] [style] [colour] animal [and ...] [place]

Each function puts one attribute where that grammar has it, in place of one of its kind that is already there.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

Style = Literal["3d", "flat", "cartoon"]
Color = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray", "cyan"]
Place = Literal[
    "in the park",
    "on the moon",
    "in the snow",
    "on the beach",
    "in the desert",
    "underwater",
    "at night",
    "in the forest",
]
STYLES: tuple[Style, ...] = get_args(Style)
COLORS: tuple[Color, ...] = get_args(Color)
PLACES: tuple[Place, ...] = get_args(Place)

PutAttribute = Callable[[str, str], str]

LEAD = re.compile(r"((?:an? (?:picture|image|photo|illustration) of )?)((?:(?:an?|the|two|three|four|2|3|4) )?)(.*)")
SCENE = re.compile(rf"(?:^| )(?:{'|'.join(PLACES)}|on an? \w+ background)$")


def with_style(prompt: str, style: str) -> str:
    """`dog` -> `a 3d dog`; `four red wolves` -> `four 3d red wolves`; `a flat dog` -> `a 3d dog`."""
    opening, determiner, words = split(prompt)
    return join(opening, determiner, [style, *without(words, STYLES)])


def with_color(prompt: str, color: str) -> str:
    """`dog` -> `a red dog`; `a 3d dog` -> `a 3d red dog`; `a blue dog and a cat` -> `a red dog and a cat`."""
    opening, determiner, words = split(prompt)
    animal = without(words, STYLES)
    style = words[: len(words) - len(animal)]
    return join(opening, determiner, [*style, color, *without(animal, COLORS)])


def with_place(prompt: str, place: str) -> str:
    """`dog` -> `a dog on the moon`; `a dog at night` -> `a dog on the moon`; a named background goes too."""
    caption = join(*split(SCENE.sub("", plain(prompt))))
    return f"{caption} {place}".strip()


def plain(prompt: str) -> str:
    """Lower case, single blanks."""
    return " ".join(prompt.lower().split())


def split(prompt: str) -> tuple[str, str, list[str]]:
    """Opening (`a picture of` or nothing), determiner (`a` where there is none) and the other words."""
    lead = LEAD.fullmatch(plain(prompt))
    assert lead, "the pattern matches every text"
    opening, determiner, words = lead.groups()
    return opening.strip(), determiner.strip() or "a", words.split()


def join(opening: str, determiner: str, words: Sequence[str]) -> str:
    """The caption again, with the article that its next word asks for; nothing where there are no words."""
    if not words:
        return ""
    if determiner in ("a", "an"):
        determiner = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([opening, determiner, *words]).strip()


def without(words: Sequence[str], kind: Sequence[str]) -> Sequence[str]:
    """The words less the first, if that is one of `kind`."""
    return words[1:] if words and words[0] in kind else words
