"""The optimisers a recipe may choose: torch's AdamW, and the one of bitsandbytes whose moments take a byte each."""

from collections.abc import Iterable
from importlib.util import find_spec

import torch
from torch import nn

from sdpo_cli.errors import UsageError
from sdpo_cli.recipe import TrainSection


def check_optimizer(section: TrainSection) -> None:
    """UsageError where the recipe's optimiser is not installed."""
    if section.optimizer == "adamw8bit" and find_spec("bitsandbytes") is None:
        remedy = "pip install 'sdpo-cli[adamw8bit]', or use adamw"
        raise UsageError("needs bitsandbytes, which is not installed", place="train.optimizer adamw8bit", remedy=remedy)


def make_optimizer(section: TrainSection, weights: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimiser of `weights`.

    Source: AdamW, arXiv 1711.05101; its moments in blocks of 8-bit numbers, arXiv 2110.02861 (weights of fewer than
    4,096 elements keep them in float32).
    """
    settings = {
        "lr": section.learning_rate,
        "betas": (section.beta1, section.beta2),
        "eps": section.epsilon,
        "weight_decay": section.weight_decay,
    }
    if section.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(list(weights), **settings)
    return torch.optim.AdamW(list(weights), **settings)
