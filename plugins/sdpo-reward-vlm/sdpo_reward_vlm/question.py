"""What the judge is asked: a preset, and what the options say instead."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sdpo_cli.api import UsageError
from sdpo_reward_vlm import VlmOptions

PLACE = "reward vlm"


@dataclass(frozen=True)
class Question:
    """One way to ask for a rating.

    Attributes:
        template: the question's text; `{prompt}` in it stands for the picture's prompt.
        mode: `logprobs` reads the probabilities of the rating's token, `text` the written answer.
        tokens: logprobs: what each rating token is worth; lower case, without white space around.
        among_ratings: logprobs: whether probabilities are taken among the rating tokens (a mean rating), or as they
            are, all other tokens being worth 0.
        pattern: text: a regular expression whose first group is the rating.
        low, high: the ratings' range.
        max_tokens: longest answer.
    """

    template: str
    mode: str
    tokens: Mapping[str, float]
    among_ratings: bool
    pattern: str
    low: float
    high: float
    max_tokens: int


NUMBER = r"(-?\d+(?:\.\d+)?)"
PRESETS = {
    "rating": Question(
        template="Rate how well this picture shows the text between the lines, and how well it is made, from 1 (not "
        "at all) to 5 (perfectly).\n---\n{prompt}\n---\nAnswer with one digit, 1, 2, 3, 4 or 5, and nothing else.",
        mode="logprobs",
        tokens={str(rating): float(rating) for rating in range(1, 6)},
        among_ratings=True,
        pattern=NUMBER,
        low=1.0,
        high=5.0,
        max_tokens=8,
    ),
    "unifiedreward": Question(
        template="You judge pictures made from text. Consider how well the picture shows the caption, whether what it "
        "shows is sound, and its style. Explain briefly, then end with a line of the form `Final Score: X`, where X "
        "is a number from 1 (worst) to 5 (best).\nCaption: {prompt}",
        mode="text",
        tokens={},
        among_ratings=True,
        pattern=rf"Final Score:\W*{NUMBER}",
        low=1.0,
        high=5.0,
        max_tokens=1024,
    ),
    "vqascore": Question(
        template='Does this figure show "{prompt}"? Please answer yes or no.',
        mode="logprobs",
        tokens={"yes": 1.0, "no": 0.0},
        among_ratings=False,
        pattern=NUMBER,
        low=0.0,
        high=1.0,
        max_tokens=8,
    ),
}


def question(options: VlmOptions) -> Question:
    """The preset with the options that are set in place of its own. UsageError where they do not fit together."""
    names = ("template", "mode", "pattern", "low", "high", "max_tokens")
    told = {name: value for name in names if (value := getattr(options, name)) is not None}
    asked = replace(PRESETS[options.preset], **told)
    if options.tokens is not None:
        tokens = {plain(token): worth for token, worth in options.tokens.items()}
        bounds = {"low": min(tokens.values()), "high": max(tokens.values())} | {
            name: value for name, value in told.items() if name in ("low", "high")
        }
        asked = replace(asked, tokens=tokens, among_ratings=True, **bounds)
    _check(asked)
    return asked


def _check(asked: Question) -> None:
    if asked.mode == "logprobs" and not asked.tokens:
        raise UsageError("mode logprobs needs rating tokens", place=PLACE, remedy="set tokens, as in {good: 1, bad: 0}")
    if not asked.low < asked.high:
        raise UsageError(f"low {asked.low:g} is not below high {asked.high:g}", place=PLACE, remedy="set low and high")
    outside = [token for token, worth in asked.tokens.items() if not asked.low <= worth <= asked.high]
    if asked.mode == "logprobs" and outside:
        raise UsageError(f"token {outside[0]!r} is worth more or less than low..high", place=PLACE, remedy="mend one")
    try:
        groups = re.compile(asked.pattern).groups
    except re.error as error:
        raise UsageError(f"pattern is no regular expression ({error})", place=PLACE, remedy="mend it") from None
    if asked.mode == "text" and groups < 1:
        raise UsageError("pattern has no group", place=PLACE, remedy=r"put the rating in brackets, as in Score: (\d+)")


def plain(token: str) -> str:
    """A token for comparing: lower case, no white space around."""
    return token.strip().lower()
