"""SDPO's objective: its plan, its options, and losses, metrics and gradients worked out by hand."""

import pytest
import torch

from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import LearningPlan, LossBatch
from sdpo_cli.builtin.objectives import sdpo_objectives
from sdpo_cli.recipe import validate

SPEC = next(spec for spec in sdpo_objectives() if spec.name == "sdpo")


def objective(**options):
    checked, faults = validate(SPEC.options, options, "objective")
    assert faults == []
    return SPEC.load(checked, LoadContext())


def batch(log_prob_new):
    """Two pairs: ratios 0.3, -0.1 at step 0 with ΔA 1; ratios 0.1, -0.1 at step 2 with ΔA -1."""
    return LossBatch(
        log_prob_new=log_prob_new,
        log_prob_old=torch.tensor([[-1.0, -2.0], [-1.0, -2.0]]),
        advantage=torch.tensor([[1.5, -1.0], [0.5, 0.0]]),
        step=torch.tensor([0, 2]),
    )


NEW = [[-0.7, -1.9], [-1.1, -2.1]]


def test_loss_metrics_and_gradient_by_hand():
    # Weights 0.5⁰ / 2 = 0.5 and 0.5² / 2 = 0.125.
    # Pair 0: free (0.5 · 0.4 - 1)² = 0.64, clipped to 0.2 and -0.1 (0.5 · 0.3 - 1)² = 0.7225, which decides.
    # Pair 1: nothing to clip: (0.125 · 0.2 + 1)² = 1.050625.
    log_prob_new = torch.tensor(NEW, requires_grad=True)
    result = objective(**{"lambda": 0.5, "eta_scale": 2.0, "clip": 0.2}).loss(batch(log_prob_new))
    assert result.loss.item() == pytest.approx((0.7225 + 1.050625) / 2, abs=1e-6)
    assert {name: value.item() for name, value in result.metrics.items()} == pytest.approx(
        {"clip_fraction": 0.5, "ratio_difference": 0.3}
    )
    # Pair 0: the first rollout is at its limit: 0; the second -2 · 0.5 · (0.15 - 1) / 2 = 0.425.
    # Pair 1: ± 2 · 0.125 · 1.025 / 2 = 0.128125.
    result.loss.backward()
    torch.testing.assert_close(log_prob_new.grad, torch.tensor([[0.0, 0.128125], [0.425, -0.128125]]))


def test_clip_zero_is_no_limit():
    result = objective(**{"lambda": 0.5, "eta_scale": 2.0, "clip": 0}).loss(batch(torch.tensor(NEW)))
    assert result.loss.item() == pytest.approx((0.64 + 1.050625) / 2, abs=1e-6)
    assert result.metrics["clip_fraction"] == 0


def test_metrics_carry_no_gradient():
    result = objective().loss(batch(torch.tensor(NEW, requires_grad=True)))
    assert result.loss.requires_grad
    assert not any(metric.requires_grad for metric in result.metrics.values())


def test_descent_raises_the_likelihood_of_the_better_rollout():
    log_prob_new = torch.full((2, 2), -1.0, requires_grad=True)
    advantage = torch.tensor([[2.0, -0.5], [-1.0, 0.5]])
    objective().loss(LossBatch(log_prob_new, log_prob_new.detach(), advantage, torch.tensor([1, 1]))).loss.backward()
    # d/dρ_a mean (w Δρ - ΔA)² at Δρ 0 is -2 w ΔA / 2 = -0.99 ΔA, with ΔA 3 and -1.
    torch.testing.assert_close(log_prob_new.grad, torch.tensor([[-2.97, 0.99], [2.97, -0.99]]))


def test_plan_by_default():
    assert objective().plan == LearningPlan(
        rollouts=2, shared_noise=True, antithetic=True, dense="anchors", anchor="middle", predictor="arc",
        credit="next", gamma=0.99, statistics_size=32, statistics_min_count=16, advantage_clip=5.0,
    )  # fmt: skip


def test_plan_follows_the_options():
    options = {
        "antithetic": False,
        "branched": True,
        "gamma": 0,
        "advantage_clip": 3,
        "dense": {"mode": "exact", "anchor": "any"},
        "statistics": {"size": 8, "min_count": 4},
    }
    assert objective(**options).plan == LearningPlan(
        rollouts=2, shared_noise=True, antithetic=False, branched=True, dense="exact", anchor="any", predictor="arc",
        credit="next", gamma=0.0, statistics_size=8, statistics_min_count=4, advantage_clip=3.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"gamma": 1.01}, "gamma"),
        ({"gamma": -0.1}, "gamma"),
        ({"lambda": 0}, "lambda"),
        ({"lambda": 1.5}, "lambda"),
        ({"clip": -1e-4}, "clip"),
        ({"credit": "previous"}, "credit"),
        ({"eta_scale": 0}, "eta_scale"),
        ({"advantage_clip": 0}, "advantage_clip"),
        ({"dense": {"mode": "some"}}, "dense.mode"),
        ({"dense": {"anchor": "inner"}}, "dense.anchor"),
        ({"statistics": {"size": 0}}, "statistics.size"),
        ({"statistics": {"min_count": 1.5}}, "statistics.min_count"),
        ({"beta": 1}, "beta"),
    ],
)
def test_options_out_of_bounds_are_refused_by_field(options, field):
    checked, faults = validate(SPEC.options, options, "r.yaml: objective.sdpo")
    assert checked is None
    assert [fault.split(": ")[1] for fault in faults] == [f"objective.sdpo.{field}"]


def test_branched_pairs_earn_the_next_estimate_s_reward():
    assert objective(credit="current").plan.credit == "current"
    _, faults = validate(SPEC.options, {"branched": True, "credit": "current"}, "r.yaml: objective.sdpo")
    assert faults == [
        "r.yaml: objective.sdpo: with branched pairs credit should not be current: "
        "before the branch the rewards are the same"
    ]


def test_a_gain_needs_rewards_of_several_steps():
    assert objective(credit="gain").plan.credit == "gain"
    _, faults = validate(SPEC.options, {"credit": "gain", "dense": {"mode": "final"}}, "r.yaml: objective.sdpo")
    assert faults == [
        "r.yaml: objective.sdpo: with credit gain dense.mode should be exact or anchors: with final there is one reward"
    ]
