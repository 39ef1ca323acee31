"""The question that HPSv3 is asked about a picture, as tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

INSTRUCTION = Path(__file__).with_name("instruction.txt").read_text(encoding="utf-8")
"""What the model was trained on, up to the place of its answer; the model is causal, so what follows is left out."""
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


@dataclass(frozen=True)
class Question:
    """Tokens before and after the picture; the answer is read at the last one."""

    before: list[int]
    after: list[int]


class Questioner:
    """Makes questions with the tokenizer of Qwen2-VL.

    Differs from upstream: special words inside a prompt are plain text there, so no prompt can end its question or
    ask for a second answer.

    Args:
        path: its `tokenizer.json`. ValueError where it is no tokenizer of this kind.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the class that the library raises
            raise ValueError(f"cannot be read as a tokenizer ({error})") from error
        missing = [word for word in SPECIAL if self.tokenizer.token_to_id(word) is None]
        if missing:
            raise ValueError(f"has no {' '.join(missing)}")
        self.tokenizer.encode_special_tokens = True
        self.reward: int = self.tokenizer.get_vocab_size()
        start, end, picture, picture_end = map(self.tokenizer.token_to_id, SPECIAL)
        system = self.plain("system\nYou are a helpful assistant.")
        self.before = [start, *system, end, *self.plain("\n"), start, *self.plain("user\n"), picture]
        self.picture_end = picture_end

    def plain(self, text: str) -> list[int]:
        """Tokens of a text without special words."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def ask(self, prompts: Sequence[str]) -> list[Question]:
        """The question for each prompt; each distinct one is worked on once."""
        asked = {prompt: Question(self.before, self.rest(prompt)) for prompt in dict.fromkeys(prompts)}
        return [asked[prompt] for prompt in prompts]

    def rest(self, prompt: str) -> list[int]:
        """Tokens after the picture. Half a surrogate pair, which UTF-8 cannot say, becomes a question mark."""
        text = INSTRUCTION.replace("{text_prompt}", prompt.encode("utf-8", "replace").decode())
        return [self.picture_end, *self.plain(text), self.reward]
