"""The transformer families as base models: contract, a whole run of each, and schedules."""

import math
import re

import diffusers
import parity_flow
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from flow_texts import TEXTS
from parity_flow import BY_NAME
from safetensors.torch import save_file
from sdpo_model_flow.families import FAMILIES

from sdpo_cli.api.lora import target_modules
from sdpo_cli.engine.learning.rollout import encode_distinct
from sdpo_cli.main import main
from sdpo_cli.maths import kernel_for
from sdpo_cli.registry import load_registry
from sdpo_cli.testing import check_base_model

every_family = pytest.mark.parametrize("name", BY_NAME)


@every_family
def test_it_keeps_the_contract(name, checkpoints):
    model = BY_NAME[name].load(checkpoints)
    check_base_model(model)
    height, width = model.decode(torch.zeros(1, *model.latent_shape)).shape[-2:]
    assert {"height": height, "width": width} == BY_NAME[name].tiny.options


RECIPE = """\
model: {{name: {folder}, options: {options}, lora: {{rank: 2}}}}
prompts: few.txt
reward: colorfulness
rollout: {{pairs: 2, steps: 3, transition: {transition}, eta: 0.7}}
train: {{epochs: 1, samples_every: 0}}
eval: {{steps: [2], images_per_prompt: 1}}
"""


@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "flux-dev"])
def test_it_is_trained_sampled_and_evaluated_by_its_folder(name, checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    family = BY_NAME[name]
    transition = {"sana-sprint": "renoise", "sd3": "sde"}.get(name, "cps")
    text = RECIPE.format(folder=family.saved(checkpoints), options=family.tiny.options, transition=transition)
    (tmp_path / "few.txt").write_text("a red cat\na dog on the moon\n")
    (tmp_path / "run.yaml").write_text(text)
    assert main(["train", "run.yaml", "--quiet"]) == 0
    assert main(["sample", "runs/run", "--prompt", "two owls", "--steps", "2", "--count", "1", "--quiet"]) == 0
    assert main(["eval", "runs/run", "--steps", "1", "--quiet"]) == 0
    assert main(["export", "runs/run", "--format", "kohya", "--quiet"]) == 0
    assert len(list((tmp_path / "samples" / "run").glob("*owls*.png"))) == 1
    bare = family.load(checkpoints)
    tiny.check_kohya_export(bare, tmp_path / "runs/run", tmp_path / "exports/run-kohya", tmp_path / "back")


@every_family
def test_the_prompt_makes_a_difference(name, checkpoints):
    model = parity_flow.bare(BY_NAME[name], checkpoints)
    start = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    at = kernel_for(model.schedule(4), "ddim", 0.0).at(torch.tensor([1, 1]))
    with torch.no_grad():
        one, other = model.denoise(start, at, encode_distinct(model, TEXTS[:2]))
    assert tiny.biggest_difference(one, other) > 1e-3


@every_family
def test_gradient_checkpointing_changes_no_gradient(name, checkpoints):
    model = tiny.with_random_adapter(BY_NAME[name].load(checkpoints))
    start, texts = torch.ones(1, *model.latent_shape), encode_distinct(model, TEXTS[:1])
    at = kernel_for(model.schedule(2), "ddim", 0.0).at(torch.tensor([0]))

    def gradients():
        model.denoise(start, at, texts).square().mean().backward()
        found = {key: weight.grad for key, weight in model.trainable().items() if weight.grad is not None}
        model.denoiser.zero_grad()
        return found

    plain = gradients()
    model.denoiser.enable_gradient_checkpointing()
    assert plain
    torch.testing.assert_close(gradients(), plain)


BLOCKS = {
    "sd3": {"transformer_blocks"},
    "flux": {"transformer_blocks", "single_transformer_blocks"},
    "flux-dev": {"transformer_blocks", "single_transformer_blocks"},
    "flux2-klein": {"transformer_blocks", "single_transformer_blocks"},
    "sana-sprint": {"transformer_blocks"},
    "z-image": {"layers", "noise_refiner", "context_refiner"},
    "qwen-image": {"transformer_blocks"},
}


@every_family
def test_lora_reaches_every_kind_of_block(name, checkpoints):
    denoiser = parity_flow.bare(BY_NAME[name], checkpoints).denoiser
    few, many = (set(target_modules(denoiser, targets)) for targets in ("attention", "linear"))
    assert {key.split(".")[0] for key in few} == BLOCKS[name]
    assert few < many


def test_the_vaes_normalisation_is_part_of_the_identity(checkpoints):
    model = BY_NAME["flux2-klein"].load(checkpoints)
    model.vae.bn.running_mean += 0.1
    assert type(model)(model.pipeline, "here", model.options).identity != model.identity


def test_a_known_shift_gives_known_levels(checkpoints):
    """Shift 3 of t is 3 t / (1 + 2 t)."""
    schedule = parity_flow.bare(BY_NAME["z-image"], checkpoints).schedule(4)
    torch.testing.assert_close(schedule.sigma, torch.tensor([1.0, 0.9, 0.75, 0.5], dtype=torch.float64))
    torch.testing.assert_close(schedule.sigma_next, torch.tensor([0.9, 0.75, 0.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(schedule.alpha, 1 - schedule.sigma)
    torch.testing.assert_close(schedule.timestep, 1000 * schedule.sigma)


@pytest.mark.parametrize(
    ("name", "pixels", "mu"),
    [
        ("flux", 64, None),  # schnell has no shift
        ("flux-dev", 64, 0.5),  # 64 px are 16 x 16 tokens of the tiny VAE: the smallest size of the rule
        ("flux-dev", 256, 1.15),  # 64 x 64 tokens: the largest
        ("flux2-klein", 256, 2.2912),  # its rule at 4096 tokens: 2.2563 at 10 steps, 1.1500 at 200, a line through both
    ],
)
def test_the_shift_follows_the_size_of_the_picture(name, pixels, mu, checkpoints):
    """A shift by μ of t is e^μ / (e^μ + 1 / t - 1)."""
    schedule = BY_NAME[name].load(checkpoints, height=pixels, width=pixels).schedule(4)
    shift = 1.0 if mu is None else math.exp(mu)
    expected = [shift / (shift + 1 / t - 1) for t in (1, 0.75, 0.5, 0.25)]
    assert schedule.sigma.tolist() == pytest.approx(expected, abs=1e-4)


def test_sana_goes_through_the_angle_it_was_distilled_with(checkpoints):
    schedule = parity_flow.bare(BY_NAME["sana-sprint"], checkpoints).schedule(2)
    assert schedule.timestep.tolist() == pytest.approx([1.5708, 1.3])
    assert schedule.alpha.tolist() == pytest.approx([0.0, math.cos(1.3)], abs=1e-5)
    assert schedule.sigma_next.tolist() == pytest.approx([math.sin(1.3), 0.0])


def test_stochastic_schedulers_noise_again(checkpoints, tmp_path):
    model = BY_NAME["flux"].load(checkpoints)
    model.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    assert type(model)(model.pipeline, "here", model.options).sampler.transition == "renoise"


def test_a_fixed_shift_is_what_lightning_asks_of_the_scheduler(checkpoints):
    published = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=math.log(3), max_shift=math.log(3), max_image_seq_len=8192
    )
    published.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=math.log(3))
    schedule = BY_NAME["qwen-image"].load(checkpoints, shift=3.0).schedule(4)
    torch.testing.assert_close(schedule.sigma.float(), published.sigmas[:-1])


def test_a_merged_pipeline_keeps_the_fixed_shift(checkpoints, tmp_path):
    family = BY_NAME["qwen-image"]
    model = family.load(checkpoints, shift=3.0)
    model.save_merged(tmp_path)
    merged = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    merged.set_progress_bar_config(disable=True)
    drawn = parity_flow.ours(family, model, 4)
    assert tiny.biggest_difference(drawn, parity_flow.draw_officially(family, merged, 4).drawn) < 1e-4
    own = parity_flow.ours(family, parity_flow.bare(family, checkpoints), 4)
    assert tiny.biggest_difference(drawn, own) > 1e-2


def test_a_lightning_lora_is_merged_as_the_official_pipeline_loads_it(checkpoints, tmp_path):
    family = BY_NAME["qwen-image"]
    generator = torch.Generator().manual_seed(2)
    weights = {}
    for layer in ("attn.to_q", "attn.add_k_proj"):
        name = f"transformer_blocks.0.{layer}"
        weights[f"{name}.lora_down.weight"] = torch.randn(4, 32, generator=generator)
        weights[f"{name}.lora_up.weight"] = torch.randn(32, 4, generator=generator)
        weights[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(weights, tmp_path / "lightning.safetensors")
    merged = family.load(checkpoints, base_lora=str(tmp_path / "lightning.safetensors"))
    official = family.official(checkpoints)
    official.load_lora_weights(tmp_path / "lightning.safetensors")
    drawn = parity_flow.ours(family, merged, 4)
    assert tiny.biggest_difference(drawn, parity_flow.draw_officially(family, official, 4).drawn) < 1e-4
    bare = parity_flow.official_runs(family, checkpoints)[4].drawn
    assert tiny.biggest_difference(drawn, bare) > 1e-2


def test_guidance_reaches_a_network_that_takes_it(checkpoints):
    weak, strong = (BY_NAME["flux-dev"].load(checkpoints, guidance=scale) for scale in (1.0, 8.0))
    assert (weak.guidance, strong.guidance) == (1.0, 8.0)
    family = BY_NAME["flux-dev"]
    assert tiny.biggest_difference(parity_flow.ours(family, weak, 1), parity_flow.ours(family, strong, 1)) > 1e-3


@pytest.mark.parametrize("name", [one.name for family in FAMILIES for one in family.known])
def test_a_known_checkpoint_names_all_that_it_downloads_by_commit(name):
    chosen = load_registry().model(name)
    assert chosen.spec.facts["family"] in {family.pipeline for family in FAMILIES}
    first, *rest = chosen.needs()
    assert first.repo == chosen.options.path
    assert first.revision == chosen.options.revision
    assert all(re.fullmatch("[0-9a-f]{40}", files.revision) for files in (first, *rest))
    assert {pattern.split("/")[0] for pattern in first.files if pattern.endswith(".safetensors")} >= {
        "transformer",
        "vae",
        "text_encoder",
    }
    assert [files.repo for files in rest] == (["lightx2v/Qwen-Image-Lightning"] if "lightning" in name else [])
