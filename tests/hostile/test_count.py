"""That the hostile cases are as many as promised: each property asserts that it has had its count."""

import re
from pathlib import Path

from hostile_cases import COUNTS


def test_20000_cases_are_asked_for() -> None:
    assert sum(COUNTS.values()) >= 20_000


def test_every_count_has_its_property() -> None:
    modules = Path(__file__).parent.glob("test_*.py")
    used = [
        name for module in modules for name in re.findall(r'^@cases\(\s*"([^"]+)"', module.read_text(), re.MULTILINE)
    ]
    assert sorted(used) == sorted(COUNTS)
