import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[3] / "tests" / "engine")]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """The folder that tiny checkpoints are saved in as they are needed."""
    return tmp_path_factory.mktemp("flow")
