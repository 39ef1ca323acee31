"""Every measured difference from the official pipelines is below its bound."""

import parity
import parity_flow
import pytest


@pytest.mark.parametrize("case", parity_flow.CASES, ids=str)
def test_we_agree_with_the_official_pipeline(case, checkpoints):
    assert case.measure(checkpoints) < case.bound


def test_the_page_shows_every_check():
    assert not parity.stale(parity_flow.CASES), "run python tests/engine/parity.py"
