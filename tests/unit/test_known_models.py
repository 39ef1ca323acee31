"""The table of known checkpoints: what a name stands for, and that nothing in it is mistyped."""

import re

import pytest

from sdpo_cli.api import BaseModelSpec, HubFiles
from sdpo_cli.builtin.models.known import KNOWN, unpinned
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.main import main
from sdpo_cli.registry import load_recipe, load_registry


def chosen(name: str, options: dict | None = None):
    return load_registry().model(name, options or {})


@pytest.mark.parametrize("row", KNOWN, ids=lambda row: row.name)
class TestEveryRow:
    def test_is_a_base_model_whose_options_are_all_defaults(self, row):
        model = chosen(row.name)
        assert isinstance(model.spec, BaseModelSpec)
        options = model.options.model_dump()
        assert {name: options[name] for name in row.options} == dict(row.options)
        usual = UNetOptions(path="-").model_dump()
        assert all(options[name] == usual[name] for name in usual if name not in row.options)

    def test_is_downloaded_by_commit(self, row):
        free = [
            files.repo for files in chosen(row.name).needs() if not re.fullmatch("[0-9a-f]{40}", files.revision or "")
        ]
        assert free == (["latent-consistency/lcm-sdxl"] if row.name == "lcm-sdxl" else [])

    def test_tells_what_it_needs_and_its_terms(self, row):
        needs = chosen(row.name).needs()
        assert needs[0].repo == row.options["path"]
        assert {files.repo for files in needs} == {row.options["path"], "/".join(unpinned(row.weights).split("/")[:2])}
        assert ("text_encoder_2/*.safetensors" in needs[0].files) is row.xl
        assert {"family", "checkpoint", "native steps", "schedule", "guidance", "licence", "access"} <= row.facts.keys()


def test_names_are_distinct():
    assert len({row.name for row in KNOWN}) == len(KNOWN)


def test_a_lightning_network_replaces_that_of_sdxl_which_is_not_fetched():
    base, weights = chosen("sdxl-lightning-4step").needs()
    assert "unet/*.safetensors" not in base.files
    assert weights == HubFiles("ByteDance/SDXL-Lightning", weights.revision, ("sdxl_lightning_4step_unet.safetensors",))


def test_a_lora_over_sdxl_needs_both():
    base, weights = chosen("hyper-sdxl-1step").needs()
    assert "unet/*.safetensors" in base.files
    assert weights == HubFiles("ByteDance/Hyper-SD", weights.revision, ("Hyper-SDXL-1step-lora.safetensors",))


def test_a_recipe_may_change_what_is_set(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "model: {name: sd-turbo, options: {scheduler: ddim, path: copy}}\n"
        "prompts: simple-animals\nreward: colorfulness\n"
    )
    (tmp_path / "copy").mkdir()
    options = load_recipe(tmp_path / "r.yaml").model.options
    assert (options.scheduler, options.path) == ("ddim", str(tmp_path / "copy"))


def test_the_written_recipe_says_all_of_it(tmp_path):
    (tmp_path / "r.yaml").write_text("model: sdxl-lightning-4step\nprompts: simple-animals\nreward: colorfulness\n")
    written = load_recipe(tmp_path / "r.yaml").recipe.model
    assert written.name == "sdxl-lightning-4step"
    assert unpinned(written.options["denoiser"]) == "ByteDance/SDXL-Lightning/sdxl_lightning_4step_unet.safetensors"
    assert (written.options["scheduler"], written.options["timestep_spacing"]) == ("euler", "trailing")


def test_show_prints_the_facts_and_the_changed_defaults(capsys):
    assert main(["plugins", "show", "lcm-sdxl"]) == 0
    shown = capsys.readouterr().out
    for fact in ("latent-consistency/lcm-sdxl", "2 to 8", "8, embedded", "CreativeML Open RAIL++-M", "1024 x 1024"):
        assert fact in shown
    assert re.search(r'\bscheduler: .*default "lcm"', shown)
