"""The objectives that SDPO is compared with: losses and gradients worked out by hand, plans, and the laws."""

import math

import pytest
import torch

from sdpo_cli import maths
from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import LearningPlan, LossBatch
from sdpo_cli.builtin.objectives import sdpo_objectives
from sdpo_cli.recipe import validate
from sdpo_cli.testing import check_objective

SPECS = {spec.name: spec for spec in sdpo_objectives()}


def objective(name, **options):
    checked, faults = validate(SPECS[name].options, options, "objective")
    assert faults == []
    return SPECS[name].load(checked, LoadContext())


def table(*rows):
    return torch.tensor(rows)


def gradient(result, log_prob_new):
    result.loss.backward()
    return log_prob_new.grad


def values(result):
    return {name: value.item() for name, value in result.metrics.items()}


@pytest.mark.parametrize("name", ["ddpo", "grpo"])
def test_clipped_policy_gradient_by_hand(name):
    # Ratios e^0.2 = 1.2214 and e^-0.2 = 0.8187, clipped to 1.1 and 0.9.
    # A = 1: max(-1.2214, -1.1) = -1.1, clipped, no gradient; A = -1: max(1.2214, 1.1) = 1.2214, gradient 1.2214 / 4.
    # A = 2 at 0.8187: max(-1.6375, -1.8) = -1.6375, gradient -1.6375 / 4; A = -2: max(1.6375, 1.8) = 1.8, clipped.
    new = table([0.2, 0.2], [-0.2, -0.2]).requires_grad_()
    batch = LossBatch(new, torch.zeros(2, 2), table([1.0, -1.0], [2.0, -2.0]), torch.tensor([0, 1]))
    result = objective(name, clip=0.1).loss(batch)
    assert result.loss.item() == pytest.approx((-1.1 + math.exp(0.2) - 2 * math.exp(-0.2) + 1.8) / 4)
    assert values(result) == pytest.approx({
        "clip_fraction": 0.5, "ratio_distance": (math.exp(0.2) - math.exp(-0.2)) / 2
    })  # fmt: skip
    expected = table([0.0, math.exp(0.2) / 4], [-2 * math.exp(-0.2) / 4, 0.0])
    torch.testing.assert_close(gradient(result, new), expected)


def test_without_a_limit_the_policy_gradient_is_free():
    new = table([0.2], [-0.2]).requires_grad_()
    result = objective("ddpo", clip=0).loss(LossBatch(new, torch.zeros(2, 1), table([1.0], [1.0]), torch.tensor([0])))
    torch.testing.assert_close(gradient(result, new), table([-math.exp(0.2) / 2], [-math.exp(-0.2) / 2]))
    assert result.metrics["clip_fraction"] == 0


TRAJECTORIES = LossBatch(
    log_prob_new=table([[0.3, 0.1], [0.0, 0.1]], [[-0.1, 0.0], [0.0, -0.1]]),
    log_prob_old=torch.zeros(2, 2, 2),
    advantage=table([[1.5, 1.5], [-1.0, -1.0]], [[0.5, 0.5], [0.0, 0.0]]),
    step=torch.tensor([[0, 1], [0, 1]]),
)
"""Two pairs of two actions: Σ Δρ 0.5 with ΔA 1, and 0.2 with ΔA -1."""


def with_gradient(batch):
    new = batch.log_prob_new.clone().requires_grad_()
    return new, LossBatch(new, batch.log_prob_old, batch.advantage, batch.step)


def test_rebel_by_hand():
    # (0.5 · 0.5 - 1)² = 0.5625 and (0.5 · 0.2 + 1)² = 1.21; d/dρ_a = 2 β (β ΣΔρ - ΔA) / 2.
    new, batch = with_gradient(TRAJECTORIES)
    result = objective("rebel", beta=0.5).loss(batch)
    assert result.loss.item() == pytest.approx((0.5625 + 1.21) / 2)
    assert values(result) == pytest.approx({"clip_fraction": 0.0, "ratio_difference": 0.35})
    slopes = table([-0.375], [0.55]).expand(2, 2)
    torch.testing.assert_close(gradient(result, new), torch.stack([slopes, -slopes]))


def test_prdp_by_hand():
    # Held to ±0.2 the first pair's ΣΔρ is 0.4: (0.5 · 0.4 - 1)² = 0.64 > 0.5625 decides, and the action at its limit
    # has no gradient: 2 · 0.5 · (0.2 - 1) / 2 = -0.4 for the others. The second pair is within the limits.
    new, batch = with_gradient(TRAJECTORIES)
    result = objective("prdp", beta=0.5, clip=0.2).loss(batch)
    assert result.loss.item() == pytest.approx((0.64 + 1.21) / 2)
    assert values(result) == pytest.approx({"clip_fraction": 0.5, "ratio_difference": 0.35})
    first = table([0.0, -0.4], [0.55, 0.55])
    second = table([0.4, 0.4], [-0.55, -0.55])
    torch.testing.assert_close(gradient(result, new), torch.stack([first, second]))


def test_d3po_by_hand():
    # Pair 0: ratios 0.3 and -0.1 to the base model, the first wins: -log σ(2 · 0.4); slope -2 σ(-0.8) / 3.
    # Pair 1: ratios 0.1 and 0, the second wins: -log σ(-0.2); slope ∓2 σ(0.2) / 3. Pair 2: equals teach nothing.
    new = table([0.3, 0.1, 0.2], [-0.1, 0.0, 0.0]).requires_grad_()
    advantage = table([1.0, -1.0, 0.5], [0.5, 2.0, 0.5])
    batch = LossBatch(new, torch.full((2, 3), 9.0), advantage, torch.tensor([0, 1, 1]), torch.zeros(2, 3))
    result = objective("d3po", beta=2.0).loss(batch)
    assert result.loss.item() == pytest.approx((math.log1p(math.exp(-0.8)) + math.log1p(math.exp(0.2))) / 3)
    assert values(result) == pytest.approx({"preferred": 1 / 3})
    first, second = 2 / (1 + math.exp(0.8)) / 3, 2 / (1 + math.exp(-0.2)) / 3
    torch.testing.assert_close(gradient(result, new), table([-first, second, 0.0], [first, -second, 0.0]))


def test_plans():
    terminal = {"dense": "final", "credit": "next", "gamma": 0.0}
    assert {name: objective(name).plan for name in SPECS if name != "sdpo"} == {
        "ddpo": LearningPlan(**terminal, shared_noise=False, updates="accumulated"),
        "grpo": LearningPlan(**terminal, rollouts=8, shared_noise=False, advantage="group", updates="accumulated"),
        "prdp": LearningPlan(**terminal, updates="trajectory"),
        "rebel": LearningPlan(**terminal, updates="trajectory"),
        "d3po": LearningPlan(**terminal, reference=True),
    }


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_objective_keeps_the_laws(name):
    check_objective(objective(name))


def test_a_group_is_standardised_by_itself():
    # Returns 1, 3 of the first prompt: mean 2, std 1. Returns 5, 5 of the second: nothing to learn.
    returns = table([[1.0], [5.0]], [[3.0], [5.0]])
    torch.testing.assert_close(
        maths.group_advantages(returns), table([[-1.0], [0.0]], [[1.0], [0.0]]), rtol=0, atol=1e-5
    )


def test_kl_of_gaussians_is_torchs():
    mean, other = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    std = torch.tensor([0.5, 1.0, 2.0])
    wide = std[:, None, None, None].expand(3, 4, 4, 4)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, wide), normal(other, wide)).mean((1, 2, 3))
    torch.testing.assert_close(maths.gaussian_kl(mean, other, std), expected)
