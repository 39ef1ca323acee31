"""CUDA graphs on a CUDA device: what a recorded pass gives, and what is left when recording fails."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch

from sdpo_cli.api import LoadContext, recording
from sdpo_cli.api.graphs import give_up_recordings, held_by_recordings
from sdpo_cli.api.recording import Pool, free_cached
from sdpo_cli.api.tensors import AdapterOptions, LearningPlan
from sdpo_cli.builtin.models import load_checkpoint, load_xl_checkpoint
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.engine.benching.bench import host_syncs, timed
from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.learning.optimizer import make_optimizer
from sdpo_cli.engine.learning.rollout import roll_out
from sdpo_cli.engine.learning.update import replay
from sdpo_cli.engine.setup import pick_device
from sdpo_cli.engine.training.shares import Seat
from sdpo_cli.engine.training.trainer import Run
from sdpo_cli.main import main
from sdpo_cli.maths import kernel_for, with_floor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

NOISE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Relative difference that two passes of the same network may have."""


def relative(ones, others) -> float:
    one, other = (torch.cat([part.flatten() for part in parts]).double() for parts in (ones, others))
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return {"sd": tiny.save_pipeline(folder / "sd"), "sdxl": tiny.save_xl_pipeline(folder / "sdxl")}


def load(folders, family="sd", dtype="float32", **options):
    """A compiled tiny model with a LoRA that changes pictures."""
    open_it = {"sd": load_checkpoint, "sdxl": load_xl_checkpoint}[family]
    context = LoadContext(device=str(pick_device("cuda")), dtype=dtype, compile=True)
    return randomised(open_it(UNetOptions(path=str(folders[family]), **options), context))


def randomised(model):
    """With a LoRA that changes pictures."""
    model.add_adapter(AdapterOptions(rank=2, alpha=2.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator).to(weight.device))
    return model


@pytest.fixture(scope="module")
def model(folders):
    return load(folders)


@pytest.fixture(autouse=True)
def fresh(request):
    """Each test begins and ends without recordings."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    if "model" in request.fixturenames:
        shared = request.getfixturevalue("model")
        shared.recorder.forget()
        shared.recorder.fault, shared.recorder._chances = "", 2


@contextmanager
def computed(model):
    """While entered, nothing is recorded or replayed."""
    forward = model.denoiser.forward
    model.denoiser.forward = model.recorder.plain
    try:
        yield
    finally:
        model.denoiser.forward = forward


def rolled(model):
    kernel = kernel_for(with_floor(model.schedule(3)), "ddim", 1.0).to(model.device)
    return roll_out(model, kernel, tiny.draw(model), LearningPlan(), 0, 5)


def gradient(model, rollouts, steps=(0, 1)):
    """Of the summed log-probabilities, added up over micro-batches."""
    for weight in model.trainable().values():
        weight.grad = None
    for step in steps:
        replay(model, rollouts, torch.arange(5), torch.full((5,), step)).log_prob.sum().backward()
    return [weight.grad.clone() for weight in model.trainable().values()]


def warm(model):
    """Past the calls that are computed; gives rollouts."""
    rollouts = rolled(model)
    gradient(model, rollouts, (1, 1, 1))
    assert model.recorder.fault == ""
    assert [kind.gradient for kind in model.recorder.recordings] == [True, False]
    return rollouts


def check(model, rollouts):
    """What is replayed is what is computed: estimates, and a gradient added up over two passes."""
    found = [rolled(model).x0], gradient(model, rollouts)
    with computed(model):
        expected = [rolled(model).x0], gradient(model, rollouts)
        again = [rolled(model).x0], gradient(model, rollouts)
    errors, noise = ([relative(*pair) for pair in zip(one, expected, strict=True)] for one in (found, again))
    print(
        f"\n{model.dtype}: estimates {errors[0]:.3g} (computed twice {noise[0]:.3g}), gradient {errors[1]:.3g} "
        f"({noise[1]:.3g})"
    )
    assert max(errors) < NOISE[model.dtype]


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}], ids=["", "checkpointing"])
@pytest.mark.parametrize(("family", "dtype"), [("sd", "float32"), ("sd", "bfloat16"), ("sdxl", "bfloat16")])
def test_a_recorded_pass_is_the_computed_one(folders, family, dtype, options):
    model = load(folders, family, dtype, **options)
    rollouts = warm(model)
    check(model, rollouts)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight.mul_(1.5)
    check(model, rollouts)
    assert len(model.recorder.recordings) == 2


def test_weights_in_another_place(model):
    rollouts = warm(model)
    for weight in model.trainable().values():
        weight.data = 2 * weight.data
    with computed(model):
        expected = rolled(model).x0
    torch.testing.assert_close(rolled(model).x0, expected)
    assert not model.recorder.recordings
    gradient(model, rollouts, (1, 1, 1))
    check(model, rollouts)


def test_without_the_lora_and_with_another(model, tmp_path):
    rollouts = warm(model)
    with model.without_adapter():
        found = rolled(model).x0
        with computed(model):
            expected = rolled(model).x0
    torch.testing.assert_close(found, expected)
    assert len(model.recorder.recordings) == 2
    check(model, rollouts)
    model.save_adapter(tmp_path)
    model.load_adapter(tmp_path)
    check(model, warm(model))


@pytest.mark.parametrize("which", [1, 2], ids=["forward", "backward"])
def test_memory_that_runs_out_in_a_recording_leaves_all_usable(model, which, monkeypatch):
    inner, count = recording.capturing, []

    @contextmanager
    def tight(graph, pool, stream):
        count.append(1)
        if len(count) == which:
            free_cached()
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
        with inner(graph, pool, stream):
            if len(count) == which:
                torch.empty(2**25, device="cuda")
            yield

    monkeypatch.setattr(recording, "capturing", tight)
    rollouts = rolled(model)
    gradient(model, rollouts, (1, 1))
    with pytest.MonkeyPatch.context() as patch:  # memory is short only while it is recorded
        recorded = model.recorder.record
        patch.setattr(
            model.recorder, "record", lambda *a: (recorded(*a), torch.cuda.set_per_process_memory_fraction(1.0))
        )
        gradient(model, rollouts, (1,))
    assert (len(count) >= which, model.recorder.fault) == (True, "")
    assert not [kind for kind in model.recorder.recordings if kind.gradient]
    monkeypatch.undo()
    free_cached()
    check(model, rollouts)
    model.recorder.forget()
    check(model, warm(model))


@pytest.mark.parametrize(
    "wait", [lambda x: x.sum().item(), lambda x: torch.cuda.synchronize()], ids=["noticed before", "refused by CUDA"]
)
def test_a_pass_that_waits_for_the_device_is_not_recorded(model, wait, monkeypatch):
    block, forward = model.denoiser.mid_block, model.denoiser.mid_block.forward
    monkeypatch.setattr(block, "forward", lambda x, *args, **kwargs: (wait(x), forward(x, *args, **kwargs))[1])
    rollouts = rolled(model)
    gradient(model, rollouts, (1, 1, 1))
    print(f"\n{model.recorder.fault}")
    assert model.recorder.fault
    assert not model.recorder.recordings
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    check(model, rollouts)
    monkeypatch.undo()
    model.recorder.fault = ""
    free_cached()
    check(model, warm(model))


def test_memory_is_given_back(model):
    gradient(model, rolled(model), (1,))
    free_cached()
    before = torch.cuda.memory_reserved()
    warm(model)
    assert held_by_recordings() > 0
    assert give_up_recordings()
    assert held_by_recordings() == 0
    assert torch.cuda.memory_reserved() < before + 2**27  # the products' workspace on another stream


def started(folders) -> Run:
    """A tiny run on the device."""
    setup = tiny.setup(folders["sd"])
    context = LoadContext(device=str(pick_device("cuda")), compile=True)
    model = load_checkpoint(UNetOptions(path=str(folders["sd"])), context)
    setup = replace(setup, model=model, kernel=setup.kernel.to(model.device))
    model.add_adapter(AdapterOptions(rank=2, alpha=2.0))
    return Run(Seat(setup), RunFolder(Path()), make_optimizer(setup.recipe.train, model.trainable().values()))


def test_epochs_record_once_and_wait_no_more_often(folders):
    waits = {}
    for way in ("recorded", "computed"):
        run = started(folders)
        recorder = run.setup.model.recorder
        if way == "computed":
            run.setup.model.denoiser.forward = recorder.plain
        counts = [timed(run, epoch) and dict(recorder.recordings) for epoch in (1, 2, 3, 4)]
        waits[way] = host_syncs(run, 5)
        assert all(len(one) == (2 if way == "recorded" else 0) for one in counts[1:])
        assert all(one == counts[1] for one in counts[1:])
    print(f"\n{waits}")
    assert waits["recorded"] <= waits["computed"]


def test_a_compiled_run_trains_evaluates_and_resumes(tmp_path, monkeypatch):
    made, record = [], Pool.record

    def counted(self, network, kind, slots):
        found = record(self, network, kind, slots)
        made.append(kind.gradient)
        return found

    monkeypatch.setattr(Pool, "record", counted)
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "quickstart", "--quiet", "--set", "train.samples_every=0", "--set", "eval.steps=[1,4]"]
    arguments += ["--set", "train.ema_decay=0.9", "--set", "train.micro_batch=4"]
    compiled = [*arguments, "--set", "model.compile=true"]
    assert main([*arguments, "--set", "train.epochs=4", "--out", "plain"]) == 0
    assert made == []
    assert main([*compiled, "--set", "train.epochs=4", "--out", "whole"]) == 0
    once = len(made)
    assert main([*compiled, "--set", "train.epochs=2", "--out", "parts"]) == 0
    assert main(["train", "--resume", "--out", "parts", "--set", "train.epochs=4", "--quiet"]) == 0
    rows = {
        name: [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "whole", "parts")
    }
    for name in ("whole", "parts"):
        worst = max(abs(a["reward_last"] - b["reward_last"]) for a, b in zip(rows["plain"], rows[name], strict=True))
        print(f"\nlargest difference of reward_last between the plain and the compiled run, {name}: {worst:.3g}")
        assert worst < 1.0
    print(f"recordings: {once}, {len(made)} with the resumed run")
    assert made.count(True) >= 3
