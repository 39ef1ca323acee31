"""Kernels of our own on a CUDA device: the numbers of torch, and a whole network's. Left out where there is none."""

from dataclasses import replace

import pytest
import tiny
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.functional import conv2d, group_norm, interpolate, silu
from torch.profiler import ProfilerActivity, profile

from sdpo_cli.api import LoadContext
from sdpo_cli.api.attention import is_cudnn_faster, prefer_cudnn
from sdpo_cli.api.fused import fuse_blocks
from sdpo_cli.api.tensors import AdapterOptions, LearningPlan
from sdpo_cli.builtin.models import load_checkpoint, load_xl_checkpoint
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.engine.learning.rollout import roll_out
from sdpo_cli.engine.learning.update import replay
from sdpo_cli.engine.setup import pick_device
from sdpo_cli.maths import kernel_for, with_floor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def relative(one, other) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def tensor(*shape, dtype=torch.float32):
    generator = torch.Generator("cuda").manual_seed(sum(shape))
    return torch.randn(*shape, device="cuda", generator=generator).to(dtype)


def load(family, dtype, *, compiled=False):
    """A tiny checkpoint of a family, with a LoRA that changes pictures."""
    save, open_it, folder = family
    if not folder.exists():
        save(folder)
    context = LoadContext(device=str(pick_device("cuda")), dtype=dtype, compile=compiled)
    model = open_it(UNetOptions(path=str(folder)), context)
    model.add_adapter(AdapterOptions(rank=2, alpha=2.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator).cuda())
    return model


def rolled(model):
    kernel = kernel_for(with_floor(model.schedule(3)), "ddim", 1.0).to(model.device)
    return roll_out(model, kernel, tiny.draw(model), LearningPlan(), 0, 5)


def gradient(model, rollouts, parts) -> torch.Tensor:
    """Of the pairs' summed log-probabilities, some pairs at a time; the model's own encodings have its dtype."""
    rollouts = replace(rollouts, draw=tiny.draw(model))
    for pairs in parts:
        step = torch.tensor([pair % 2 for pair in pairs])
        replay(model, rollouts, torch.tensor(list(pairs)), step).log_prob.sum().backward()
    return torch.cat([weight.grad.flatten() for weight in model.trainable().values()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "groups", "act", "added"),
    [
        ((3, 320, 64, 64), 32, True, True),
        ((2, 2560, 8, 8), 32, True, False),
        ((2, 128, 130, 70), 32, False, False),
        ((2, 24, 9, 7), 8, True, True),
    ],
)
def test_normalisation_is_that_of_torch(shape, groups, act, added, dtype):
    from sdpo_cli.api.fused_norm import NormAct

    x = (2 * tensor(*shape) + 1).to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    addend, grad = tensor(*shape[:2], dtype=dtype) if added else None, tensor(*shape, dtype=dtype)
    weight, bias = (tensor(shape[1] + extra, dtype=dtype)[: shape[1]] for extra in (0, 1))
    out = NormAct.apply(x, addend, weight, bias, groups, 1e-5, act)
    inner = x.double() + (0 if addend is None else addend.double()[:, :, None, None])
    expected = group_norm(inner, groups, weight.double(), bias.double(), 1e-5)
    expected = silu(expected) if act else expected
    slopes = [torch.autograd.grad(one, x, grad.to(one.dtype))[0] for one in (out, expected)]
    bound = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype]
    assert relative(out, expected) < bound
    assert relative(*slopes) < bound
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("far", [0, 30, 100, 1000])
@pytest.mark.parametrize("shape", [(2, 320, 32, 32), (2, 24, 9, 7)])
def test_a_mean_far_above_the_standard_deviation_costs_no_more_digits_than_float32_has(shape, far):
    from sdpo_cli.api.fused_norm import NormAct

    x, addend, grad = (far + tensor(*shape)).requires_grad_(), tensor(*shape[:2]), tensor(*shape)
    weight, bias = (tensor(shape[1] + extra)[: shape[1]] for extra in (0, 1))
    out = NormAct.apply(x, addend, weight, bias, 8, 1e-5, True)
    inner = x.double() + addend.double()[:, :, None, None]
    expected = silu(group_norm(inner, 8, weight.double(), bias.double(), 1e-5))
    slopes = [torch.autograd.grad(one, x, grad.to(one.dtype))[0] for one in (out, expected)]
    assert relative(out, expected) < 1e-6 + 3e-7 * far
    assert relative(*slopes) < 1e-6 + 3e-7 * far


def test_the_same_sums_every_time():
    from sdpo_cli.api.fused_norm import NormAct

    x, weight = tensor(4, 320, 64, 64, dtype=torch.bfloat16), tensor(320, dtype=torch.bfloat16)
    first, *others = (NormAct.apply(x, None, weight, weight, 32, 1e-5, True) for _ in range(5))
    assert all(torch.equal(first, other) for other in others)


def kernels_of(call) -> list[str]:
    """Names of the kernels that a call runs on the device."""
    call()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    return [one.key for one in found.key_averages() if one.device_type == torch.autograd.DeviceType.CUDA]


def test_a_gradient_is_not_copied_to_another_layout_and_back():
    block = ResnetBlock2D(in_channels=64, out_channels=64, temb_channels=32).cuda().bfloat16().requires_grad_(False)
    assert fuse_blocks(block) == 1
    x = tensor(2, 64, 16, 16, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last).requires_grad_()
    grad, temb = tensor(2, 64, 16, 16, dtype=torch.bfloat16), tensor(2, 32, dtype=torch.bfloat16)
    grad, out = grad.contiguous(memory_format=torch.channels_last), block(x, temb)
    names = kernels_of(lambda: torch.autograd.grad(out, x, grad, retain_graph=True))
    assert any("grad_input_kernel" in name for name in names)
    assert not [name for name in names if "copy" in name.lower() or "nchwtonhwc" in name.lower()]


@pytest.mark.parametrize("compiled", [False, True])
def test_attention_by_cudnn_is_as_near_to_exact_as_torchs_own(compiled):
    device = pick_device("cuda")
    if not is_cudnn_faster(device):
        pytest.skip("not the kind of card, or an older cuDNN")
    layer = Attention(query_dim=128, heads=2, dim_head=64).to(device).requires_grad_(False)
    x, grad = tensor(2, 256, 128).requires_grad_(), tensor(2, 257, 128)[:, 1:]
    (expected,) = torch.autograd.grad(layer(x), x, grad)
    layer, x, grad = layer.bfloat16(), x.detach().bfloat16().requires_grad_(), grad.bfloat16()
    (plain,) = torch.autograd.grad(layer(x), x, grad)
    assert prefer_cudnn(layer) == 1
    call = torch.compile(layer) if compiled else layer
    (found,) = torch.autograd.grad(call(x), x, grad)
    assert relative(found, expected) < 1.2 * relative(plain, expected)
    names = kernels_of(lambda: torch.autograd.grad(call(x), x, grad))
    assert not [name for name in names if "flash_fwd" in name or "fmha_cutlass" in name]
    assert torch.backends.cuda.cudnn_sdp_enabled() is False


@pytest.fixture(params=["sd", "sdxl"])
def family(request, tmp_path):
    ways = {"sd": (tiny.save_pipeline, load_checkpoint), "sdxl": (tiny.save_xl_pipeline, load_xl_checkpoint)}
    return (*ways[request.param], tmp_path / request.param)


def test_a_compiled_network_learns_as_float32_does_pair_by_pair(family):
    """Within what bfloat16 costs the plain network: fused, compiled and batched, against float32 one pair at a time."""
    exact = load(family, "float32")
    rollouts = rolled(exact)
    expected = gradient(exact, rollouts, [[pair] for pair in range(5)])
    models = {compiled: load(family, "bfloat16", compiled=compiled) for compiled in (False, True)}
    errors = {compiled: relative(gradient(model, rollouts, [range(5)]), expected) for compiled, model in models.items()}
    print(f"\nrelative error of the gradient: {errors[False]:.3g} plain, {errors[True]:.3g} compiled")
    assert errors[True] < 1.2 * errors[False]
    estimates = {
        compiled: relative(rolled(model).x0[:, :, 0], rollouts.x0[:, :, 0]) for compiled, model in models.items()
    }
    assert estimates[True] < 1.2 * estimates[False]
    decoded, pictures = (model.decode(rollouts.x0[0, :, -1]) for model in (models[True], exact))
    assert float((decoded - pictures).abs().mean()) < 0.01


def test_in_float32_a_compiled_network_is_the_plain_one(family):
    plain, compiled = load(family, "float32"), load(family, "float32", compiled=True)
    rollouts = rolled(plain)
    assert relative(rolled(compiled).x0, rollouts.x0) < 1e-3
    assert relative(*(gradient(model, rollouts, [range(5)]) for model in (compiled, plain))) < 1e-3
    graphs = counters["stats"]["unique_graphs"]
    rolled(compiled)
    gradient(compiled, rollouts, [range(5)])
    assert counters["stats"]["unique_graphs"] == graphs


def upsampler(before, after, dtype):
    """A fused layer that makes pictures twice as large, and its weight and bias."""
    network = (
        nn.Sequential(Upsample2D(before, use_conv=True, out_channels=after)).cuda().to(dtype).requires_grad_(False)
    )
    assert fuse_blocks(network) == 1
    return network, network[0].conv.weight.double(), network[0].conv.bias.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 64, 48, 9, 7), (1, 128, 128, 64, 64)])
def test_a_picture_of_twice_the_size_is_that_of_torch(shape, dtype):
    count, before, after, height, width = shape
    x = tensor(count, before, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)
    grad = tensor(count, after, 2 * height, 2 * width, dtype=dtype)
    network, weight, bias = upsampler(before, after, dtype)
    out = network(x.requires_grad_())
    expected = conv2d(interpolate(x.double(), scale_factor=2.0), weight, bias, padding=1)
    slopes = [torch.autograd.grad(one, x, grad.to(one.dtype))[0] for one in (out, expected)]
    bound = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype]
    assert relative(out, expected) < bound
    assert relative(*slopes) < bound
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_pictures_of_more_numbers_than_32_bits_count():
    network, *_ = upsampler(64, 64, torch.bfloat16)
    x = tensor(9, 64, 1024, 1024, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = network(x)
    assert out.numel() > 2**31
    (slope,) = torch.autograd.grad(out[-1].float().square().sum(), x)
    alone = x[-1:].detach().requires_grad_()
    expected = network(alone)
    (expected_slope,) = torch.autograd.grad(expected.float().square().sum(), alone)
    assert relative(out[-1:], expected) < 1e-2
    assert relative(slope[-1:], expected_slope) < 1e-2
    assert float(slope[:-1].abs().max()) == 0
