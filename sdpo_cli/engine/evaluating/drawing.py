"""Pictures into a folder, each with what it takes to draw it again in its metadata."""

import os
import re
import unicodedata
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sdpo_cli import __version__
from sdpo_cli.api.tensors import BaseModel, Sampler
from sdpo_cli.engine.disk.artifacts import append_line
from sdpo_cli.engine.disk.files import write_bytes
from sdpo_cli.engine.disk.images import picture_grid, png_bytes, write_png
from sdpo_cli.engine.evaluating.grids import step_label
from sdpo_cli.engine.evaluating.sampling import sample_pictures
from sdpo_cli.engine.events import Event, FileWritten, StageStarted
from sdpo_cli.engine.learning.rollout import encode_distinct, take

COLUMNS = 8
GRID_PICTURES = 100
"""Pictures in the grid at the most; the others are in the folder."""

SLUG_LETTERS, SLUG_BYTES = 40, 120
"""Of the prompt's part of a file name: with all around it the name stays far below the 255 bytes it may have."""

INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters, marks and signs that show nothing: fillers and selectors of variants."""

JOINERS = "\u200c\u200d\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
"""What changes how its neighbours look, tones of skin among them: left out, without ending the word."""


@dataclass(frozen=True)
class Order:
    """What to draw: every prompt with the seeds `seed`, `seed` + 1, ... `seed` + `count` - 1.

    `model` is what a recipe calls the model.
    """

    prompts: Sequence[str]
    count: int
    seed: int
    steps: int
    sampler: Sampler
    batch: int
    model: str


def draw_into(
    folder: Path, model: BaseModel, order: Order, *, adapter: Path | None
) -> Generator[Event, None, list[Path]]:
    """Draw the order into `folder`: PNGs, `samples.jsonl` with a row for each, and `grid.png`. Gives the PNGs."""
    wanted = [(prompt, order.seed + number) for prompt in order.prompts for number in range(order.count)]
    conditioning = encode_distinct(model, [prompt for prompt, _ in wanted])
    paths, shown = [], []
    for start in range(0, len(wanted), order.batch):
        some = wanted[start : start + order.batch]
        yield StageStarted("draw", 0, 0, f"pictures {start + 1} to {start + len(some)} of {len(wanted)}")
        rows = take(conditioning, torch.arange(start, start + len(some), device=model.device))
        pictures = sample_pictures(
            model, rows, [seed for _, seed in some], steps=order.steps, sampler=order.sampler, batch=order.batch
        )
        for (prompt, seed), picture in zip(some, pictures, strict=True):
            about = {
                "prompt": prompt,
                "seed": seed,
                "steps": order.steps,
                "transition": order.sampler.transition,
                "eta": order.sampler.eta,
                "model": order.model,
                "identity": model.identity,
                "adapter": str(adapter) if adapter else "",
            }
            path = folder / f"{len(paths):05d}-{slug(prompt)}-seed{seed}.png"
            text = {key: str(value) for key, value in about.items()}
            write_png(path, picture, {**text, "software": f"sdpo {__version__}"})
            append_line(folder / "samples.jsonl", {"file": path.name, **about})
            paths.append(path)
            if len(shown) < GRID_PICTURES:
                shown.append(picture)
    whole_rows = 1 < order.count <= COLUMNS
    columns = order.count if whole_rows else min(len(shown), COLUMNS)
    labels = order.prompts[: -(-len(shown) // columns)] if whole_rows else ()
    grid = picture_grid(torch.stack(shown), columns, row_labels=labels)
    write_bytes(folder / "grid.png", png_bytes(grid))
    count = f"{len(paths)} picture{'s' if len(paths) > 1 else ''}, drawn in {step_label(order.steps)}, on one sheet"
    yield FileWritten(folder / "grid.png", count)
    return paths


def slug(prompt: str) -> str:
    """A prompt as a short, harmless part of a file name: `a-dog-on-the-moon`, `狗`, `собака`.

    Lower-case letters, digits and pictographs of any script, joined by hyphens, in NFC; no dots, slashes, blanks,
    control or invisible characters. ASCII alone where the file system takes no more.
    """
    name = shortened("-".join(shown_words(prompt)))
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        name = shortened("-".join(re.findall(r"[a-z0-9]+", name)))
    return name or "prompt"


def shown_words(prompt: str) -> list[str]:
    """The runs of letters, marks on letters, digits and pictographs in a prompt, of those that can be seen."""
    words = [""]
    for letter in unicodedata.normalize("NFC", prompt.lower()):
        kind = unicodedata.category(letter)
        shown = kind[0] in "LN" or kind == "So" or (kind[0] == "M" and words[-1])
        if shown and not INVISIBLE.match(letter):
            words[-1] += letter
        elif words[-1] and letter not in JOINERS:
            words.append("")
    return [word for word in words if word]


def shortened(name: str) -> str:
    """The name cut to SLUG_LETTERS and SLUG_BYTES."""
    return name[:SLUG_LETTERS].encode()[:SLUG_BYTES].decode(errors="ignore").strip("-")
