"""Which text a picture should show, and how far from it what was read is."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from sdpo_reward_ocr import OcrOptions

QUOTED = re.compile(r'"([^"]*)"|“([^”]*)”')
"""Straight or curly double quotes."""


def wanted(options: OcrOptions, prompt: str, metadata: Mapping[str, Any]) -> str:
    """The text that a picture should show, as it is written; empty where nothing says one.

    The option `target`, else the prompt's metadata, else what stands in the prompt's first double quotes.
    """
    told = metadata.get(options.metadata_key)
    if options.target or isinstance(told, str):
        return options.target or str(told)
    quoted = QUOTED.search(prompt)
    return (quoted[1] or quoted[2] or "") if quoted else ""


def cleaned(options: OcrOptions, text: str) -> str:
    """The text as it is compared."""
    if options.fold_width:
        text = unicodedata.normalize("NFKC", text)
    if options.ignore_case:
        text = text.lower()
    if options.ignore_spaces:
        text = "".join(text.split())
    if options.ignore_punctuation:
        text = "".join(letter for letter in text if letter.isalnum() or letter.isspace())
    return text


def accuracy(target: str, read: str, *, contained: bool) -> float:
    """1 - d / len(target), where d is their edit distance, at most len(target); 0..1.

    Args:
        target: wanted, not empty.
        read: what the picture says.
        contained: whether d is 0 as soon as `read` contains `target`.
    Source: Flow-GRPO, arXiv 2505.05470, and its code's OCR reward, which has `contained`.
    """
    if contained and target in read:
        return 1.0
    return 1 - min(edit_distance(target, read), len(target)) / len(target)


def edit_distance(one: str, other: str) -> int:
    """Fewest insertions, deletions and replacements of a letter that turn one text into the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        above, row = row, [i]
        for j, wanted_letter in enumerate(other, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != wanted_letter)))
    return row[-1]
