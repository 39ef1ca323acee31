"""Dual-state trajectory sampling, and the replay that training learns from."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import tiny
import torch
from torch.distributions import Normal

from sdpo_cli.api.tensors import LearningPlan, Schedule
from sdpo_cli.engine.learning.rollout import common_steps, draw_prompts, roll_out
from sdpo_cli.engine.learning.update import check_ratio_is_one, replay
from sdpo_cli.errors import TrainingError
from sdpo_cli.maths import TRANSITIONS, kernel_for, step_mean, with_floor

PAIR = LearningPlan()


def kernel(model, steps: int = 3, transition: str = "ddim"):
    return kernel_for(with_floor(model.schedule(steps)), transition, 1.0)


@pytest.fixture
def model(checkpoint):
    return tiny.with_random_adapter(tiny.load(checkpoint))


def test_rollouts_of_a_pair_share_noise_and_first_estimate_and_then_part(model):
    rollouts = roll_out(model, kernel(model), tiny.draw(model), PAIR, 0, 2)
    assert rollouts.x_t.shape == (2, 5, 4, 4, 8, 8)
    assert rollouts.x0.shape == (2, 5, 3, 4, 8, 8)
    assert torch.equal(rollouts.x_t[0, :, 0], rollouts.x_t[1, :, 0])
    assert torch.equal(rollouts.x0[0, :, 0], rollouts.x0[1, :, 0])
    assert tiny.biggest_difference(rollouts.x_t[0, :, 1], rollouts.x_t[1, :, 1]) > 1
    assert len({float(x[0, 0, 0]) for x in rollouts.x_t[0, :, 0]}) == 5


def test_rollouts_with_noise_of_their_own_differ_from_the_start(model):
    plan = LearningPlan(rollouts=3, shared_noise=False)
    rollouts = roll_out(model, kernel(model), tiny.draw(model), plan, 0, 5)
    assert tiny.biggest_difference(rollouts.x_t[0, :, 0], rollouts.x_t[2, :, 0]) > 1


def test_antithetic_rollouts_take_the_negative_of_each_other_s_noise(model):
    plan, tables = LearningPlan(rollouts=3, antithetic=True), kernel(model)
    rollouts = roll_out(model, tables, tiny.draw(model), plan, 0, 2)
    own = roll_out(model, tables, tiny.draw(model), LearningPlan(rollouts=3), 0, 2)
    assert torch.equal(rollouts.x_t[0], own.x_t[0])  # each by itself is drawn as ever
    for step in range(3):
        at = tables.at(torch.full((3, 5), step))
        mean = step_mean(rollouts.x_t[:, :, step], rollouts.x0[:, :, step], at)
        noise = (rollouts.x_t[:, :, step + 1] - mean) / at.std[..., None, None, None]
        torch.testing.assert_close(noise[1], -noise[0], rtol=1e-3, atol=1e-3)
        assert tiny.biggest_difference(noise[2].abs(), noise[0].abs()) > 1


BRANCHED = LearningPlan(antithetic=True, branched=True)


def test_branched_rollouts_differ_in_the_noise_of_one_action(model):
    tables = kernel(model, steps=4)
    rollouts = roll_out(model, tables, tiny.draw(model), BRANCHED, 0, 2)
    own = roll_out(model, tables, tiny.draw(model), LearningPlan(), 0, 2)
    torch.testing.assert_close(rollouts.x_t[0], own.x_t[0], rtol=1e-3, atol=1e-3)  # each by itself is drawn as ever
    branch = (rollouts.common - 1).tolist()
    assert len(set(branch)) > 1
    assert set(branch) <= {0, 1, 2}  # the last action earns nothing
    for step in range(4):
        at = tables.at(torch.full((2, 5), step))
        mean = step_mean(rollouts.x_t[:, :, step], rollouts.x0[:, :, step], at)
        noise = (rollouts.x_t[:, :, step + 1] - mean) / at.std[..., None, None, None]
        for pair, at_branch in enumerate(one == step for one in branch):
            assert torch.equal(rollouts.x_t[0, pair, step], rollouts.x_t[1, pair, step]) == (step <= branch[pair])
            assert torch.equal(rollouts.x0[0, pair, step], rollouts.x0[1, pair, step]) == (step <= branch[pair])
            other = -noise[0, pair] if at_branch else noise[0, pair]
            torch.testing.assert_close(noise[1, pair], other, rtol=1e-3, atol=1e-3)


def test_branches_follow_the_seed_and_the_pair_s_number(model):
    tables = kernel(model, steps=6)
    some = common_steps(tables, BRANCHED, range(40), 0)
    assert torch.equal(common_steps(tables, BRANCHED, range(30, 40), 0), some[30:])
    assert not torch.equal(common_steps(tables, BRANCHED, range(40), 1), some)
    assert set(some.tolist()) == {1, 2, 3, 4, 5}
    assert common_steps(tables, LearningPlan(shared_noise=False), range(2), 0).tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [{"shared_noise": False}, {"credit": "current"}])
def test_branched_rollouts_are_one_up_to_the_branch_and_its_action_earns_something(wrong):
    with pytest.raises(ValueError, match=r"^branched rollouts need shared_noise and a credit other than current$"):
        LearningPlan(branched=True, **wrong)


@pytest.mark.parametrize("wrong", [{"shared_noise": False}, {"dense": "final"}])
def test_a_gain_is_over_another_reward_or_one_in_common(wrong):
    message = "^credit gain needs shared_noise and the rewards of more steps than the last$"
    with pytest.raises(ValueError, match=message):
        LearningPlan(credit="gain", **wrong)


def test_states_in_common_are_computed_once(model, monkeypatch):
    pictures, denoise = [], model.denoise
    monkeypatch.setattr(model, "denoise", lambda x, at, known: pictures.append(len(x)) or denoise(x, at, known))
    rollouts = roll_out(model, kernel(model, steps=4), tiny.draw(model), BRANCHED, 0, 5)
    assert sum(pictures) == 2 * 5 * 4 - int(rollouts.common.sum())
    pictures.clear()
    replay(model, rollouts, torch.arange(5), rollouts.common - 1)
    assert pictures == [5]


def test_a_pair_costs_one_network_call_less_than_two_rollouts(model, monkeypatch):
    pictures = []
    denoise = model.denoise
    monkeypatch.setattr(model, "denoise", lambda x, *rest: pictures.append(len(x)) or denoise(x, *rest))
    roll_out(model, kernel(model, steps=4), tiny.draw(model), PAIR, 0, 5)
    assert pictures == [5, 10, 10, 10]


def test_numbers_depend_on_seed_and_pair_alone(model):
    tables = kernel(model)
    whole = roll_out(model, tables, tiny.draw(model), PAIR, 0, 5)
    parts = roll_out(model, tables, tiny.draw(model), PAIR, 0, 2)
    assert tiny.biggest_difference(whole.x_t, parts.x_t) < 1e-4
    other_pairs = roll_out(model, tables, tiny.draw(model, first=5), PAIR, 0, 5)
    other_seed = roll_out(model, tables, tiny.draw(model), PAIR, 1, 5)
    for other in (other_pairs, other_seed):
        assert tiny.biggest_difference(whole.x_t[:, :, 0], other.x_t[:, :, 0]) > 1


@pytest.mark.parametrize("transition", ["ddim", "renoise", "cps"])
def test_log_probability_is_the_mean_of_the_normal_density(model, transition):
    tables = kernel(model, transition=transition)
    rollouts = roll_out(model, tables, tiny.draw(model), PAIR, 0, 5)
    for step in range(3):
        at = tables.at(torch.full((2, 5), step))
        density = Normal(
            step_mean(rollouts.x_t[:, :, step], rollouts.x0[:, :, step], at), at.std[..., None, None, None]
        )
        expected = density.log_prob(rollouts.x_t[:, :, step + 1]).mean((-3, -2, -1))
        torch.testing.assert_close(rollouts.log_prob[:, :, step], expected, rtol=1e-5, atol=1e-5)


LEVELS = (1.0, 0.75, 0.5, 0.2)
"""σ of a flow that ends with some noise left, so that every transition has a density at every step."""


@pytest.fixture
def certain(model, monkeypatch):
    """A model that is sure of one clean picture, every number of it 2, with latents enough for statistics."""
    monkeypatch.setattr(model, "denoise", lambda x_t, at, conditioning: torch.full_like(x_t, 2.0))
    monkeypatch.setattr(model, "latent_shape", (4, 64, 64))
    return model


def flow_rollouts(model, transition: str, eta: float):
    """10 rollouts, each with noise of its own."""
    sigma = torch.tensor(LEVELS, dtype=torch.float64)
    levels = Schedule(1000 * sigma[:-1], 1 - sigma[:-1], sigma[:-1], 1 - sigma[1:], sigma[1:])
    plan = LearningPlan(shared_noise=False)
    return roll_out(model, kernel_for(levels, transition, eta), tiny.draw(model), plan, 0, 5)


def published_step(transition: str, eta: float, t: float, s: float, next_to_noise: float) -> tuple[float, float]:
    """Share of the old noise and fresh deviation of a step from σ = t to s, as the transitions' papers have them."""
    if transition == "sde":  # arXiv 2505.05470, eq. 9
        fresh = eta * math.sqrt((t - s) * t / (1 - (next_to_noise if t == 1 else t)))
        return s - fresh**2 / (2 * t), fresh
    fresh = {
        "ddim": eta * s * math.sqrt(1 - ((1 - t) * s / ((1 - s) * t)) ** 2),
        "renoise": s,
        "cps": s * math.sin(eta * math.pi / 2),
    }[transition]
    return math.sqrt(s**2 - fresh**2), fresh


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_moments_and_densities_are_those_of_the_published_step(certain, transition):
    rollouts, eta = flow_rollouts(certain, transition, 0.7), 0.7
    count = rollouts.x_t[:, :, 0].numel()
    variance = 1.0  # of a state about α 2
    for step, (t, s) in enumerate(pairwise(LEVELS)):
        kept, fresh = published_step(transition, eta, t, s, LEVELS[1])
        variance = (kept / t) ** 2 * variance + fresh**2
        before, after = rollouts.x_t[:, :, step].double(), rollouts.x_t[:, :, step + 1].double()
        assert float(after.mean()) == pytest.approx((1 - s) * 2, abs=5 * math.sqrt(variance / count))
        assert float(after.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
        density = Normal((1 - s) * 2 + kept / t * (before - (1 - t) * 2), fresh)
        expected = density.log_prob(after).mean((-3, -2, -1)).float()
        torch.testing.assert_close(rollouts.log_prob[:, :, step], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transition", [name for name in TRANSITIONS if name != "renoise"])
def test_eta_zero_is_the_deterministic_step_and_has_no_density(certain, transition):
    rollouts = flow_rollouts(certain, transition, 0.0)
    start = rollouts.x_t[:, :, 0]
    for step, s in enumerate(LEVELS[1:], 1):
        expected = (1 - s) * 2 + s * start  # the noise it began with, at every level
        torch.testing.assert_close(rollouts.x_t[:, :, step], expected, rtol=1e-5, atol=1e-5)
    assert not rollouts.log_prob.any()


def test_replayed_log_probabilities_equal_the_sampled_ones(model):
    rollouts = roll_out(model, kernel(model), tiny.draw(model), PAIR, 0, 5)
    step = torch.tensor([0, 1, 2, 0, 1])
    replayed = replay(model, rollouts, torch.arange(5), step).log_prob
    assert tiny.biggest_difference(replayed, rollouts.log_prob[:, torch.arange(5), step]) < 1e-5
    assert check_ratio_is_one(model, rollouts, [0, 1], pairs=3, tolerance=1e-5) < 1e-5


def test_a_policy_that_moved_is_caught_with_its_step(model):
    rollouts = roll_out(model, kernel(model), tiny.draw(model), PAIR, 0, 5)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.1)
    with pytest.raises(TrainingError) as fault:
        check_ratio_is_one(model, rollouts, [2], pairs=5, tolerance=1e-4)
    assert str(fault.value).startswith("rollout step 2: replayed log-probabilities differ from the sampled ones by ")
    assert str(fault.value).endswith(
        ", more than 0.0001; use model.dtype float32; if it is, the model's network is not deterministic"
    )


def test_gradient_through_the_shared_first_step_equals_separate_calls(model):
    rollouts = roll_out(model, kernel(model), tiny.draw(model), PAIR, 0, 5)
    gradients = []
    for common in (1, 0):
        one = replace(rollouts, common=torch.full((5,), common))
        log_prob = replay(model, one, torch.arange(5), torch.tensor([0, 0, 1, 2, 0])).log_prob
        loss = (log_prob * torch.tensor([[1.0], [-2.0]])).sum()
        gradients.append(torch.autograd.grad(loss, list(model.trainable().values())))
    for shared, separate in zip(*gradients, strict=True):
        torch.testing.assert_close(shared, separate, rtol=1e-4, atol=1e-6)


def test_every_prompt_comes_once_a_lap_in_an_order_of_its_own():
    texts = [prompt.text for epoch in range(1, 6) for prompt in draw_prompts(tiny.PROMPTS, 4, epoch, seed=0)]
    laps = [texts[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(lap) == ["ant", "bee", "cat", "dog", "owl"] for lap in laps)
    assert len({tuple(lap) for lap in laps}) > 1


def test_an_epochs_prompts_do_not_depend_on_earlier_calls():
    assert draw_prompts(tiny.PROMPTS, 3, 7, seed=2) == draw_prompts(tiny.PROMPTS, 3, 7, seed=2)
    assert draw_prompts(tiny.PROMPTS, 12, 1, seed=0) == [
        prompt for epoch in (1, 2, 3) for prompt in draw_prompts(tiny.PROMPTS, 4, epoch, seed=0)
    ]
