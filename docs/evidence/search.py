"""What the stored search found and chose for each method and reward."""

import json

from arms import METHODS
from reading import FOLDER


def searched(reward: str, method: str) -> dict[str, list[float]]:
    """What the search found for each setting: with one seed, and for the better ones with three."""
    found: dict[str, dict[str, list[float]]] = json.loads((FOLDER / f"search-{reward}.json").read_text())
    return found[method]


def chosen(reward: str, method: str) -> tuple[str, float]:
    """The setting that the search chose, and what it had reached there."""
    last = {setting: values[-1] for setting, values in searched(reward, method).items() if len(values) > 1}
    best = max(last, key=lambda setting: last[setting])
    return best, last[best]


WORDS = {
    "rollout.steps": "{} steps", "train.learning_rate": "{}", "clip": "clip {}", "gamma": "γ {}",
    "branched": "branched", "advantage_clip": "advantages clipped at {}",
}  # fmt: skip
"""How a setting is called; those not here go without saying."""


def worded(method: str, setting: str) -> str:
    """A setting's words, without what all settings of the method say alike."""
    said = dict(word.split("=") for word in setting.split())
    own = dict(word.split("=") for word in METHODS[method].own) if method in METHODS else {}
    words = []
    for field, value in said.items():
        name = field.removeprefix(f"objective.{method.partition('-')[0]}.")
        if name == "antithetic" and field not in own and method != "sdpo-gain":
            words.append("antithetic" if value == "true" else "own noise")
        elif name in WORDS and field not in own and not (method == "sdpo-gain" and name == "clip"):
            words.append(WORDS[name].format(value))
    return ", ".join(words)
