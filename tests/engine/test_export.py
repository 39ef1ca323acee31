"""An exported adapter draws elsewhere what it draws here, in every form."""

import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from sdpo_cli.api import LoadContext
from sdpo_cli.api.lora import load_lora
from sdpo_cli.api.lora_file import LoraLayer, diffusers_tensors, from_diffusers, from_kohya, kohya_tensors, read_lora
from sdpo_cli.api.tensors import AdapterOptions
from sdpo_cli.builtin.models import load_xl_checkpoint
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.engine.evaluating.sampling import sample_latents
from sdpo_cli.engine.export import Adapter, Order, export
from sdpo_cli.engine.learning.rollout import encode_distinct
from sdpo_cli.engine.sources import Source
from sdpo_cli.engine.training.adapter_files import adapter_files
from sdpo_cli.errors import ArtifactError
from sdpo_cli.maths import kernel_for
from sdpo_cli.registry import load_registry

SEEDS, TEXTS = [0, 1], ["cat", "two dogs"]
EVERYWHERE = ("to_q", "to_out.0", "proj_in", "net.0.proj", "net.2", "conv1", "conv_shortcut", "time_emb_proj", "conv")


@torch.no_grad()
def latents(model, steps: int = 2) -> torch.Tensor:
    kernel = kernel_for(model.schedule(steps), "ddim", 0.0)
    return sample_latents(model, kernel, encode_distinct(model, TEXTS), SEEDS)


def official(pipeline, steps: int = 2) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    settings = {"num_inference_steps": steps, "guidance_scale": 1.0, "generator": generators}
    return pipeline(TEXTS, **settings, output_type="latent").images


def shaken(model, options: AdapterOptions, scale: float = 0.05):
    """The model with an adapter whose every weight is moved at random."""
    model.add_adapter(options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def saved(model, folder: Path, checkpoint: Path) -> Adapter:
    """The adapter in a folder, of a base model that is known."""
    model.save_adapter(folder / "adapter")
    source = Source("tiny", str(checkpoint), load_registry().model(str(checkpoint)), adapter=folder / "adapter")
    return Adapter("tiny", adapter_files(folder / "adapter"), source=source)


def exported(adapter: Adapter, order: Order, folder: Path) -> Path:
    events = export(adapter, order, folder)
    list(events)
    return folder


@pytest.mark.parametrize("targets", ["attention", "linear", EVERYWHERE], ids=["attention", "linear", "endings"])
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_a_lora_loads_with_the_pipelines_own_loader(checkpoint, tmp_path, form, targets):
    model = shaken(tiny.load(checkpoint), AdapterOptions(rank=2, alpha=3.0, targets=targets))
    folder = exported(saved(model, tmp_path, checkpoint), Order(form), tmp_path / "out")
    name = {"diffusers": "pytorch_lora_weights.safetensors", "kohya": "tiny.safetensors"}[form]
    assert [path.name for path in folder.iterdir()] == [name]
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    bare = official(pipeline)
    pipeline.load_lora_weights(folder, weight_name=name)
    assert tiny.biggest_difference(latents(model), official(pipeline)) < 1e-4
    assert tiny.biggest_difference(latents(model), bare) > 1e-2


def test_both_forms_of_an_sdxl_lora_load_with_its_pipeline(tmp_path):
    checkpoint = tiny.save_xl_pipeline(tmp_path / "xl")
    model = load_xl_checkpoint(UNetOptions(path=str(checkpoint)), LoadContext())
    adapter = saved(shaken(model, AdapterOptions(rank=2, targets="linear")), tmp_path, checkpoint)
    pipeline = StableDiffusionXLPipeline.from_pretrained(checkpoint, add_watermarker=False)
    found = []
    for form, name in (("diffusers", "pytorch_lora_weights.safetensors"), ("kohya", "tiny.safetensors")):
        pipeline.load_lora_weights(exported(adapter, Order(form), tmp_path / form), weight_name=name)
        found.append(official(pipeline))
        pipeline.unload_lora_weights()
    assert tiny.biggest_difference(latents(model), found[0]) < 1e-4
    assert torch.equal(*found)
    assert tiny.biggest_difference(latents(model), official(pipeline)) > 1e-2


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_merged_pipeline_draws_the_same(checkpoint, tmp_path, kind):
    model = shaken(tiny.load(checkpoint), AdapterOptions(rank=2, alpha=3.0, targets=EVERYWHERE, kind=kind))
    adapter = saved(model, tmp_path, checkpoint)
    whole = exported(adapter, Order("merged"), tmp_path / "whole")
    pipeline = DiffusionPipeline.from_pretrained(whole)
    assert tiny.biggest_difference(model.decode(latents(model)), model.decode(official(pipeline))) < 1e-5
    assert not any("lora" in name for name, _ in pipeline.unet.named_parameters())
    alone = exported(adapter, Order("merged", denoiser_only=True), tmp_path / "alone")
    assert sorted(path.name for path in alone.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    theirs = UNet2DConditionModel.from_pretrained(alone).state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in pipeline.unet.state_dict().items())


def test_merged_weights_are_the_base_weights_plus_the_lora(checkpoint, tmp_path):
    model = shaken(tiny.load(checkpoint), AdapterOptions(rank=2, alpha=3.0, targets=("to_q", "conv1")))
    layers = read_lora(saved(model, tmp_path, checkpoint).files.folder)
    lora = from_diffusers(layers.tensors, layers.config, "unet")
    base = {name: value.clone() for name, value in tiny.load(checkpoint).denoiser.state_dict().items()}
    model.save_merged(tmp_path / "merged", denoiser_only=True)
    merged = load_file(tmp_path / "merged" / "diffusion_pytorch_model.safetensors")
    assert merged.keys() == base.keys()
    for name, value in merged.items():
        layer = lora.get(name.removesuffix(".weight"))
        by_hand = 1.5 * (layer.up.flatten(1) @ layer.down.flatten(1)).view_as(value) if layer else 0
        assert tiny.biggest_difference(value, base[name] + by_hand) < 1e-6, name
    assert not model.trainable()


class TestKeyForms:
    def lora(self) -> dict[str, LoraLayer]:
        return {
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": LoraLayer(
                torch.randn(2, 8), torch.randn(8, 2), 4.0
            ),
            "mid_block.resnets.0.conv_shortcut": LoraLayer(torch.randn(3, 4, 3, 3), torch.randn(8, 3, 1, 1), 1.0),
        }

    @pytest.mark.parametrize("component", ["unet", "transformer"])
    def test_to_kohya_and_back_is_the_same_byte_for_byte(self, component):
        lora = self.lora()
        back = from_kohya(kohya_tensors(lora, component), ["conv_in", *lora], component)
        assert diffusers_tensors(back, component).keys() == diffusers_tensors(lora, component).keys()
        for name, layer in lora.items():
            assert torch.equal(back[name].down, layer.down)
            assert torch.equal(back[name].up, layer.up)
            assert back[name].alpha == layer.alpha

    def test_names_are_those_that_comfyui_reads(self):
        stem = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0"
        keys = kohya_tensors(self.lora(), "unet")
        assert list(keys)[:3] == [
            f"lora_unet_{stem}.lora_down.weight", f"lora_unet_{stem}.lora_up.weight", f"lora_unet_{stem}.alpha",
        ]  # fmt: skip
        assert keys[f"lora_unet_{stem}.alpha"].item() == 4.0
        assert "transformer.mid_block.resnets.0.conv_shortcut.lora_up.weight" in kohya_tensors(
            self.lora(), "transformer"
        )

    def test_a_file_in_kohyas_form_loads_here_with_ranks_and_alphas_of_each_layer(self, checkpoint, tmp_path):
        model = tiny.load(checkpoint)
        names = [name for name, _ in model.denoiser.named_modules() if name.endswith(("to_q", "to_v"))]
        lora = {}
        for number, name in enumerate(names):
            out, fan_in = model.denoiser.get_submodule(name).weight.shape
            rank = 2 + number % 2
            lora[name] = LoraLayer(torch.randn(rank, fan_in), torch.randn(out, rank), 1.0 + number % 3)
        save_file(kohya_tensors(lora, "unet"), tmp_path / "theirs.safetensors")
        model.load_adapter(tmp_path / "theirs.safetensors")
        model.save_adapter(tmp_path / "ours")
        file = read_lora(tmp_path / "ours")
        back = from_diffusers(file.tensors, file.config, "unet")
        assert {name: (layer.rank, layer.alpha) for name, layer in back.items()} == {
            name: (layer.rank, layer.alpha) for name, layer in lora.items()
        }
        before = latents(model)
        by_hand = tiny.load(checkpoint)
        with torch.no_grad():
            for name, layer in lora.items():
                weight = by_hand.denoiser.get_submodule(name).weight
                weight.add_(layer.alpha / layer.rank * layer.up @ layer.down)
        assert tiny.biggest_difference(before, latents(by_hand)) < 1e-4 * float(before.abs().max())


def test_kohyas_names_for_sdxl_are_converted_with_their_alphas(tmp_path):
    """The UNet of SDXL is called by the blocks of its first code; alphas differ between layers."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=2,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
        use_linear_projection=True,
    )
    layers = {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 2.0,
        ),
        "lora_unet_middle_block_1_proj_in": ("mid_block.attentions.0.proj_in", 6.0),
    }  # fmt: skip
    tensors, wanted = {}, {}
    for theirs, (ours, alpha) in layers.items():
        down, up = torch.randn(4, 32), torch.randn(32, 4)
        tensors |= {f"{theirs}.lora_down.weight": down, f"{theirs}.lora_up.weight": up}
        tensors[f"{theirs}.alpha"] = torch.tensor(alpha)
        wanted[ours] = alpha / 4 * up @ down
    save_file(tensors, tmp_path / "sdxl.safetensors")
    base = {name: unet.get_submodule(name).weight.clone() for name in wanted}
    load_lora(unet, StableDiffusionXLPipeline, "unet", tmp_path / "sdxl.safetensors").merge()
    for name, change in wanted.items():
        assert tiny.biggest_difference(unet.get_submodule(name).weight, base[name] + change) < 1e-5


@contextmanager
def small_disk():
    """A limit on the size of files, in place of a full disk. Not for longer: it holds for pytest's own output too."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@pytest.fixture
def shaken_adapter(checkpoint, tmp_path) -> Adapter:
    return saved(shaken(tiny.load(checkpoint), AdapterOptions(rank=2)), tmp_path, checkpoint)


ORDERS = [Order("diffusers"), Order("kohya"), Order("merged"), Order("merged", denoiser_only=True)]


@pytest.mark.parametrize("order", ORDERS)
def test_a_full_disk_leaves_nothing(shaken_adapter, tmp_path, order):
    with pytest.raises(ArtifactError) as fault, small_disk():
        exported(shaken_adapter, order, tmp_path / "out")
    reason = "cannot be written (File too large); check the folder and its permissions"
    assert str(fault.value) == f"{tmp_path / 'out'}: {reason}"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("order", ORDERS[:3], ids=lambda one: one.format)
def test_a_disk_error_leaves_nothing(checkpoint, tmp_path, order):
    adapter = saved(shaken(tiny.load(checkpoint), AdapterOptions(rank=2)), tmp_path, checkpoint)
    (tmp_path / "locked").mkdir()
    target = tmp_path / "locked" / "out"
    target.write_text("a file stands where the folder should be")
    with pytest.raises(ArtifactError) as fault:
        exported(adapter, order, target)
    assert str(fault.value) == f"{target}: cannot be written (Not a directory); check the folder and its permissions"
    assert [path.name for path in target.parent.iterdir()] == ["out"]
