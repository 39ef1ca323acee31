import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny random Stable Diffusion checkpoint that predicts epsilon."""
    import tiny

    return tiny.save_pipeline(tmp_path_factory.mktemp("tiny") / "epsilon")
