"""Every measured agreement with the official pipelines stays within its bound, and has its cell in docs/parity.md."""

import parity
import parity_unet
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the tiny checkpoints are saved, each once."""
    return tmp_path_factory.mktemp("families")


@pytest.mark.parametrize("case", parity_unet.CASES, ids=str)
def test_measured_difference(case, folder):
    assert case.measure(folder) < case.bound


def test_the_page_shows_every_check():
    assert not parity.stale(parity_unet.CASES), "run python tests/engine/parity.py"


def test_a_number_that_is_missing_or_too_large_is_stale(tmp_path, monkeypatch):
    one, other = (parity.Case(name, "latents", 1e-4, lambda folder: 0.0) for name in ("one", "other"))
    page = tmp_path / "page.md"
    page.write_text(
        parity.refreshed(f"before\n{parity.BEGIN}\nold\n{parity.END}\nafter\n", parity.table({one: 5e-5, other: 2e-4}))
    )
    monkeypatch.setattr(parity, "PAGE", page)
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("\nafter\n")
    third = parity.Case("one", "timesteps", 1e-4, lambda folder: 0.0)
    assert parity.stale([one, other, third]) == ["other: latents", "one: timesteps"]
