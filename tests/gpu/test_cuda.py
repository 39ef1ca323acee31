"""What must hold on a CUDA device; left out where there is none."""

import json

import pytest
import torch

from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import AdapterOptions, LearningPlan
from sdpo_cli.builtin.models import NoOptions, load_emoji_turbo
from sdpo_cli.engine.learning.rollout import Draw, draw_prompts, encode_distinct, roll_out
from sdpo_cli.engine.learning.update import check_ratio_is_one
from sdpo_cli.engine.setup import pick_device
from sdpo_cli.engine.training.trainer import RATIO_TOLERANCE
from sdpo_cli.main import main
from sdpo_cli.maths import kernel_for, with_floor
from sdpo_cli.registry import load_registry

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def rolled(device: str, dtype: str):
    model = load_emoji_turbo(NoOptions(), LoadContext(device=str(pick_device(device)), dtype=dtype))
    model.add_adapter(AdapterOptions())
    prompts = draw_prompts(load_registry().prompts("simple-animals").load(LoadContext()), 8, 1, 0)
    draw = Draw(prompts, 0, encode_distinct(model, [prompt.text for prompt in prompts]))
    kernel = kernel_for(with_floor(model.schedule(4)), "ddim", 1.0).to(model.device)
    return model, roll_out(model, kernel, draw, LearningPlan(), 0, 8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_replayed_log_probabilities_agree(dtype, record_property):
    model, rollouts = rolled("cuda", dtype)
    difference = check_ratio_is_one(model, rollouts, [0, 1, 2, 3], pairs=3, tolerance=RATIO_TOLERANCE[dtype])
    record_property("largest difference", difference)
    print(f"\n{dtype}: {difference:.2g} nats per element")


def test_the_first_states_are_those_of_the_cpu():
    """Noise is drawn on the CPU, so a run starts from the same numbers on every device."""
    _, cuda = rolled("cuda", "float32")
    _, cpu = rolled("cpu", "float32")
    assert torch.equal(cuda.x_t[:, :, 0].cpu(), cpu.x_t[:, :, 0])
    assert float((cuda.x0.cpu() - cpu.x0).abs().max()) < 0.05


@pytest.mark.parametrize(
    "more", [[], ["train.kl=0.1"], ["objective.sdpo.branched=true"]], ids=["plain", "kl", "branched"]
)
def test_rollouts_kept_on_the_cpu_teach_the_same(more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["train.epochs=2", "train.samples_every=0", "eval.steps=[1]", "rollout.steps=8", *more]
    arguments = ["train", "quickstart", "--quiet", *(f"--set={one}" for one in quick)]
    for offload in ("true", "false"):
        assert main([*arguments, f"--set=rollout.offload={offload}", "--out", offload]) == 0
    there, here = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]) for name in ("true", "false")
    )
    assert there == pytest.approx(here, rel=1e-3, abs=1e-4)


def test_a_run_trains_evaluates_and_resumes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "quickstart", "--quiet", "--set", "train.samples_every=0", "--set", "eval.steps=[1,4]"]
    assert main([*arguments, "--set", "train.epochs=4", "--out", "whole"]) == 0
    assert main([*arguments, "--set", "train.epochs=2", "--out", "parts"]) == 0
    assert main(["train", "--resume", "--out", "parts", "--set", "train.epochs=4", "--quiet"]) == 0
    whole, parts = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    )
    assert [row["epoch"] for row in parts] == [1, 2, 3, 4]
    worst = max(abs(a["reward_last"] - b["reward_last"]) for a, b in zip(whole, parts, strict=True))
    print(f"largest difference of reward_last between the unbroken and the resumed run: {worst:.3g}")
    assert worst < 1.0


def test_attention_of_flux_has_a_gradient():
    """Heads of 128 over 1280 tokens in bfloat16: where cuDNN's kernel gave NaN or an illegal address (torch 2.11)."""
    pick_device("cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(2, 1280, 24, 128, dtype=torch.bfloat16, device="cuda", generator=generator)
        .transpose(1, 2)
        .requires_grad_()
        for _ in range(3)
    )
    torch.nn.functional.scaled_dot_product_attention(query, key, value).float().square().mean().backward()
    assert all(bool(one.grad.isfinite().all()) for one in (query, key, value))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
