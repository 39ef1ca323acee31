"""What the base model drew, kept for runs to which it is the same: those of a comparison with one seed.

A file is called after all that its numbers come from, so that whoever finds it need not draw them again. It is written
whole or not at all, and processes that draw the same at once write the same.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sdpo_cli.engine.disk.artifacts import library_versions
from sdpo_cli.engine.disk.files import write_bytes
from sdpo_cli.engine.evaluating.evaluate import Drawn, Side
from sdpo_cli.engine.setup import Setup
from sdpo_cli.maths.images import to_uint8
from sdpo_cli.recipe import long_form

DRAWN = "drawn"
"""Where the file has the values and the diversity; its tensors are the pictures, as a sheet shows them."""


def base_path(folder: Path, setup: Setup) -> Path:
    """The file under `folder` for what this setup's base model draws."""
    recipe, model = long_form(setup.recipe), setup.model
    facts = {
        "recipe": {name: recipe[name] for name in ("model", "reward", "seed")},
        "eval": {name: value for name, value in recipe["eval"].items() if name != "every"},
        "prompts": [(prompt.text, dict(prompt.metadata)) for prompt in setup.eval_prompts],
        "model": (model.identity, setup.versions.get("base model"), asdict(model.sampler), model.device.type),
        "rewards": [(reward.name, reward.version) for reward in setup.rewards + setup.eval_rewards],
        "libraries": library_versions(),
    }
    return folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.safetensors"


def write_base(path: Path, base: Side) -> None:
    """Keep what the base model drew."""
    told = {steps: (dict(drawn.values), drawn.diversity) for steps, drawn in base.items()}
    pictures = {str(steps): to_uint8(drawn.pictures).contiguous() for steps, drawn in base.items()}
    write_bytes(path, save(pictures, {DRAWN: json.dumps(told)}))


def read_base(path: Path) -> Side | None:
    """What was kept; None where there is nothing, or nothing that can be read."""
    try:
        with safe_open(path, "pt") as file:
            told = json.loads(file.metadata()[DRAWN])
            return {
                int(steps): Drawn(values, diversity, file.get_tensor(steps).float() / 255)
                for steps, (values, diversity) in told.items()
            }
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
