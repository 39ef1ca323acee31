"""CLIP's byte-pair tokens, with the vocabulary that ships in this package: no download, the same everywhere.

Equal to transformers' `CLIPTokenizer` with the default cleaning, and to open_clip's with open_clip's own. Differs: the
texts `<|startoftext|>` and `<|endoftext|>` inside a prompt are plain text, so no prompt can end itself.
Source: Radford et al., arXiv 2103.00020; the merges are those of OpenAI's CLIP (MIT, see NOTICE).
"""

import gzip
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

MERGES = Path(__file__).parents[1] / "assets" / "clip-bpe" / "merges.txt.gz"
START, END = 49406, 49407
VOCABULARY = 49408
LENGTH = 77
WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

Clean = Callable[[str], str]


def clean_plain(text: str) -> str:
    """What transformers' `CLIPTokenizer` does first: Unicode NFC, single blanks, lower case."""
    normal: str = _normalizer().normalize_str(text)
    return normal


def token_ids(texts: Sequence[str], clean: Clean = clean_plain) -> list[list[int]]:
    """Each text's tokens between START and END, LENGTH at most: a text that is too long loses words, never its END."""
    cleaned = [clean(text.encode("utf-8", "replace").decode("utf-8")) for text in texts]
    return [[START, *one.ids[: LENGTH - 2], END] for one in _bpe().encode_batch(cleaned)]


@cache
def _bpe() -> Tokenizer:
    lines = gzip.decompress(MERGES.read_bytes()).decode().splitlines()
    merges = [(left, right) for left, right in (line.split(" ") for line in lines)]
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges)]
    vocabulary = {word: number for number, word in enumerate(words)}
    bpe = Tokenizer(BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return bpe


@cache
def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])


def _letters() -> list[str]:
    """The letters that stand for the 256 bytes in vocabularies, in token order: the printable as themselves first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in printable] + [chr(0x100 + number) for number in range(256 - len(printable))]
