"""Set-up of every test: no model hub, the same generated examples everywhere, randomness of each test's own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # each of several processes a thread of its own

import pytest
import torch
from hypothesis import settings

settings.register_profile("same-everywhere", deadline=None, derandomize=True)  # no verdict depends on speed or luck
settings.load_profile("same-everywhere")


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator of the test's own; the global one is left alone."""
    return torch.Generator().manual_seed(0)
