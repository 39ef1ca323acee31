"""Number formats that a device has not are refused before anything is loaded."""

import pytest
import torch

from sdpo_cli.engine.number_formats import check_dtype
from sdpo_cli.errors import UsageError
from sdpo_cli.main import main

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_cpu_has_those_of_recipes(name):
    check_dtype(CPU, name)


def test_what_a_cpu_has_not_is_said_in_one_line():
    with pytest.raises(UsageError) as fault:
        check_dtype(CPU, "float8_e4m3fn")
    assert str(fault.value).startswith("model.dtype float8_e4m3fn: device cpu cannot compute in it (")
    assert str(fault.value).endswith("); use float32")
    assert "\n" not in str(fault.value)


@pytest.fixture
def old_card(monkeypatch):
    """A machine with a card that only imitates bfloat16. The one stand-in here: no such card is at hand."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr("sdpo_cli.engine.setup.pick_device", lambda name: torch.device("cuda"))


def test_imitated_bfloat16_is_refused_before_anything_is_written(old_card, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "quickstart", "--set", "model.dtype=bfloat16", "--quiet"]) == 2
    said = "error: model.dtype bfloat16: Tesla T4 only imitates it; use float16 or float32\n"
    assert capsys.readouterr().err == said
    assert not list(tmp_path.iterdir())
