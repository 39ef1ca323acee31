"""That the hostile cases are as many as promised."""

from collections import Counter

import pytest
from hostile_cases import COUNTS


def test_20000_cases_are_generated(request: pytest.FixtureRequest, counter: Counter[str]) -> None:
    collected = [getattr(item, "function", None) for item in request.session.items]
    chosen = [function.hostile_name for function in collected if hasattr(function, "hostile_name")]
    assert len(chosen) == len(set(chosen))
    assert all(counter[name] >= COUNTS[name] for name in chosen)
    assert sum(COUNTS.values()) >= 20_000
    if set(chosen) == COUNTS.keys():
        assert counter.total() >= 20_000


def test_every_count_has_its_property() -> None:
    import re
    from pathlib import Path

    modules = Path(__file__).parent.glob("test_*.py")
    used = [
        name for module in modules for name in re.findall(r'^@cases\(\s*"([^"]+)"', module.read_text(), re.MULTILINE)
    ]
    assert sorted(used) == sorted(COUNTS)
