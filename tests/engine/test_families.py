"""Every family by its recipe: one epoch of training, samples, an evaluation; and what its options change."""

import json

import ldm
import parity_unet
import pytest
import tiny
import torch
from diffusers import (
    AutoencoderTiny,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file

from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import Sampler
from sdpo_cli.builtin.models import load_checkpoint, load_xl_checkpoint
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.errors import ArtifactError
from sdpo_cli.main import main
from sdpo_cli.maths import kernel_for

RECIPE = """\
model: {name: checkpoint, lora: {rank: 2}, options: %s}
prompts: few.txt
reward: colorfulness
rollout: {pairs: 2, steps: 2, transition: %s}
train: {epochs: 1, learning_rate: 1e-2, samples_every: 0}
eval: {steps: [2], images_per_prompt: 1}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny checkpoints: `sd`, `lcm`, `xl` and `lcm-xl`; read them, change nothing."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny.save_pipeline(folder / "sd", kind=EulerDiscreteScheduler)
    tiny.save_pipeline(folder / "lcm", kind=LCMScheduler, pipeline=LatentConsistencyModelPipeline, guidance_width=16)
    tiny.save_xl_pipeline(folder / "xl", kind=EulerAncestralDiscreteScheduler)
    tiny.save_xl_pipeline(folder / "lcm-xl", kind=LCMScheduler, guidance_width=16)
    return folder


@pytest.fixture(scope="module")
def other(folder, tmp_path_factory):
    """The network of `xl` with other weights, as a file and as a folder; and a LoRA for it."""
    place = tmp_path_factory.mktemp("other")
    unet = UNet2DConditionModel.from_pretrained(folder / "xl" / "unet")
    with torch.no_grad():
        unet.conv_in.weight.mul_(1.5)
    save_file(unet.state_dict(), place / "denoiser.safetensors")
    unet.save_pretrained(place / "unet")
    tiny.with_random_adapter(load_xl(folder / "xl")).save_adapter(place / "lora")
    return place


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    """`sd` as one file."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "sd", safety_checker=None)
    return ldm.save_single_file(pipeline, tmp_path_factory.mktemp("single") / "model.safetensors")


def load(path, **options):
    return load_checkpoint(UNetOptions(path=str(path), **options), LoadContext())


def load_xl(path, **options):
    return load_xl_checkpoint(UNetOptions(path=str(path), **options), LoadContext())


@pytest.mark.parametrize(
    ("checkpoint", "options", "transition", "sampler", "size"),
    [
        ("sd", {}, "ddim", Sampler("ddim", 0.0), (16, 16)),
        ("lcm", {"guidance": 4.0}, "renoise", Sampler("renoise", 1.0), (16, 16)),
        ("xl", {"text_encoders": "offload"}, "ddim", Sampler("ddim", 1.0), (16, 16)),
        ("xl", {"guidance": 5.0, "height": 24, "gradient_checkpointing": True}, "cps", Sampler("ddim", 1.0), (16, 24)),
        ("lcm-xl", {"vae_tiling": True}, "renoise", Sampler("renoise", 1.0), (16, 16)),
    ],
)
def test_one_epoch_samples_an_evaluation_and_an_export(
    folder, tmp_path, monkeypatch, checkpoint, options, transition, sampler, size
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").symlink_to(folder / checkpoint)
    (tmp_path / "few.txt").write_text("cat\nowl\n")
    (tmp_path / "small.yaml").write_text(RECIPE % (json.dumps(options), transition))
    assert main(["train", "small.yaml", "--quiet"]) == 0
    metrics = json.loads((tmp_path / "runs/small/metrics.jsonl").read_text())
    assert (metrics["epoch"], metrics["images"]) == (1, 4)
    assert metrics["grad_norm"] > 0
    assert main(["sample", "--prompt", "cat", "--steps", "3", "--count", "1", "--out", "drawn", "--quiet"]) == 0
    row = json.loads((tmp_path / "drawn/samples.jsonl").read_text())
    assert Sampler(row["transition"], row["eta"]) == sampler
    with Image.open(tmp_path / "drawn" / row["file"]) as picture:
        assert picture.size == size
    other = ["sample", "--prompt", "cat", "--count", "1", "--out", "other", "--eta", "0.5", "--quiet"]
    assert main(other) == (2 if sampler.transition == "renoise" else 0)
    assert (tmp_path / "other").exists() is (sampler.transition != "renoise")
    assert main(["eval", "--steps", "1", "--quiet"]) == 0
    (result,) = json.loads((tmp_path / "evals/small/report.json").read_text())["results"]
    assert (result["steps"], result["count"]) == (1, 2)
    assert main(["export", "--format", "kohya", "--quiet"]) == 0
    bare = (load_xl if "xl" in checkpoint else load)(folder / checkpoint)
    tiny.check_kohya_export(bare, tmp_path / "runs/small", tmp_path / "exports/small-kohya", tmp_path / "back")


class TestGuidance:
    def test_both_conditions_go_through_the_network_in_one_batch(self, folder, monkeypatch):
        model = load(folder / "sd", guidance=3.0)
        rows = []
        predict = model.predict
        monkeypatch.setattr(model, "predict", lambda x, *rest: rows.append(len(x)) or predict(x, *rest))
        at = kernel_for(model.schedule(2), "ddim", 0.0).at(torch.tensor([0, 1]))
        model.denoise(torch.zeros(2, *model.latent_shape), at, model.encode(["cat", "dog"]))
        assert rows == [4]

    def test_it_moves_the_output_away_from_the_empty_prompts(self, folder):
        guided, plain = load(folder / "sd", guidance=3.0), load(folder / "sd")
        x, t = torch.randn(1, *plain.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([499.0])
        without, within = (plain.predict(x, t, plain.encode([text])) for text in ("", "cat"))
        expected = without + 3 * (within - without)
        torch.testing.assert_close(guided.guided(x, t, guided.encode(["cat"])), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("scale", [None, 0.0, 1.0])
    def test_a_scale_that_changes_nothing_costs_nothing(self, folder, scale):
        model = load(folder / "sd", guidance=scale)
        assert set(model.encode(["cat"])) == {"prompt_embeds"}

    def test_an_lcm_is_told_the_scale_less_one(self, folder):
        model, other = load(folder / "lcm"), load(folder / "lcm", guidance=2.0)
        theirs = model.pipeline.get_guidance_scale_embedding(torch.tensor([7.0]), 16)
        assert torch.equal(model.guidance_embedding, theirs)
        assert not torch.equal(model.guidance_embedding, other.guidance_embedding)
        assert model.guidance is None


class TestSdxl:
    def test_the_network_is_told_the_size_it_draws(self, folder):
        conditioning = load_xl(folder / "xl", height=24, width=32).encode(["cat", "dog"])
        assert conditioning["time_ids"].tolist() == [[24, 32, 0, 0, 24, 32]] * 2
        assert conditioning["text_embeds"].shape == (2, 12)

    def test_float16_pictures_are_decoded_in_float32(self, folder):
        options = UNetOptions(path=str(folder / "xl"))
        model = load_xl_checkpoint(options, LoadContext(dtype="float16"))
        assert (model.denoiser.dtype, model.vae.dtype) == (torch.float16, torch.float32)
        assert model.decode(torch.full((1, *model.latent_shape), 3.0)).isfinite().all()


class TestOtherWeights:
    @pytest.mark.parametrize("form", ["denoiser.safetensors", "unet"])
    def test_a_denoiser_takes_the_place_of_the_pipelines(self, folder, other, form):
        model = load_xl(folder / "xl", denoiser=str(other / form))
        official = StableDiffusionXLPipeline.from_pretrained(folder / "xl")
        expected = official.unet.conv_in.weight * 1.5
        assert torch.equal(model.denoiser.conv_in.weight, expected)
        assert model.identity != load_xl(folder / "xl").identity

    def test_the_pipelines_own_denoiser_need_not_be_there_then(self, folder, other, tmp_path):
        (tmp_path / "xl").symlink_to(folder / "xl")
        copy = tmp_path / "copy"
        copy.mkdir()
        for part in (folder / "xl").iterdir():
            (copy / part.name).symlink_to(part) if part.name != "unet" else (copy / "unet").mkdir()
        (copy / "unet" / "config.json").write_text((folder / "xl" / "unet" / "config.json").read_text())
        model = load_xl(copy, denoiser=str(other / "denoiser.safetensors"))
        assert model.identity == load_xl(folder / "xl", denoiser=str(other / "unet")).identity

    def test_an_lcm_network_over_sdxl_takes_guidance_as_an_input(self, folder):
        unet = str(folder / "lcm-xl" / "unet")
        model = load_xl(folder / "xl", denoiser=unet, scheduler="lcm")
        assert model.sampler == Sampler("renoise", 1.0)
        assert model.guidance_embedding.shape == (1, 16)

    def test_a_merged_lora_draws_what_the_official_pipeline_draws_with_it(self, folder, other):
        model = load_xl(folder / "xl", base_lora=str(other / "lora" / "pytorch_lora_weights.safetensors"))
        assert not model.trainable()
        family = parity_unet.Family("", lambda path: folder / "xl", StableDiffusionXLPipeline)
        official = StableDiffusionXLPipeline.from_pretrained(folder / "xl")
        official.set_progress_bar_config(disable=True)
        official.load_lora_weights(other / "lora")
        assert tiny.biggest_difference(parity_unet.ours(model, 2), family.official_latents(official, 2)) < 1e-4
        bare = load_xl(folder / "xl")
        assert tiny.biggest_difference(parity_unet.ours(model, 2), parity_unet.ours(bare, 2)) > 1e-2

    def test_its_strength_can_be_set(self, folder, other):
        lora = str(other / "lora" / "pytorch_lora_weights.safetensors")
        none = load_xl(folder / "xl", base_lora=lora, base_lora_scale=0.0)
        assert none.identity == load_xl(folder / "xl").identity


class TestSingleFile:
    def test_it_draws_as_the_folder_it_was_made_from(self, folder, file):
        one, whole = load(file, config=str(folder / "sd")), load(folder / "sd")
        assert one.identity == whole.identity
        assert torch.equal(parity_unet.ours(one, 2), parity_unet.ours(whole, 2))

    def test_a_recipe_names_it_with_the_folder_of_its_settings(self, folder, file, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "one.safetensors").symlink_to(file)
        (tmp_path / "settings").symlink_to(folder / "sd")
        (tmp_path / "few.txt").write_text("cat\nowl\n")
        recipe = RECIPE.replace("name: checkpoint", "name: one.safetensors") % ("{config: settings}", "ddim")
        (tmp_path / "small.yaml").write_text(recipe)
        assert main(["train", "small.yaml", "--quiet"]) == 0
        assert (tmp_path / "runs/small/adapter/pytorch_lora_weights.safetensors").is_file()


class TestTinyVae:
    def tiny_vae(self, path, levels: int = 2, channels: int = 4):
        torch.manual_seed(0)
        AutoencoderTiny(
            encoder_block_out_channels=(8,) * levels,
            decoder_block_out_channels=(8,) * levels,
            num_encoder_blocks=(1,) * levels,
            num_decoder_blocks=(1,) * levels,
            latent_channels=channels,
        ).save_pretrained(path)
        return path

    def test_it_decodes_previews_alone(self, folder, tmp_path):
        model = load(folder / "sd", tiny_vae=str(self.tiny_vae(tmp_path / "taesd")))
        x0 = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        preview, picture = model.decode_preview(x0), model.decode(x0)
        expected = (model.tiny_vae.decode(x0).sample / 2 + 0.5).clamp(0, 1)
        assert torch.equal(preview, expected)
        assert torch.equal(picture, load(folder / "sd").decode(x0))
        assert not torch.equal(preview, picture)

    def test_without_one_previews_are_the_pictures(self, folder):
        model = load(folder / "sd")
        x0 = torch.zeros(1, *model.latent_shape)
        assert torch.equal(model.decode_preview(x0), model.decode(x0))

    @pytest.mark.parametrize("shape", [{"levels": 3}, {"channels": 16}])
    def test_one_for_other_latents_is_refused(self, folder, tmp_path, shape):
        path = self.tiny_vae(tmp_path / "other", **shape)
        with pytest.raises(ArtifactError) as fault:
            load(folder / "sd", tiny_vae=str(path))
        assert str(fault.value) == (
            f"{path}: this tiny VAE is not for the latents of this model; name the one made for its VAE"
        )
