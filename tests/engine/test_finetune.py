"""Training all weights, or going on with a LoRA: nothing is lost between two epochs, and the base model stays."""

import dataclasses
import importlib.util

import pytest
import tiny
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from sdpo_cli.api import LoadContext
from sdpo_cli.api.lora_file import from_diffusers, kohya_tensors, read_lora
from sdpo_cli.api.tensors import AdapterOptions
from sdpo_cli.builtin.models import load_checkpoint
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.disk.changes import Resumption
from sdpo_cli.engine.evaluating.sampling import sample_latents
from sdpo_cli.engine.learning.optimizer import make_optimizer
from sdpo_cli.engine.learning.rollout import encode_distinct
from sdpo_cli.engine.training.checkpoint import complete_checkpoints
from sdpo_cli.engine.training.trainer import train
from sdpo_cli.errors import ArtifactError
from sdpo_cli.maths import kernel_for
from sdpo_cli.recipe import LoraSection, ModelSection, TrainSection

WEIGHTS = "diffusion_pytorch_model.safetensors"
FULL = AdapterOptions(kind="full")


def setup(checkpoint, epochs: int, **section: object):
    """The tiny setup, its recipe's `model` and `train` changed."""
    whole = tiny.setup(checkpoint, epochs=epochs)
    optimizer = section.pop("optimizer", "adamw")
    recipe = whole.recipe.model_copy(
        update={
            "model": ModelSection(name=str(checkpoint), **section),
            "train": TrainSection(epochs=epochs, learning_rate=1e-4, samples_every=0, optimizer=optimizer),
        }
    )
    return dataclasses.replace(whole, recipe=recipe)


def trained(place, checkpoint, epochs: int, *, resume: Resumption | None = None, **section: object) -> RunFolder:
    run = RunFolder(place)
    place.mkdir(exist_ok=True)
    list(train(setup(checkpoint, epochs, **section), run, resume=resume))
    return run


def final_state(run: RunFolder) -> dict[str, object]:
    """The last checkpoint's bytes, and the adapter's; in a LoRA file the order of the metadata is left to chance."""
    newest = complete_checkpoints(run.checkpoints)[-1]
    found: dict[str, object] = {path.name: path.read_bytes() for path in newest.iterdir()}
    if (run.adapter / WEIGHTS).exists():
        return found | {path.name: path.read_bytes() for path in run.adapter.iterdir()}
    lora = read_lora(run.adapter)
    return found | {"config": lora.config} | {name: one.numpy().tobytes() for name, one in lora.tensors.items()}


@torch.no_grad()
def latents(model) -> torch.Tensor:
    kernel = kernel_for(model.schedule(2), "ddim", 0.0)
    return sample_latents(model, kernel, encode_distinct(model, ["cat", "dog"]), [0, 1])


def shaken(model):
    with torch.no_grad():
        for number, parameter in enumerate(model.trainable().values()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(0.05 * noise)
    return model


class TestFull:
    def test_a_resumed_run_equals_the_unbroken_one_byte_for_byte(self, checkpoint, tmp_path):
        whole = trained(tmp_path / "whole", checkpoint, 2, train="full")
        trained(tmp_path / "parts", checkpoint, 1, train="full")
        parts = trained(tmp_path / "parts", checkpoint, 2, train="full", resume=Resumption())
        assert final_state(whole) == final_state(parts)
        before = load_file(checkpoint / "unet" / WEIGHTS)
        after = load_file(whole.adapter / WEIGHTS)
        assert all(not torch.equal(after[name], before[name]) for name in before)

    def test_the_base_model_is_there_while_asked_for_and_the_trained_one_after(self, checkpoint):
        bare, model = latents(tiny.load(checkpoint)), tiny.load(checkpoint)
        model.add_adapter(FULL)
        assert torch.equal(latents(model), bare)
        tuned = latents(shaken(model))
        assert tiny.biggest_difference(tuned, bare) > 1e-2
        with model.without_adapter():
            assert torch.equal(latents(model), bare)
        assert torch.equal(latents(model), tuned)

    def test_it_loads_here_and_with_its_class(self, checkpoint, tmp_path):
        model = tiny.load(checkpoint)
        model.add_adapter(FULL)
        shaken(model).save_adapter(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", WEIGHTS]
        again = tiny.load(checkpoint)
        again.load_adapter(tmp_path)
        assert torch.equal(latents(again), latents(model))
        theirs = UNet2DConditionModel.from_pretrained(tmp_path)
        assert all(torch.equal(theirs.get_parameter(name), one) for name, one in model.trainable().items())

    def test_a_lora_takes_its_place_on_the_base_weights(self, checkpoint, tmp_path):
        other = tiny.with_random_adapter(tiny.load(checkpoint))
        other.save_adapter(tmp_path)
        model = tiny.load(checkpoint)
        model.add_adapter(FULL)
        shaken(model).load_adapter(tmp_path)
        assert torch.equal(latents(model), latents(other))
        assert model.trainable().keys() == other.trainable().keys()
        assert not model.denoiser.conv_in.weight.requires_grad

    def test_weights_are_float32_while_the_network_computes_in_bfloat16(self, checkpoint, tmp_path):
        model = load_checkpoint(UNetOptions(path=str(checkpoint)), LoadContext(dtype="bfloat16"))
        base = {name: one.clone() for name, one in model.denoiser.named_parameters()}
        seen = []
        model.denoiser.mid_block.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
        model.add_adapter(FULL)
        at = kernel_for(model.schedule(2), "ddim", 0.0).at(torch.zeros(1, dtype=torch.long))
        model.denoise(torch.randn(1, *model.latent_shape), at, model.encode(["cat"])).square().mean().backward()
        assert seen == [torch.bfloat16]
        assert {one.dtype for one in model.trainable().values()} == {torch.float32}
        assert all(one.grad is not None and one.grad.isfinite().all() for one in model.trainable().values())
        with torch.no_grad():
            model.denoiser.conv_in.weight.add_(1e-6)  # less than bfloat16 can tell
        model.save_adapter(tmp_path / "adapter")
        kept = load_file(tmp_path / "adapter" / WEIGHTS)["conv_in.weight"]
        assert torch.equal(kept, base["conv_in.weight"].float() + 1e-6)
        model.save_merged(tmp_path / "merged")
        assert load_file(tmp_path / "merged" / "unet" / WEIGHTS)["conv_in.weight"].dtype == torch.bfloat16
        assert "forward" not in vars(model.denoiser)

    @pytest.mark.parametrize("change", ["shape", "missing", "torn"])
    def test_weights_of_another_model_are_refused(self, checkpoint, tmp_path, change):
        model = tiny.load(checkpoint)
        model.add_adapter(FULL)
        model.save_adapter(tmp_path)
        path = tmp_path / WEIGHTS
        weights = load_file(path)
        if change == "shape":
            save_file({**weights, "conv_in.bias": torch.zeros(3)}, path)
        elif change == "missing":
            save_file({name: one for name, one in weights.items() if name != "conv_in.bias"}, path)
        else:
            path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ArtifactError) as fault:
            tiny.load(checkpoint).load_adapter(tmp_path)
        other = "not the weights of this UNet2DConditionModel"
        assert (
            str(fault.value)
            == f"{path}: "
            + {
                "shape": f"{other} (conv_in.bias is [3], not [16]); use the base model it was trained on",
                "missing": f"{other} (it has no conv_in.bias); use the base model it was trained on",
                "torn": "not a readable safetensors file (Error while deserializing header: incomplete metadata, file "
                "not fully covered); train anew, or go back to an earlier copy",
            }[change]
        )


@pytest.fixture(scope="module")
def begun(checkpoint, tmp_path_factory):
    """A finished run whose LoRA has rank 2, alpha 3, on two kinds of layers."""
    lora = LoraSection(rank=2, alpha=3.0, targets=("to_q", "conv1"))
    return trained(tmp_path_factory.mktemp("begun"), checkpoint, 1, lora=lora)


class TestStart:
    @pytest.mark.parametrize("form", ["diffusers", "kohya"])
    def test_training_goes_on_from_it_and_a_resumed_run_needs_it_no_more(self, checkpoint, tmp_path, begun, form):
        saved, file = read_lora(begun.adapter), tmp_path / "start.safetensors"
        lora = from_diffusers(saved.tensors, saved.config, "unet")
        if form == "kohya":
            save_file(kohya_tensors(lora, "unet"), file)
        else:
            file.write_bytes(saved.path.read_bytes())
        section = {"lora": LoraSection(start=str(file))}
        model = tiny.load(checkpoint)
        model.add_adapter(AdapterOptions(start=file))
        began = {name: one.detach().clone() for name, one in model.trainable().items()}
        model.save_adapter(tmp_path / "same")
        again = read_lora(tmp_path / "same")
        assert again.tensors.keys() == saved.tensors.keys()
        assert all(torch.equal(again.tensors[name], one) for name, one in saved.tensors.items())
        assert {layer.alpha for layer in from_diffusers(again.tensors, again.config, "unet").values()} == {3.0}
        whole = trained(tmp_path / "whole", checkpoint, 2, **section)
        trained(tmp_path / "parts", checkpoint, 1, **section)
        file.unlink()
        parts = trained(tmp_path / "parts", checkpoint, 2, resume=Resumption(), **section)
        assert final_state(whole) == final_state(parts)
        ended = load_file(complete_checkpoints(whole.checkpoints)[-1] / "weights.safetensors")
        assert ended.keys() == began.keys()
        assert all(not torch.equal(ended[name], one) for name, one in began.items())
        assert max(float((ended[name] - one).abs().max()) for name, one in began.items()) < 1e-3


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
class TestEightBits:
    def test_a_resumed_run_equals_the_unbroken_one_byte_for_byte(self, checkpoint, tmp_path):
        section = {"train": "full", "optimizer": "adamw8bit"}
        whole = trained(tmp_path / "whole", checkpoint, 3, **section)
        trained(tmp_path / "parts", checkpoint, 1, **section)
        parts = trained(tmp_path / "parts", checkpoint, 3, resume=Resumption(), **section)
        assert final_state(whole) == final_state(parts)
        state = load_file(complete_checkpoints(whole.checkpoints)[-1] / "optimizer.safetensors")
        assert state["mid_block.resnets.0.conv1.weight/state1"].dtype == torch.uint8
        assert state["conv_in.bias/state1"].dtype == torch.float32

    def test_it_takes_nearly_the_steps_of_adamw(self):
        weights = {}
        for name in ("adamw", "adamw8bit"):
            generator = torch.Generator().manual_seed(0)
            weight = torch.nn.Parameter(torch.randn(64, 64, generator=generator))
            optimizer = make_optimizer(TrainSection(optimizer=name, learning_rate=1e-2), [weight])
            for _ in range(20):
                weight.grad = weight.detach() + 0.1 * torch.randn(64, 64, generator=generator)
                optimizer.step()
            weights[name] = weight.detach()
        moved = float((weights["adamw"] - torch.randn(64, 64, generator=torch.Generator().manual_seed(0))).abs().mean())
        difference = float((weights["adamw"] - weights["adamw8bit"]).abs().mean())
        assert difference < 0.02 * moved
