"""`sdpo bench`: what it prints and writes, and what it refuses to compare."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import AdapterOptions
from sdpo_cli.builtin.models.architectures import Architecture, architecture
from sdpo_cli.builtin.models.known import KNOWN
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.builtin.models.random_weights import random_model, random_parts
from sdpo_cli.builtin.models.stable_diffusion import StableDiffusion
from sdpo_cli.builtin.models.stable_diffusion_xl import StableDiffusionXL
from sdpo_cli.commands.bench import spread, summary
from sdpo_cli.engine.benching import bench as engine_bench
from sdpo_cli.engine.benching.random_weights import with_random_weights
from sdpo_cli.engine.benching.record import STAGES, check_comparable, middle, read_result
from sdpo_cli.engine.disk.files import check_writable
from sdpo_cli.errors import UsageError
from sdpo_cli.main import main
from sdpo_cli.maths import kernel_for
from sdpo_cli.registry import load_recipe

SMALL = ["--set", "rollout.pairs=2", "--set", "rollout.steps=2"]
MEASURE = ["bench", "quickstart", "--epochs", "1", "--quiet", *SMALL]
PARAMETERS = {"sd-turbo": 865_910_724, "sd-v1-5": 859_520_964, "sdxl-turbo": 2_567_463_684}
"""Of the UNets, as their model cards and weight files have them."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with a result."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*MEASURE, "--json", "a.json"]) == 0
    return folder


def test_a_result_has_every_stage_and_its_rates(measured):
    result = json.loads((measured / "a.json").read_text())
    assert tuple(result["stages"]) == STAGES
    assert all(len(stage["seconds"]) == 1 and stage["seconds"][0] >= 0 for stage in result["stages"].values())
    assert result["pairs_per_second"] == pytest.approx(2 / result["epochs"][0])
    assert (result["pairs"], result["images"], result["new_graphs"]) == (2, 4, 0)
    assert {name for name, stage in result["stages"].items() if stage["utilisation"]} == {"rollout", "decode", "update"}
    assert not (measured / "runs").exists()


def test_the_spread_of_one_measurement_is_unknown():
    assert (spread([1.25]), spread([1.0, 1.5])) == ("1.250", "1.250 ± 0.250")


def test_compares_with_an_earlier_result_and_several_with_each_other(measured, monkeypatch, capsys):
    monkeypatch.chdir(measured)
    several = ["--repeat", "2", "--epochs", "2", "--against", "a.json", "--json", "b.json"]
    assert main([*MEASURE, *several, "--set", "train.micro_batch=1"]) == 0
    out, result = capsys.readouterr().out, read_result(measured / "b.json")
    rates = sorted(2 / seconds for seconds in result.repeats)
    assert len(rates) == 2
    assert f"the one in the middle of 2 measurements, {rates[0]:.3g} to {rates[1]:.3g} pairs/s\n" in out
    assert f"{rates[1]:.3g} pairs/s, " in out  # of two the faster
    assert "times as fast as before" in out
    assert f"peak {result.peaks_gb[0]:.2f} (first epoch) to {result.peaks_gb[1]:.2f} (last) GB" in out


def test_the_median_measurement_is_the_result(measured):
    result = read_result(measured / "a.json")
    several = [replace(result, epochs=[seconds], repeats=[]) for seconds in (5.0, 1.0, 3.0)]
    assert middle(several) == replace(several[2], repeats=[5.0, 1.0, 3.0])
    assert middle(several[:2]) == replace(several[1], repeats=[5.0, 1.0])
    assert middle(several[:2]).epoch == 1.0


def test_refuses_before_it_measures_to_compare_with_other_work(measured, monkeypatch, capsys):
    monkeypatch.chdir(measured)
    monkeypatch.setattr(engine_bench, "bench", lambda *args, **kwargs: pytest.fail("measured"))
    assert main([*MEASURE, "--against", "a.json", "--set", "rollout.pairs=3"]) == 2
    assert capsys.readouterr().err == (
        "error: a.json: measured with rollout.pairs 2, not 3; compare results of the same recipe on the same device\n"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [({"device": "abacus"}, "device abacus, not"), ({"random_weights": True}, "--random-weights True, not False")],
)
def test_another_device_or_other_weights_are_not_compared(measured, change, said):
    result = read_result(measured / "a.json")
    with pytest.raises(UsageError, match=f"^a.json: measured with {said}"):
        check_comparable(result, replace(result, **change), Path("a.json"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}'])
def test_refuses_what_is_no_result_before_it_measures(workplace, capsys, text):
    (workplace / "bad.json").write_text(text)
    assert main([*MEASURE, "--against", "bad.json"]) == 4
    assert "bad.json: not a result of sdpo bench" in capsys.readouterr().err


def test_refuses_a_result_of_an_older_format(workplace, capsys):
    (workplace / "old.json").write_text('{"format": 1}')
    assert main([*MEASURE, "--against", "old.json"]) == 4
    assert capsys.readouterr().err == "error: old.json: format 1, not 2; measure it again\n"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("absent/a.json", "absent: no such folder; make it, or name another file"),
        (".", ".: is a folder; name a file"),
    ],
)
def test_refuses_before_it_measures_to_write_where_it_cannot(workplace, capsys, path, said):
    assert main([*MEASURE, "--json", path]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"


@pytest.mark.parametrize("text", ["name: victim\n", "[1]", "{}"])
def test_writes_over_nothing_but_a_result(workplace, capsys, text):
    Path("victim.yaml").write_text(text)
    assert main([*MEASURE, "--json", "victim.yaml"]) == 2
    said = "victim.yaml: is no result of sdpo bench, and would be lost; name another file"
    assert capsys.readouterr().err == f"error: {said}\n"
    assert Path("victim.yaml").read_text() == text


def test_rewards_that_were_left_out_are_named_beside_the_memory(measured):
    result = read_result(measured / "a.json")
    assert result.absent == []
    lines = summary(replace(result, peaks_gb=[2.5], absent=["aesthetic", "hpsv2"]), None)
    assert any(line.startswith("peak 2.5 GB without aesthetic, hpsv2, micro_batch 2; ") for line in lines)


def test_a_result_from_before_they_were_kept_is_read(measured, tmp_path):
    kept = json.loads((measured / "a.json").read_text())
    del kept["absent"]
    (tmp_path / "old.json").write_text(json.dumps(kept))
    assert read_result(tmp_path / "old.json").absent == ()


def test_tries_before_it_measures_whether_it_can_write(monkeypatch, capsys):
    monkeypatch.setattr(engine_bench, "bench", lambda *args, **kwargs: pytest.fail("measured"))
    name = "a" * 300
    assert main([*MEASURE, "--json", name]) == 4
    said = "cannot be written (File name too long); check the folder and its permissions"
    assert capsys.readouterr().err == f"error: {name}: {said}\n"


def test_the_trial_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


class TestRandomWeights:
    @pytest.mark.parametrize("name", PARAMETERS)
    def test_the_architecture_has_as_many_parameters_as_the_published_one(self, name):
        (row,) = [row for row in KNOWN if row.name == name]
        parts = random_parts(architecture(row), LoadContext(device="meta", dtype="bfloat16"))
        assert sum(one.numel() for one in parts["unet"].parameters()) == PARAMETERS[name]
        assert parts["vae"].dtype == torch.bfloat16

    @pytest.mark.parametrize("family", [StableDiffusion, StableDiffusionXL])
    def test_draws_and_has_a_gradient(self, family):
        model = random_model(family, small(family), UNetOptions(path="nowhere"), LoadContext())
        model.add_adapter(AdapterOptions())
        x = torch.randn(1, *model.latent_shape)
        at = kernel_for(model.schedule(2), "ddim", 1.0).at(torch.zeros(1, dtype=torch.long))
        model.denoise(x, at, model.encode(["a cat"])).sum().backward()
        assert any(float(one.grad.norm()) > 0 for one in model.trainable().values())
        assert model.decode(x).shape == (1, 3, 16, 16)

    def test_nothing_is_downloaded(self):
        resolved = load_recipe("aesthetic")
        random, absent = with_random_weights(resolved)
        assert absent == ["aesthetic"]
        assert all(not chosen.needs() for chosen in (random.model, *random.rewards))

    def test_of_a_model_whose_architecture_is_unknown_is_refused(self):
        with pytest.raises(UsageError) as fault:
            with_random_weights(load_recipe("quickstart"))
        assert str(fault.value) == (
            "--random-weights: the architecture of emoji-turbo is not known without a download; "
            "name a recipe of a known checkpoint, such as aesthetic, or leave it out"
        )


def small(family) -> Architecture:
    """A pipeline in the likeness of a family's, small enough for a test."""
    (row,) = [row for row in KNOWN if row.name == ("sd-turbo" if family is StableDiffusion else "sdxl-turbo")]
    real, sides = architecture(row), {"block_out_channels": (32, 32), "layers_per_block": 1}
    width = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    texts = tuple({**text, **width, "projection_dim": 32} for text in real.texts)
    unet = {
        **real.unet,
        **sides,
        "sample_size": 8,
        "attention_head_dim": 4,
        "transformer_layers_per_block": 1,
        "down_block_types": real.unet["down_block_types"][:2],
        "up_block_types": real.unet["up_block_types"][-2:],
        "cross_attention_dim": 32 * len(texts),
    }
    if family is StableDiffusionXL:
        unet["projection_class_embeddings_input_dim"] = 32 + 6 * 256
    vae = {**real.vae, **sides}
    vae |= {name: real.vae[name][:2] for name in ("down_block_types", "up_block_types")}
    return Architecture(unet, vae, texts, real.scheduler_class, real.scheduler)
