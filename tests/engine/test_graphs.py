"""Which passes are recorded and replayed, and when not. CUDA graphs need a GPU: here Python stands in for them.

The stand-ins write where graphs would write: into places that the next replay overwrites.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from torch.utils import _pytree as pytree

from sdpo_cli.api import graphs
from sdpo_cli.api.graphs import Recorder, any_recordings, held_by_recordings, record_passes, state_of
from sdpo_cli.api.recording import Recording, answered, kind_of
from sdpo_cli.api.tensors import AdapterOptions
from sdpo_cli.engine.artifacts import RunFolder
from sdpo_cli.engine.bench import timed
from sdpo_cli.engine.memory import fitting
from sdpo_cli.engine.optimizer import make_optimizer
from sdpo_cli.engine.shares import Seat
from sdpo_cli.engine.trainer import Run
from sdpo_cli.engine.update import replay
from sdpo_cli.engine.rollout import roll_out
from sdpo_cli.api.tensors import LearningPlan
from sdpo_cli.maths import kernel_for, with_floor


class Again:
    """In place of a graph: what it stands for is computed once more."""

    def __init__(self, compute):
        self.replay = compute


class CpuPool:
    """In place of the device's memory."""

    def __init__(self):
        self.device, self.held, self.fault, self.made = torch.device("cpu"), 0, None, []

    def record(self, network, kind, slots):
        if self.fault:
            raise self.fault
        shapes = [one[0] for one in kind.leaves]
        leaves = [torch.zeros(*one) if isinstance(one[0], torch.Size) else one[1] for one in kind.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, kind.spec)
        inputs = [leaf for leaf, shape in zip(leaves, shapes, strict=True) if isinstance(shape, torch.Size)]
        with torch.no_grad():
            outputs, spec = answered(network(*args, **kwargs))
        weights, live = [getattr(module, name) for module, name in slots], []

        def forward():
            with torch.set_grad_enabled(kind.gradient):
                live[:] = answered(network(*args, **kwargs))[0]
            for place, one in zip(outputs, live, strict=True):
                place.copy_(one.detach())

        def backward():
            for place, one in zip(gradients, torch.autograd.grad(live, weights, slopes), strict=True):
                place.copy_(one)

        slopes, gradients = [one.clone() for one in outputs], [torch.zeros_like(one) for one in weights]
        self.made.append(kind.gradient)
        self.held += 1000
        graph = Again(backward) if kind.gradient else None
        return Recording(inputs, Again(forward), outputs, spec, graph, slopes, [one.detach() for one in gradients])

    def close(self):
        self.held = 0


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Recorders of other tests are none of this one's business."""
    monkeypatch.setattr(graphs, "RECORDERS", set())


def recorded(checkpoint) -> tuple:
    model = tiny.load(checkpoint)
    model.recorder = record_passes(model.denoiser, CpuPool())
    return tiny.with_random_adapter(model), model.recorder


@pytest.fixture
def model(checkpoint):
    return recorded(checkpoint)[0]


@pytest.fixture
def plain(checkpoint):
    return tiny.with_random_adapter(tiny.load(checkpoint))


def rolled(model, seed=0):
    kernel = kernel_for(with_floor(model.schedule(2)), "ddim", 1.0)
    return roll_out(model, kernel, tiny.draw(model), LearningPlan(), seed, 5)


def log_prob(model, rollouts, step):
    return replay(model, rollouts, torch.arange(5), torch.full((5,), step)).log_prob.sum()


def gradients(model, rollouts, steps=(0, 1)):
    """Added up over micro-batches, as an update adds them up."""
    for weight in model.trainable().values():
        weight.grad = None
    for step in steps:
        log_prob(model, rollouts, step).backward()
    return [weight.grad.clone() for weight in model.trainable().values()]


def warm(model):
    """Past the calls that are computed; gives rollouts."""
    rollouts = rolled(model)
    for _ in range(2):
        gradients(model, rollouts, (1, 1))
    assert len(model.recorder.recordings) == 2
    return rollouts


def close(ones, others):
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
