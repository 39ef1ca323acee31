"""From a server's answer to a rating. An answer the judge gave without a rating is unreadable: None."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdpo_cli.api import PluginError
from sdpo_reward_vlm.question import PLACE, Question, plain


@dataclass(frozen=True)
class Rating:
    """What an answer says.

    Attributes:
        value: the rating, within the question's range.
        mass: probability of all rating tokens together; 1 where it was read from the text.
    """

    value: float
    mass: float


def rating(asked: Question, completion: Any) -> Rating | None:
    """The rating in a chat completion, None where it has none. PluginError where it is no chat completion."""
    try:
        choice = completion["choices"][0]
        text = choice["message"]["content"] or ""
        logprobs = choice.get("logprobs")
        positions = (logprobs or {}).get("content")
        if not isinstance(text, str) or not isinstance(positions, list | None):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError):
        raise PluginError(
            "the server's answer is no chat completion", place=PLACE, remedy="is url that of an OpenAI-compatible API?"
        ) from None
    if asked.mode == "text":
        return written(asked, text)
    if logprobs is None:
        raise PluginError(
            "the server's answer has no log-probabilities", place=PLACE, remedy="allow them there, or set mode to text"
        )
    return expected(asked, positions or [])


def written(asked: Question, text: str) -> Rating | None:
    """The last number in the text that the pattern finds, if it lies in the range."""
    found = [match.group(1) for match in re.finditer(asked.pattern, text)]
    try:
        value = float(found[-1])
    except (IndexError, ValueError, TypeError):
        return None
    return Rating(value, 1.0) if asked.low <= value <= asked.high else None


def expected(asked: Question, positions: Sequence[Any]) -> Rating | None:
    """The mean rating Σ p worth / Σ p at the first place where the judge chose a rating token, else None.

    p sums what differs in case and white space alone. Without `among_ratings` it is Σ p worth: P("Yes") for
    tokens {yes: 1, no: 0}.
    """
    for position in positions:
        try:
            if plain(position["token"]) not in asked.tokens:
                continue
            p = probabilities(position)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
            return None
        mass = math.fsum(p.get(token, 0.0) for token in asked.tokens)
        value = math.fsum(p.get(token, 0.0) * worth for token, worth in asked.tokens.items())
        if not 0 < mass < 1.001:
            return None
        value = value / mass if asked.among_ratings else value
        return Rating(min(max(value, asked.low), asked.high), min(mass, 1.0))  # rounding may pass the ends
    return None


def probabilities(position: Mapping[str, Any]) -> dict[str, float]:
    """Probability of each token at a place of the answer, the chosen one included, by its `plain` text."""
    distinct = {one["token"]: float(one["logprob"]) for one in [*(position.get("top_logprobs") or []), position]}
    found: dict[str, float] = {}
    for token, logprob in distinct.items():
        found[plain(token)] = found.get(plain(token), 0.0) + math.exp(logprob)
    return found
