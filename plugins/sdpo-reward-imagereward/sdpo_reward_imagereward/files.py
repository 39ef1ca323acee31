"""ImageReward's files, read, and one line that says what to do where they are wrong."""

from collections.abc import Mapping

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from torch import Tensor

from sdpo_cli.api.checkpoints import Located
from sdpo_cli.api.clip_weights import read_tensors
from sdpo_cli.errors import ArtifactError

LONGEST = 35
"""Tokens of a prompt, the first and the last included; longer ones are cut, shorter ones padded, as upstream does."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ADDED = ("[DEC]", "[ENC]")
"""BLIP's own words, numbered after the list's."""


def read_weights(file: Located) -> Mapping[str, Tensor]:
    """Tensors by upstream's names; of a pickle nothing else is read. ArtifactError where it cannot be."""
    try:
        return read_tensors(file.path)
    except ArtifactError as error:
        raise file.wrong(error.fault) from error


def read_tokenizer(file: Located, known: int) -> Tokenizer:
    """BERT's tokenizer for a word list, with BLIP's two words, cutting and padding to LONGEST.

    Its numbers are upstream's, for prompts with special words in them too.

    Args:
        file: the list, one word a line.
        known: how many words the network knows.
    """
    try:
        lines = file.path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        lines = []
    words = {word: number for number, word in enumerate(lines)}
    if len(words) + len(ADDED) != known or not words.keys() >= set(SPECIAL):
        raise file.wrong(f"is not the list of {known - len(ADDED)} words that the network knows")
    tokenizer = Tokenizer(WordPiece(words, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", words["[SEP]"]), ("[CLS]", words["[CLS]"]))
    tokenizer.add_special_tokens([*SPECIAL, *ADDED])
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding(length=LONGEST, pad_id=words["[PAD]"], pad_token="[PAD]")
    return tokenizer
