"""Which layers get a LoRA in every family, and what is said of adapters that cannot be used."""

import re

import pytest
import torch
from diffusers import (
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import save_file

from sdpo_cli.api.lora import fresh_lora, load_lora, target_modules
from sdpo_cli.api.lora_file import (
    LoraLayer,
    alpha_of,
    diffusers_tensors,
    folded,
    from_diffusers,
    kohya_tensors,
    read_lora,
)
from sdpo_cli.api.tensors import AdapterOptions
from sdpo_cli.errors import ArtifactError, UsageError

HEADS = {"num_attention_heads": 2}


def unet(**changes) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
            **changes,
        }
    )


FAMILIES = {
    "unet": unet,
    "sd3": lambda: SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, **HEADS,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32, dual_attention_layers=(0,),
    ),
    "flux": lambda: FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, **HEADS,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    ),
    "flux2": lambda: Flux2Transformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=16, **HEADS, joint_attention_dim=32, in_channels=4,
        axes_dims_rope=(4, 4, 4, 4),
    ),
    "sana": lambda: SanaTransformer2DModel(
        num_layers=1, **HEADS, attention_head_dim=8, num_cross_attention_heads=2, cross_attention_head_dim=8,
        cross_attention_dim=16, caption_channels=16, in_channels=4, out_channels=4,
    ),
    "qwen": lambda: QwenImageTransformer2DModel(
        num_layers=1, attention_head_dim=16, **HEADS, joint_attention_dim=16, axes_dims_rope=(8, 4, 4)
    ),
    "z-image": lambda: ZImageTransformer2DModel(
        dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16, axes_dims=[4, 4, 8],
        axes_lens=[32, 32, 32],
    ),
}  # fmt: skip

SELF = {"attn.to_q", "attn.to_k", "attn.to_v"}
JOINT = SELF | {"attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"}
CROSS = {f"{name}.{part}" for name in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")}
ATTENTION = {
    "unet": CROSS,
    "sd3": JOINT | {f"attn2.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")},
    "flux": JOINT,
    "flux2": JOINT | {"attn.to_qkv_mlp_proj", "attn.to_out"},
    "sana": CROSS,
    "qwen": JOINT,
    "z-image": {f"attention.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")},
}
BOTH_FF = {"ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"}
FEED_FORWARD = {
    "unet": {"ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"},
    "sd3": BOTH_FF,
    "flux": BOTH_FF | {"proj_mlp", "proj_out"},
    "flux2": {"ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"},
    "sana": {"ff.conv_inverted", "ff.conv_point"},
    "qwen": {"img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"},
    "z-image": {"feed_forward.w1", "feed_forward.w2", "feed_forward.w3"},
}
BLOCK = re.compile(
    r"(?:(?:down_blocks\.\d|up_blocks\.\d|mid_block)\.attentions\.\d\.)?"
    r"(?:(?:transformer_blocks|single_transformer_blocks|layers|noise_refiner|context_refiner)\.\d\.)?"
)


def parts(names: list[str]) -> set[str]:
    """What the layers are called inside their block."""
    return {name[BLOCK.match(name).end() :] for name in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_linear_are_the_projections_of_every_block(family):
    network = FAMILIES[family]()
    assert parts(target_modules(network, "attention")) == ATTENTION[family]
    linear = target_modules(network, "linear")
    assert parts(linear) == ATTENTION[family] | FEED_FORWARD[family]
    assert all(BLOCK.match(name).end() for name in linear)


def test_endings_are_whole_parts_of_a_name_and_take_convolutions():
    network = unet()
    assert parts(target_modules(network, ("conv_in", "resnets.0.conv1"))) == {
        "conv_in", "down_blocks.0.resnets.0.conv1", "down_blocks.1.resnets.0.conv1", "mid_block.resnets.0.conv1",
        "up_blocks.0.resnets.0.conv1", "up_blocks.1.resnets.0.conv1",
    }  # fmt: skip
    with pytest.raises(UsageError) as fault:
        target_modules(network, ("_q", "q"))
    assert str(fault.value) == (
        "model.lora.targets: no layer of UNet2DConditionModel ends with ('_q', 'q'); "
        "use attention, linear, or endings of layer names"
    )


PIPELINES = {
    "sd3": StableDiffusion3Pipeline,
    "flux": FluxPipeline,
    "flux2": Flux2Pipeline,
    "sana": SanaSprintPipeline,
    "qwen": QwenImagePipeline,
    "z-image": ZImagePipeline,
}


@pytest.mark.parametrize("family", PIPELINES)
def test_a_transformers_lora_loads_again_from_both_forms(tmp_path, family):
    network, pipeline = FAMILIES[family](), PIPELINES[family]
    adapter = fresh_lora(network, pipeline, "transformer", AdapterOptions(rank=2, alpha=3.0, targets="linear"))
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.normal_()
    adapter.save(tmp_path)
    file = read_lora(tmp_path)
    kohya = tmp_path / "kohya.safetensors"
    save_file(kohya_tensors(from_diffusers(file.tensors, file.config, "transformer"), "transformer"), kohya)
    for path in (tmp_path, kohya):
        other = FAMILIES[family]()
        loaded = load_lora(other, pipeline, "transformer", path).parameters()
        assert loaded.keys() == adapter.parameters().keys()
        assert all(torch.equal(loaded[name], one) for name, one in adapter.parameters().items())
        assert {one.scaling["sdpo"] for one in other.modules() if hasattr(one, "scaling")} == {1.5}
    tensors = pipeline.lora_state_dict(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    tensors = tensors[0] if isinstance(tensors, tuple) else tensors
    assert all(torch.equal(tensors[name], one) for name, one in file.tensors.items())


def test_kohyas_fused_layers_of_flux_are_taken_apart(tmp_path):
    """q, k and v are one layer in FLUX's own code, and its LoRA there is one too."""
    network = FAMILIES["flux"]()
    down, up = torch.randn(2, 32), torch.randn(96, 2)
    fused = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{fused}.lora_down.weight": down, f"{fused}.lora_up.weight": up, f"{fused}.alpha": torch.tensor(3.0)}
    save_file(tensors, tmp_path / "flux.safetensors")
    names = [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    before = torch.cat([network.get_submodule(name).weight.clone() for name in names])
    load_lora(network, FluxPipeline, "transformer", tmp_path / "flux.safetensors").merge()
    after = torch.cat([network.get_submodule(name).weight for name in names])
    torch.testing.assert_close(after, before + 1.5 * up @ down)


NAME = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def layer(rank: int = 2, out: int = 32, fan_in: int = 32, alpha: float = 2.0) -> LoraLayer:
    return LoraLayer(torch.zeros(rank, fan_in), torch.zeros(out, rank), alpha)


def cut(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The file with one matrix of another rank than its other one."""
    first = next(iter(tensors))
    return {**tensors, first: tensors[first][:1]}


UNUSABLE = {
    "another model": (
        {f"unet.{NAME}.lora_A.weight": torch.zeros(2, 8), f"unet.{NAME}.lora_B.weight": torch.zeros(8, 2)},
        f"this adapter does not fit the model ({NAME} is [32, 32], and it was made for [8, 8])",
    ),
    "another architecture": (
        diffusers_tensors({NAME: layer(), "mid_block.attentions.7.proj_in": layer()}, "unet"),
        "this adapter does not fit the model (1 of its 2 layers are not in UNet2DConditionModel, such as "
        "mid_block.attentions.7.proj_in)",
    ),
    "another component": (
        diffusers_tensors({"transformer_blocks.0.attn.to_q": layer()}, "transformer"),
        "this adapter does not fit the model (transformer.transformer_blocks.0.attn.to_q.lora_A.weight belongs to no "
        "layer)",
    ),
    "ranks that differ": (
        cut(diffusers_tensors({NAME: layer()}, "unet")),
        f"this adapter does not fit the model (the two matrices of {NAME} do not belong together)",
    ),
    "half a layer": (
        {f"unet.{NAME}.lora_A.weight": torch.zeros(2, 32)},
        f"this adapter does not fit the model (the two matrices of {NAME} do not belong together)",
    ),
    "no LoRA": (
        {"conv_in.weight": torch.zeros(1)},
        "this adapter does not fit the model (conv_in.weight belongs to no layer)",
    ),
    "a text encoder": (
        {"lora_te_text_model_x.lora_down.weight": torch.zeros(1)},
        "this adapter does not fit the model (it changes the text encoder too, which is never trained here)",
    ),
    "nothing": ({}, "this adapter does not fit the model (0 of its 0 layers are not in UNet2DConditionModel)"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_a_lora_that_does_not_fit(tmp_path, case):
    tensors, fault = UNUSABLE[case]
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    network = unet()
    with pytest.raises(ArtifactError) as caught:
        load_lora(network, StableDiffusionPipeline, "unet", path)
    assert str(caught.value) == f"{path}: {fault}; use the base model it was trained on"
    assert not any("lora" in name for name, _ in network.named_parameters())


def empty(folder):
    return folder, ("no pytorch_lora_weights.safetensors in this folder; name a folder that holds a trained adapter")


def pickled(folder):
    (folder / "pytorch_lora_weights.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    return folder, "only pickled weights, which are never loaded; save the LoRA anew as safetensors"


def pickled_file(folder):
    path = folder / "lora.pt"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    return path, "not a .safetensors file; pickles are never loaded; save the LoRA anew as safetensors"


def torn(folder):
    path = folder / "lora.safetensors"
    save_file(diffusers_tensors({NAME: layer()}, "unet"), path)
    path.write_bytes(path.read_bytes()[:-9])
    return path, "not a readable safetensors file (Error while deserializing header: .*); save the LoRA anew"


def renamed_pickle(folder):
    path = folder / "lora.safetensors"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    return path, "not a readable safetensors file (Error while deserializing header: .*); save the LoRA anew"


def broken_metadata(folder):
    path = folder / "lora.safetensors"
    save_file(diffusers_tensors({NAME: layer()}, "unet"), path, {"lora_adapter_metadata": '{"unet.lora_alpha": "x"}'})
    return path, (
        "this adapter does not fit the model (could not convert string to float: 'x'); "
        "use the base model it was trained on"
    )


@pytest.mark.parametrize("made", [empty, pickled, pickled_file, torn, renamed_pickle, broken_metadata])
def test_a_lora_that_cannot_be_read(tmp_path, made):
    path, message = made(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        load_lora(unet(), StableDiffusionPipeline, "unet", path)
    pattern = re.escape(f"{path}: {message}").replace(r"\.\*", ".*")
    assert re.fullmatch(pattern, str(caught.value)), str(caught.value)


def test_a_lora_that_is_not_there(tmp_path):
    with pytest.raises(UsageError) as caught:
        load_lora(unet(), StableDiffusionPipeline, "unet", tmp_path / "none")
    remedy = "name a run, an adapter's folder or a .safetensors file"
    assert str(caught.value) == f"{tmp_path}/none: no such file or folder; {remedy}"


def test_alphas_follow_pefts_configuration():
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {"^mid.to_q": 2, "to_v": 3}}
    assert alpha_of({}, "mid.to_q", 4) == 4.0
    assert [alpha_of(config, name, 4) for name in ("mid.to_q", "up.mid.to_q", "up.to_v")] == [2.0, 8.0, 3.0]
    assert alpha_of({**config, "use_rslora": True}, "x", 4) == 16.0  # 8 / √4 is 16 / 4


@pytest.mark.parametrize(("down", "up"), [("lora_down", "lora_up"), ("lora_A", "lora_B")])
def test_folding_alphas_into_the_weights_keeps_the_lora(down, up):
    one, other = torch.randn(4, 3), torch.randn(5, 4)
    tensors = folded({f"a.{down}.weight": one, f"a.{up}.weight": other, "a.alpha": torch.tensor(6.0)})
    assert sorted(tensors) == [f"a.{down}.weight", f"a.{up}.weight"]
    torch.testing.assert_close(tensors[f"a.{up}.weight"] @ tensors[f"a.{down}.weight"], 1.5 * other @ one)
    assert list(folded({"a.alpha": torch.tensor(6.0)})) == ["a.alpha"]


def test_weights_in_half_precision_are_read_as_float32():
    halved = {key: one.half() for key, one in diffusers_tensors({NAME: layer()}, "unet").items()}
    assert from_diffusers(halved, {}, "unet")[NAME].up.dtype == torch.float32
