import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

LAST = "test_count.py"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What counts the generated cases comes after what generates them."""
    items.sort(key=lambda item: item.path.name == LAST and item.path.parent == Path(__file__).parent)


@pytest.fixture(scope="session")
def counter() -> Counter[str]:
    """The cases generated in this session, by property."""
    from hostile_cases import GENERATED

    return GENERATED


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with something beside it that nobody may touch."""
    (tmp_path / "here").mkdir()
    (tmp_path / "beside.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"
