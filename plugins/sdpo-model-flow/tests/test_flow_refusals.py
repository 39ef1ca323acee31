"""What the transformer families refuse: one line that names the place and the remedy."""

import shutil

import parity_flow
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from parity_flow import BY_NAME
from safetensors.torch import save_file

from sdpo_cli.api import ArtifactError, LoadContext, UsageError
from sdpo_cli.main import main
from sdpo_cli.maths import kernel_for
from sdpo_cli.registry import load_registry


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("flux", {"height": 18}, "model.options.height: 18 is no multiple of 4; use 16"),
        ("sana-sprint", {"width": 63}, "model.options.width: 63 is no multiple of 2; use 62"),
        ("sd3", {"width": 64}, "model.options.width: the transformer knows no places beyond 32 pixels; use 32 or less"),
        (
            "flux",
            {"guidance": 3.5},
            "model.options.guidance: 3.5 cannot be had: the network takes no guidance, and few-step models draw "
            "without; leave it out",
        ),
        (
            "qwen-image",
            {"tiny_vae": "some/vae"},
            "model.options.tiny_vae: no tiny VAE decodes the latents of QwenImagePipeline; leave it out",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(name, options, said, checkpoints):
    with pytest.raises(UsageError) as caught:
        BY_NAME[name].load(checkpoints, **options)
    assert str(caught.value) == said


@pytest.mark.parametrize("name", ["flux", "sana-sprint"])
@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_beyond_the_schedule_are_refused(name, steps, checkpoints):
    with pytest.raises(UsageError, match=rf": {steps} steps cannot be sampled; use 1 to 1000 steps"):
        parity_flow.bare(BY_NAME[name], checkpoints).schedule(steps)


def test_a_terminal_shift_has_no_single_step(checkpoints):
    family = BY_NAME["qwen-image"]
    model = family.load(checkpoints)
    model.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    model = type(model)(model.pipeline, "qwen", model.options)
    assert float(model.schedule(2).sigma[-1]) == pytest.approx(0.02)
    with pytest.raises(UsageError) as caught:
        model.schedule(1)
    assert str(caught.value) == "qwen: its schedule has no 1-step form; use more steps, or a fixed shift (option shift)"


def test_sana_takes_no_flow_sde(checkpoints):
    with pytest.raises(UsageError, match="transition: sde needs a flow-matching model; use ddim, renoise or cps"):
        kernel_for(parity_flow.bare(BY_NAME["sana-sprint"], checkpoints).schedule(2), "sde", 0.7)


def test_another_transformer_or_scheduler_is_refused(checkpoints, tmp_path):
    flux, sd3 = (BY_NAME[name].load(checkpoints) for name in ("flux", "sd3"))
    foreign = flux.pipeline
    foreign.scheduler, kept = BY_NAME["sana-sprint"].load(checkpoints).pipeline.scheduler, foreign.scheduler
    with pytest.raises(ArtifactError) as caught:
        type(flux)(foreign, "here", flux.options)
    assert str(caught.value) == (
        "here: its scheduler is a SCMScheduler, not a FlowMatchEulerDiscreteScheduler; name a FluxPipeline as published"
    )
    foreign.scheduler, foreign.transformer = kept, sd3.pipeline.transformer
    with pytest.raises(ArtifactError, match="its transformer is a SD3Transformer2DModel, not a FluxTransformer2DModel"):
        type(flux)(foreign, "here", flux.options)


def test_a_sana_that_is_no_sprint_is_refused(checkpoints):
    model = BY_NAME["sana-sprint"].load(checkpoints)
    model.pipeline.transformer.register_to_config(guidance_embeds=False)
    with pytest.raises(ArtifactError) as caught:
        type(model)(model.pipeline, "here", model.options)
    assert str(caught.value) == (
        "here: its transformer is not told its guidance, so it is no Sprint model; use a SANA-Sprint checkpoint"
    )


def test_an_adapter_of_another_family_is_refused(checkpoints, tmp_path):
    tiny.with_random_adapter(BY_NAME["flux"].load(checkpoints)).save_adapter(tmp_path)
    model = BY_NAME["z-image"].load(checkpoints)
    with pytest.raises(ArtifactError) as caught:
        model.load_adapter(tmp_path)
    fault = f"{tmp_path}/pytorch_lora_weights.safetensors: this adapter does not fit the model ("
    assert str(caught.value).startswith(fault)
    assert "ZImageTransformer2DModel" in str(caught.value)


def test_a_folder_without_a_text_encoder_is_refused(checkpoints, tmp_path):
    folder = shutil.copytree(BY_NAME["z-image"].saved(checkpoints), tmp_path / "z")
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(ArtifactError) as caught:
        load_registry().model(str(folder)).load(LoadContext())
    assert str(caught.value) == (
        f"{folder}/text_encoder: its index names Qwen3Model, but there is no such folder; copy the whole pipeline, or "
        "save it anew"
    )


def test_a_single_file_that_diffusers_cannot_read_is_refused(tmp_path):
    file = tmp_path / "qwen.safetensors"
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(UsageError) as caught:
        load_registry().model("qwen-image", {"path": str(file)}).load(LoadContext())
    assert str(caught.value) == (
        f"{file}: diffusers reads no single file as a QwenImagePipeline; "
        "name a folder or hub id as path, and this file as denoiser"
    )


def test_a_known_checkpoint_that_is_not_here_says_how_to_fetch_it(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "quickstart", "--set", "model=z-image-turbo", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "hf download Tongyi-MAI/Z-Image-Turbo --revision f332072aa78be7aecdf3ee76d5c247082da564a6" in said
