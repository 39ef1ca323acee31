import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with something beside it that nobody may touch."""
    (tmp_path / "here").mkdir()
    (tmp_path / "beside.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"
