"""Every measured difference from the official pipelines is below its bound."""

import parity_flow
import pytest


@pytest.mark.parametrize("case", parity_flow.CASES, ids=str)
def test_we_agree_with_the_official_pipeline(case, checkpoints):
    assert case.measure(checkpoints) < case.bound
