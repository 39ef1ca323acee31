"""Checkpoints that cannot be used: one line each, with the file and the remedy, and the exit code."""

import re
import shutil

import pytest
import tiny
import torch
from diffusers import EulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from sdpo_cli.api import LoadContext
from sdpo_cli.builtin.models import load_checkpoint, load_xl_checkpoint
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.builtin.objectives.options import SdpoOptions
from sdpo_cli.builtin.objectives.sdpo import Sdpo
from sdpo_cli.engine.setup import check_noise
from sdpo_cli.errors import SdpoError
from sdpo_cli.main import main
from sdpo_cli.maths import Schedule, kernel_for
from sdpo_cli.registry import load_recipe, load_registry

RECIPE = """\
model: {name: %s, options: %s}
prompts: few.txt
reward: colorfulness
rollout: {pairs: 2, steps: %d}
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A tiny checkpoint; read it, change nothing."""
    return tiny.save_pipeline(tmp_path_factory.mktemp("whole") / "sd", kind=EulerDiscreteScheduler)


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it to break."""
    return shutil.copytree(whole, tmp_path / "sd")


def said(path, load=load_checkpoint, **options) -> str:
    """What loading the checkpoint says."""
    with pytest.raises(SdpoError) as fault:
        load(UNetOptions(path=str(path), **options), LoadContext())
    return str(fault.value)


class TestParts:
    def test_a_missing_folder(self, copy):
        shutil.rmtree(copy / "vae")
        assert said(copy) == (
            f"{copy / 'vae'}: its index names AutoencoderKL, but there is no such folder; "
            "copy the whole pipeline, or save it anew"
        )

    def test_a_text_encoder_without_some_of_its_weights(self, copy):
        path = copy / "text_encoder" / "model.safetensors"
        weights = load_file(path)
        (lost,) = [name for name in weights if name.endswith("mlp.fc1.weight")]
        save_file({name: weight for name, weight in weights.items() if name != lost}, path, {"format": "pt"})
        assert re.fullmatch(
            rf"{copy / 'text_encoder'}: of the weights of CLIPTextModel 1 are missing, the first \S*mlp.fc1.weight; "
            "fetch or save the pipeline anew",
            said(copy),
        )

    def test_pickled_weights_alone(self, copy):
        (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / "diffusion_pytorch_model.bin")
        assert said(copy) == (
            f"{copy / 'unet'}: only pickled weights, which are never loaded; "
            "save the pipeline anew with safe_serialization=True"
        )

    def test_no_weights(self, copy):
        (copy / "text_encoder" / "model.safetensors").unlink()
        assert said(copy) == (
            f"{copy / 'text_encoder'}: no safetensors weights; save the pipeline anew with safe_serialization=True"
        )

    @pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
    def test_a_file_cut_short(self, copy, part):
        file = copy / f"{part}.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        assert said(copy) == (
            f"{file}: damaged (Error while deserializing header: incomplete metadata, file not fully covered); "
            "fetch or copy it again"
        )

    @pytest.mark.parametrize(
        ("part", "kind", "lost"),
        [("unet", "UNet2DConditionModel", "conv_in.bias"), ("vae", "AutoencoderKL", "decoder.conv_in.bias")],
    )
    def test_weights_that_are_not_all_there(self, copy, part, kind, lost):
        file = copy / part / "diffusion_pytorch_model.safetensors"
        save_file({name: one for name, one in load_file(file).items() if name != lost}, file)
        assert said(copy) == (
            f"{copy / part}: not loadable as {kind} (it has no {lost}); "
            "name a folder in diffusers layout with safetensors weights"
        )

    def test_a_broken_index(self, copy):
        (copy / "model_index.json").write_text("{")
        assert said(copy) == f"{copy}: no readable model_index.json; name a folder as diffusers saves a pipeline"

    def test_settings_that_do_not_fit_the_weights(self, copy):
        settings = copy / "unet" / "config.json"
        settings.write_text(settings.read_text().replace('"cross_attention_dim": 16', '"cross_attention_dim": 24'))
        line = said(copy)
        assert line.startswith(f"{copy}: not loadable as StableDiffusionPipeline (")
        assert line.endswith("); name a folder in diffusers layout with safetensors weights")


class TestOtherWeights:
    def test_a_denoiser_of_another_shape(self, whole, tmp_path):
        weights = load_file(whole / "unet" / "diffusion_pytorch_model.safetensors")
        save_file({**weights, "conv_in.bias": torch.zeros(17)}, tmp_path / "wide.safetensors")
        assert said(whole, denoiser=str(tmp_path / "wide.safetensors")) == (
            f"{tmp_path / 'wide.safetensors'}: not the weights of this UNet2DConditionModel "
            "(conv_in.bias is [17], not [16]); name weights in diffusers' form, of the same shape"
        )

    def test_a_network_of_another_family(self, whole, tmp_path):
        xl = tiny.save_xl_pipeline(tmp_path / "xl")
        line = said(whole, denoiser=str(xl / "unet"))
        assert line.startswith(f"{xl / 'unet'}: not the weights of this UNet2DConditionModel (")
        assert line.endswith(" is [16, 40], not [16, 16]); name weights in diffusers' form, of the same shape")

    @pytest.mark.parametrize(
        ("option", "kind"), [("denoiser", "UNet2DConditionModel"), ("tiny_vae", "AutoencoderTiny")]
    )
    def test_a_network_of_another_class(self, whole, option, kind):
        line = said(whole, **{option: str(whole / "vae")})
        assert line.startswith(f"{whole / 'vae'}: not loadable as {kind} (it has no ")
        assert line.endswith("); name a folder in diffusers layout with safetensors weights")

    def test_a_denoiser_that_is_something_else(self, whole):
        vae = whole / "vae" / "diffusion_pytorch_model.safetensors"
        assert said(whole, denoiser=str(vae)) == (
            f"{vae}: not the weights of this UNet2DConditionModel (it has no conv_in.weight); "
            "name weights in diffusers' form, of the same shape"
        )

    def test_a_denoiser_with_too_much(self, whole, tmp_path):
        weights = load_file(whole / "unet" / "diffusion_pytorch_model.safetensors")
        save_file({**weights, "more": torch.zeros(1)}, tmp_path / "more.safetensors")
        assert said(whole, denoiser=str(tmp_path / "more.safetensors")) == (
            f"{tmp_path / 'more.safetensors'}: not the weights of this UNet2DConditionModel (more is unknown); "
            "name weights in diffusers' form, of the same shape"
        )

    @pytest.mark.parametrize("option", ["denoiser", "base_lora"])
    def test_a_file_that_is_not_there(self, whole, option):
        assert said(whole, **{option: "lora.pt"}) == (
            "lora.pt: no such file; name a .safetensors file, or OWNER/NAME/FILE.safetensors on the hub"
        )

    @pytest.mark.parametrize("option", ["denoiser", "base_lora"])
    def test_a_damaged_file(self, whole, tmp_path, option):
        (tmp_path / "cut.safetensors").write_bytes(b"not much")
        assert said(whole, **{option: str(tmp_path / "cut.safetensors")}) == (
            f"{tmp_path / 'cut.safetensors'}: damaged (Error while deserializing header: header too large); "
            "fetch or copy it again"
        )

    def test_a_lora_for_another_family(self, whole, tmp_path):
        xl = load_xl_checkpoint(UNetOptions(path=str(tiny.save_xl_pipeline(tmp_path / "xl"))), LoadContext())
        tiny.with_random_adapter(xl).save_adapter(tmp_path / "lora")
        lora = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
        line = said(whole, base_lora=str(lora))
        assert line.startswith(f"{lora}: this LoRA does not fit the model (")
        assert line.endswith("); use the base model it was made for")

    @pytest.mark.parametrize(
        ("key", "fault"),
        [
            ("unet.no_such_block.attn1.to_q", "of its 4 tensors 2 found a place"),
            ("transformer.blocks.0.attn.to_q", "of its 4 tensors 2 found a place"),
        ],
    )
    def test_a_lora_of_which_a_part_fits_nowhere(self, whole, tmp_path, key, fault):
        fits = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
        parts = {"lora_A.weight": torch.zeros(2, 16), "lora_B.weight": torch.zeros(16, 2)}
        save_file(
            {f"{k}.{end}": part.clone() for k in (fits, key) for end, part in parts.items()}, tmp_path / "a.safetensors"
        )
        assert said(whole, base_lora=str(tmp_path / "a.safetensors")) == (
            f"{tmp_path / 'a.safetensors'}: this LoRA does not fit the model ({fault}); "
            "use the base model it was made for"
        )


class TestSingleFiles:
    def test_without_settings(self, whole, tmp_path):
        file = shutil.copy(whole / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "one.safetensors")
        assert (
            said(file) == f"{file}: a single file holds no settings; name a pipeline of the same shape as option config"
        )
        with pytest.raises(SdpoError) as fault:
            load_registry().model("one.safetensors", place="r.yaml: model", folder=tmp_path)
        assert str(fault.value) == (
            "r.yaml: model: one.safetensors is a single file, which holds no settings; "
            "name a pipeline of the same shape as option config: a folder or hub id"
        )

    def test_settings_that_are_not_there(self, tmp_path):
        (tmp_path / "one.safetensors").write_bytes(b"")
        with pytest.raises(SdpoError) as fault:
            load_registry().model("one.safetensors", {"config": "gone"}, "r.yaml: model", tmp_path)
        assert str(fault.value) == "r.yaml: model: gone is neither a folder nor a hub id; correct option config"

    def test_one_that_is_no_whole_pipeline(self, whole):
        vae = whole / "vae" / "diffusion_pytorch_model.safetensors"
        line = said(vae, config=str(whole))
        assert line.startswith(f"{vae}: not loadable as StableDiffusionPipeline (")
        assert line.endswith("); name one that holds a whole pipeline")


@pytest.mark.parametrize(("side", "pixels", "near"), [("height", 15, 14), ("width", 17, 16)])
def test_a_size_between_two_latents(whole, side, pixels, near):
    assert said(whole, **{side: pixels}) == f"model.options.{side}: {pixels} is no multiple of 2; use {near}"


class TestRecipes:
    @pytest.fixture(autouse=True)
    def folder(self, whole, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "few.txt").write_text("cat\nowl\n")
        (tmp_path / "model").symlink_to(whole)
        return tmp_path

    def error(self, folder, capsys, options: str, steps: int, model: str = "model") -> str:
        """What training by the recipe says; nothing is written."""
        (folder / "r.yaml").write_text(RECIPE % (model, options, steps))
        assert main(["train", "r.yaml", "--quiet"]) == 2
        assert not (folder / "runs").exists()
        return capsys.readouterr().err

    def test_steps_that_the_schedule_has_not(self, folder, capsys):
        assert self.error(folder, capsys, "{scheduler: lcm}", 51) == (
            f"error: r.yaml: rollout.steps, {folder / 'model'}: 51 steps cannot be sampled; use 1 to 50 steps\n"
        )

    def test_options_that_are_unknown_or_wrong(self, folder, capsys):
        options = "{scheduler: heun, guidance: -1, timestep_spacing: wide}"
        place = "error: r.yaml: model.options"
        assert self.error(folder, capsys, options, 2).splitlines() == [
            f"{place}.guidance: -1 should be at least 0",
            f"{place}.scheduler: 'heun' should be 'own', 'ddim', 'euler', 'euler-ancestral' or 'lcm'",
            f"{place}.timestep_spacing: 'wide' should be 'own', 'trailing', 'leading' or 'linspace'",
        ]

    @pytest.mark.parametrize(
        ("model", "options", "weights"),
        [
            ("sd-turbo", "{guidance: 2}", "stabilityai/sd-turbo"),
            ("sdxl-lightning-4step", "{guidance: 2}", "ByteDance/SDXL-Lightning/sdxl_lightning_4step_unet.safetensors"),
            ("model", "{guidance: 2, base_lora: ByteDance/Hyper-SD/Hyper-SD15-4steps-lora.safetensors}",
             "ByteDance/Hyper-SD/Hyper-SD15-4steps-lora.safetensors"),
        ],
    )  # fmt: skip
    def test_guidance_of_weights_distilled_without(self, folder, capsys, model, options, weights):
        (folder / "r.yaml").write_text(RECIPE % (model, options, 2))
        chosen = load_recipe(folder / "r.yaml").model
        with pytest.raises(SdpoError) as fault:
            chosen.load(LoadContext())
        assert fault.value.exit_code == 2
        assert str(fault.value) == (
            f"model.options.guidance: 2 cannot be had: {weights} is distilled without guidance; leave it out"
        )


class TestNothingToLearnFrom:
    @pytest.mark.parametrize(
        ("steps", "transition", "eta", "credit"),
        [(2, "ddim", 0.0, "next"), (2, "cps", 0.0, "current"), (1, "renoise", 1.0, "current")],
    )
    def test_rollouts_without_noise_are_refused(self, steps, transition, eta, credit):
        sigma = torch.linspace(0.9, 0, steps + 1, dtype=torch.float64)
        levels = Schedule(sigma[:-1], 1 - sigma[:-1], sigma[:-1], 1 - sigma[1:], sigma[1:])
        kernel, objective = kernel_for(levels, transition, eta), Sdpo(SdpoOptions(credit=credit))
        with pytest.raises(SdpoError) as fault:
            check_noise(kernel, objective, "r.yaml")
        assert str(fault.value) == (
            f"r.yaml: rollout: none of the {steps} steps draws noise that earns a reward, so there is nothing to learn "
            "from; use more steps, another transition or an eta above 0"
        )

    def test_steps_without_noise_are_told_once(self, copy, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "few.txt").write_text("cat\nowl\n")
        (tmp_path / "r.yaml").write_text(
            (RECIPE % (copy, "{timestep_spacing: linspace}", 3))  # ends at timestep 0, the least noisy level
            + "train: {epochs: 2, samples_every: 0}\neval: {steps: [1], images_per_prompt: 1}\n"
        )
        assert main(["train", "r.yaml"]) == 0
        note = "steps of a rollout that draw no noise, and so carry no gradient: 1 of 3"
        assert capsys.readouterr().err.count(note) == 1
