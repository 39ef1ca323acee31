"""Set-up of every test: no model hub, the same generated examples everywhere, randomness of each test's own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # each of several processes a thread of its own

import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from sdpo_cli.engine.signals import SIGNALS

settings.register_profile("same-everywhere", deadline=None, derandomize=True)  # no verdict depends on speed or luck
settings.load_profile("same-everywhere")


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator of the test's own; the global one is left alone."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """A stopped run leaves its handler in place for a moment; the next test finds those that were there before it."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
