"""What a recipe says of the adapter: full training, or a LoRA to go on with, and nothing that contradicts it."""

import pytest

from sdpo_cli.api.tensors import AdapterOptions
from sdpo_cli.engine.learning.optimizer import check_optimizer
from sdpo_cli.engine.setup import adapter_options
from sdpo_cli.errors import RecipeError, UsageError
from sdpo_cli.recipe import ModelSection, TrainSection, dump_recipe
from sdpo_cli.registry.resolve import load_recipe

RECIPE = "model: {name: emoji-turbo, %s}\nprompts: simple-animals\nreward: colorfulness\n"


def load(folder, model: str):
    (folder / "x.yaml").write_text(RECIPE % model)
    return load_recipe(folder / "x.yaml").recipe


FAULTS = {
    "train: full, lora: {rank: 4}": (
        "model.lora: model.train full trains no LoRA, so no rank; leave it out: model.lora={}"
    ),
    "train: full, dtype: float16": (
        "model.dtype: float16 is too coarse for the gradients of model.train full; use bfloat16 or float32"
    ),
    "lora: {start: run, rank: 8}": ("model.lora: start says rank itself; leave the rest out: model.lora={start: PATH}"),
    "lora: {start: run, rank: 8, targets: linear}": (
        "model.lora: start says rank and targets itself; leave the rest out: model.lora={start: PATH}"
    ),
    "train: half": "model.train: 'half' should be 'lora' or 'full'",
}


@pytest.mark.parametrize("model", FAULTS)
def test_contradictions_are_refused(tmp_path, model):
    with pytest.raises(RecipeError) as fault:
        load(tmp_path, model)
    assert fault.value.faults == [f"{tmp_path}/x.yaml: {FAULTS[model]}"]


def test_a_start_is_meant_from_the_recipes_folder_and_written_out_whole(tmp_path):
    (tmp_path / "run").mkdir()
    recipe = load(tmp_path, "lora: {start: run}")
    assert recipe.model.lora.start == str(tmp_path / "run")
    (tmp_path / "written.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "written.yaml").recipe == recipe
    assert load(tmp_path, "lora: {start: gone}").model.lora.start == "gone"


def test_null_means_the_usual_lora():
    assert adapter_options(ModelSection(name="m"), 0) == AdapterOptions(rank=8, alpha=8.0, targets="attention")
    wide = ModelSection(name="m", lora={"rank": 4, "targets": ("to_q",)})
    assert adapter_options(wide, 3) == AdapterOptions(rank=4, alpha=4.0, targets=("to_q",), seed=3)
    assert adapter_options(ModelSection(name="m", train="full"), 0).kind == "full"


def test_eight_bits_need_their_library(monkeypatch):
    monkeypatch.setattr("sdpo_cli.engine.learning.optimizer.find_spec", lambda name: None)
    with pytest.raises(UsageError) as fault:
        check_optimizer(TrainSection(optimizer="adamw8bit"))
    assert str(fault.value) == (
        "train.optimizer adamw8bit: needs bitsandbytes, which is not installed; "
        "pip install 'sdpo-cli[adamw8bit]', or use adamw"
    )
    check_optimizer(TrainSection())
