"""Sheets of pictures that show an evaluation."""

import torch
from PIL import Image

from sdpo_cli.engine.disk.images import picture_grid
from sdpo_cli.engine.evaluating.evaluate import Evaluation

SHOWN = 10
"""Prompts on a sheet."""


def step_label(steps: int) -> str:
    """`1 step`, `2 steps`."""
    return f"{steps} step{'' if steps == 1 else 's'}"


def before_after(evaluation: Evaluation, prompts: list[str]) -> Image.Image:
    """Two rows for each step count: the base model's pictures, and the tuned one's."""
    rows, labels = [], []
    for steps, drawn in evaluation.base.items():
        rows.append(drawn.pictures)
        labels.append(step_label(steps) + (", before" if evaluation.tuned else ""))
        if evaluation.tuned:
            rows.append(evaluation.tuned[steps].pictures)
            labels.append("after")
    return picture_grid(torch.cat(rows), len(rows[0]), prompts, labels)
