"""Laws of the public formulas, on numbers that one can check by hand."""

import math

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, tensor

from sdpo_cli import maths
from sdpo_cli.builtin.models.ddim import ddim_schedule
from sdpo_cli.errors import UsageError

STEP_COUNTS = (1, 2, 4, 8, 50)
ETA = st.floats(0, 1)
SMALL = st.floats(-3, 3, width=32)


def scheduler(*, to_one: bool = False, prediction: str = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=to_one,
        timestep_spacing="trailing",
        prediction_type=prediction,
    )


def schedule(*levels: float, floor: tuple[float, float] | None = None) -> maths.Schedule:
    """A variance-preserving schedule through the given sigmas."""
    sigma = tensor(levels, dtype=torch.float64)
    alpha = (1 - sigma**2).sqrt()
    timestep = torch.arange(len(levels) - 1, dtype=torch.float64).flip(0)
    return maths.Schedule(timestep, alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], floor)


def flow(*times: float) -> maths.Schedule:
    """A flow-matching schedule through the given times."""
    sigma = tensor(times, dtype=torch.float64)
    return maths.Schedule(1000 * sigma[:-1], 1 - sigma[:-1], sigma[:-1], 1 - sigma[1:], sigma[1:])


class TestTransitions:
    def test_ddim_std_by_hand(self):
        # σ² .64 -> .36, α² .36 -> .64: std = (.6 / .8) √(1 - .36 / .64) = .75 · √.4375
        std = maths.ddim_std(schedule(0.8, 0.6), 1.0)
        assert std.tolist() == pytest.approx([0.75 * math.sqrt(0.4375)])
        assert maths.ddim_std(schedule(0.8, 0.6), 0.5).tolist() == pytest.approx([0.375 * math.sqrt(0.4375)])

    @pytest.mark.parametrize("steps", STEP_COUNTS)
    def test_ddim_std_at_eta_one_is_that_of_diffusers(self, steps):
        theirs, step = scheduler(), 1000 // steps
        theirs.set_timesteps(steps)
        expected = [theirs._get_variance(t, t - step).sqrt() for t in theirs.timesteps.tolist()]
        std = maths.ddim_std(ddim_schedule(theirs, steps), 1.0)
        torch.testing.assert_close(std.float(), torch.stack(expected), rtol=2e-5, atol=1e-7)

    @pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
    @pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("to_one", [False, True])
    def test_ddim_trajectory_is_that_of_diffusers(self, prediction, eta, to_one, generator):
        theirs = scheduler(to_one=to_one, prediction=prediction)
        theirs.set_timesteps(4)
        kernel = maths.kernel_for(ddim_schedule(theirs, 4), "ddim", eta)
        x_t = torch.randn(2, 4, 3, 3, generator=generator)
        for i, t in enumerate(theirs.timesteps.tolist()):
            output, noise = torch.randn(2, 2, 4, 3, 3, generator=generator)
            expected = theirs.step(output, t, x_t, eta=eta, variance_noise=noise)
            at = kernel.at(tensor([i, i]))
            x0 = maths.model_output_to_x0(output, x_t, at.alpha, at.sigma, prediction)
            x_t = maths.step_mean(x_t, x0, at) + at.std[:, None, None, None] * noise
            torch.testing.assert_close(x0, expected.pred_original_sample, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(x_t, expected.prev_sample, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("name", "levels"),
        [
            *((name, schedule(0.999, 0.8, 0.3, 0.0)) for name in ("cps", "ddim", "renoise")),
            ("renoise", flow(1.0, 0.75, 0.4, 0.0)),
            ("cps", flow(1.0, 0.75, 0.4, 0.0)),
        ],
    )
    @given(eta=ETA)
    def test_every_transition_keeps_the_level_and_is_quiet_at_the_clean_end(self, name, levels, eta):
        kernel = maths.kernel_for(levels, name, eta)
        spread = kernel.mean_eps**2 + kernel.std**2
        torch.testing.assert_close(spread, levels.sigma_next.float() ** 2, rtol=1e-5, atol=1e-7)
        assert torch.equal(kernel.mean_x0, levels.alpha_next.float())
        assert kernel.std[-1] == 0
        assert (kernel.std >= 0).all()

    @pytest.mark.parametrize("name", ["ddim", "cps"])
    def test_eta_zero_has_no_noise(self, name):
        assert not maths.kernel_for(schedule(0.999, 0.8, 0.3, 0.0), name, 0.0).std.any()

    def test_cps_runs_from_nothing_to_renoise_along_a_sine(self):
        levels = flow(1.0, 0.5, 0.2)
        assert maths.cps_std(levels, 1 / 3).tolist() == pytest.approx([0.25, 0.1])  # sin 30° = 1/2
        assert torch.equal(maths.cps_std(levels, 1.0), maths.renoise_std(levels, 1.0))

    def test_renoise_forgets_the_noise_it_came_from_whatever_eta(self):
        for eta in (0.0, 0.5, 1.0):
            kernel = maths.kernel_for(flow(1.0, 0.5, 0.0), "renoise", eta)
            assert kernel.std.tolist() == [0.5, 0.0]
            assert kernel.mean_eps.tolist() == [0.0, 0.0]

    @pytest.mark.parametrize("name", ["cps", "ddim", "renoise"])
    def test_a_step_of_the_true_clean_picture_lands_on_the_next_marginal(self, name, generator):
        # x_t = α x0 + σ ε with x0 = 2: whatever the transition, x_s has mean α_s · 2 and variance σ_s²
        kernel = maths.kernel_for(schedule(0.8, 0.6), name, 0.7)
        x0 = torch.full((1, 1, 400, 500), 2.0)
        at = kernel.at(tensor([0]))
        x_t = at.alpha * x0 + at.sigma * torch.randn(x0.shape, generator=generator)
        x_s = maths.step_mean(x_t, x0, at) + at.std * torch.randn(x0.shape, generator=generator)
        error = 5 / math.sqrt(x0.numel())  # five standard errors of the mean of unit normals
        assert float(x_s.mean()) == pytest.approx(0.8 * 2, abs=0.6 * error)
        assert float(x_s.var()) == pytest.approx(0.36, abs=0.36 * math.sqrt(2) * error)

    def test_sde_step_by_hand(self):
        # t = .5 -> s = .3, η = .6: g² = .36 · .5 / .5 = .36, std² = .36 · .2 = .072, m = .3 - .072 / (2 · .5)
        kernel = maths.kernel_for(flow(0.5, 0.3), "sde", 0.6)
        assert kernel.std.tolist() == pytest.approx([math.sqrt(0.072)])
        assert kernel.mean_eps.tolist() == pytest.approx([0.3 - 0.072])
        assert kernel.mean_x0.tolist() == pytest.approx([0.7])

    def test_sde_is_the_published_euler_maruyama_step(self, generator):
        # arXiv 2505.05470: x + (v + g² / 2t (x + (1 - t) v)) dt, written with velocity v = ε - x0 and dt = s - t
        levels, eta = flow(1.0, 0.75, 0.5, 0.2), 0.7
        kernel = maths.kernel_for(levels, "sde", eta)
        for i, (t, s) in enumerate([(1.0, 0.75), (0.75, 0.5), (0.5, 0.2)]):
            x, v = torch.randn(2, 1, 4, 3, 3, generator=generator)
            g2 = eta**2 * t / (1 - (0.75 if t == 1 else t))
            mean = x + (v + g2 / (2 * t) * (x + (1 - t) * v)) * (s - t)
            ours = maths.step_mean(x, x - t * v, kernel.at(tensor([i])))
            torch.testing.assert_close(ours, mean, rtol=1e-5, atol=1e-5)
            assert float(kernel.std[i]) == pytest.approx(math.sqrt(g2 * (t - s)))

    def test_sde_without_noise_is_the_deterministic_step(self):
        quiet, ddim = (maths.kernel_for(flow(1.0, 0.5, 0.2), name, 0.0) for name in ("sde", "ddim"))
        assert not quiet.std.any()
        assert torch.equal(quiet.mean_eps, ddim.mean_eps)

    def test_sde_of_a_diffusion_model_is_refused(self):
        with pytest.raises(
            UsageError, match=r"^rollout.transition: sde needs a flow-matching model; use ddim, renoise or cps"
        ):
            maths.kernel_for(schedule(0.9, 0.5), "sde", 0.7)

    def test_at_takes_rows_for_any_shape_of_steps(self):
        kernel = maths.kernel_for(flow(1.0, 0.5, 0.25), "renoise", 1.0)
        rows = kernel.at(tensor([[1, 0], [1, 1]]))
        assert len(kernel) == 2
        assert rows.std.tolist() == [[0.25, 0.5], [0.25, 0.25]]
        assert rows.timestep.tolist() == [[500.0, 1000.0], [500.0, 500.0]]
        assert torch.equal(rows.to(torch.device("cpu")).std, rows.std)


class TestFloor:
    @pytest.mark.parametrize("steps", STEP_COUNTS)
    def test_last_step_ends_at_the_least_noisy_level(self, steps):
        floored = maths.with_floor(ddim_schedule(scheduler(to_one=True), steps))
        assert torch.equal(floored.alpha_next, ddim_schedule(scheduler(to_one=False), steps).alpha_next)
        assert (maths.kernel_for(floored, "ddim", 1.0).std > 0).all()

    def test_only_the_last_level_changes_and_the_argument_does_not(self):
        given_schedule = schedule(0.9, 0.5, 0.0, floor=(0.8, 0.6))
        floored = maths.with_floor(given_schedule)
        assert floored.alpha_next.tolist() == pytest.approx([math.sqrt(0.75), 0.8])
        assert floored.sigma_next.tolist() == [0.5, 0.6]
        assert given_schedule.sigma_next.tolist() == [0.5, 0.0]
        assert torch.equal(floored.sigma, given_schedule.sigma)

    def test_no_floor_or_a_noisy_end_leaves_it_alone(self):
        for unchanged in (flow(1.0, 0.5, 0.0), schedule(0.9, 0.5, floor=(0.8, 0.6))):
            assert maths.with_floor(unchanged) is unchanged


class TestCleanEstimate:
    @given(x0=SMALL, noise=SMALL, sigma=st.floats(0.05, 0.95))
    def test_every_prediction_type_gives_back_the_clean_picture(self, x0, noise, sigma):
        alpha = math.sqrt(1 - sigma**2)
        clean, eps = torch.full((1, 1, 1, 1), x0), torch.full((1, 1, 1, 1), noise)
        x_t = alpha * clean + sigma * eps
        outputs = {"epsilon": eps, "v_prediction": alpha * eps - sigma * clean, "sample": clean}
        for prediction, output in outputs.items():
            estimate = maths.model_output_to_x0(output, x_t, tensor([alpha]), tensor([sigma]), prediction)
            torch.testing.assert_close(estimate, clean, rtol=1e-4, atol=1e-4)

    def test_levels_are_those_of_each_row(self):
        ones = torch.ones(2, 1, 1, 1)
        x0 = maths.model_output_to_x0(ones, 3 * ones, tensor([0.5, 0.8]), tensor([1.0, 0.6]), "epsilon")
        assert x0.flatten().tolist() == pytest.approx([4.0, 3.0])  # (3 - 1) / .5 and (3 - .6) / .8


class TestLogProbability:
    def test_is_the_mean_of_the_normal_log_density(self, generator):
        x, mean = torch.randn(2, 3, 2, 4, 5, 5, generator=generator)
        std = tensor([[0.1, 1.0], [2.0, 0.5], [1e-2, 3.0]])
        expected = torch.distributions.Normal(mean, std[..., None, None, None]).log_prob(x).mean(dim=(-3, -2, -1))
        torch.testing.assert_close(maths.gaussian_log_prob(x, mean, std), expected, rtol=1e-5, atol=1e-5)

    def test_by_hand(self):
        # one element at the mean, one a standard deviation off: -log 2 - ½ log 2π - ¼
        log_prob = maths.gaussian_log_prob(tensor([[[[1.0, 3.0]]]]), torch.ones(1, 1, 1, 2), tensor([2.0]))
        assert log_prob.item() == pytest.approx(-math.log(2) - 0.5 * math.log(2 * math.pi) - 0.25)


def along(angles: list[float]) -> Tensor:
    """Clean estimates [1, S, 1, 1, 2]: unit vectors at the given degrees, so that similarities are cosines."""
    radians = tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=-1)[None, :, None, None, :]


class TestDenseReward:
    def test_similarity_is_the_cosine_of_the_angle_whatever_the_length(self):
        x0 = along([0.0, 60.0, 90.0]) * tensor([1.0, 5.0, 0.1])[None, :, None, None, None]
        assert maths.cosine_similarities(x0, tensor([0]))[0].tolist() == pytest.approx([1, 0.5, 0], abs=1e-6)
        assert maths.cosine_similarities(x0, tensor([1]))[0].tolist() == pytest.approx([0.5, 1, math.cos(math.pi / 6)])

    def test_anchor_is_the_interior_step_least_like_both_ends(self):
        to_first, to_last = tensor([[1.0, 0.9, 0.2, 0.5, 0.1]]), tensor([[0.1, 0.4, 0.3, 0.9, 1.0]])
        assert maths.anchor_step(to_first, to_last, "interior").tolist() == [2]

    def test_an_endpoint_may_win_only_under_any(self):
        to_first, to_last = tensor([[1.0, 0.9, 0.8, -0.9]]), tensor([[-0.9, 0.2, 0.1, 1.0]])
        assert maths.anchor_step(to_first, to_last, "any").tolist() == [0]
        assert maths.anchor_step(to_first, to_last, "any", first=1).tolist() == [3]
        assert maths.anchor_step(to_first, to_last, "interior").tolist() == [2]

    def test_the_earliest_of_equals_is_the_anchor(self):
        flat = torch.ones(2, 5)
        assert maths.anchor_step(flat, flat, "interior").tolist() == [1, 1]
        assert maths.anchor_step(flat, flat, "any").tolist() == [0, 0]

    @pytest.mark.parametrize(
        ("steps", "first", "interior"),
        [(1, 0, 0), (2, 0, 1), (3, 0, 1), (2, 1, 1), (3, 1, 2), (4, 1, 2)],
    )
    def test_short_trajectories_have_the_only_interior_step_or_the_last(self, steps, first, interior):
        assert maths.key_steps(along([10.0 * i for i in range(steps)]), "interior", first).tolist() == [
            [first, steps - 1, interior]
        ]

    @given(
        angles=st.lists(st.floats(0, 350), min_size=1, max_size=8),
        rule=st.sampled_from(["interior", "any"]),
        first=st.integers(0, 1),
    )
    def test_key_steps_lie_between_the_first_needed_and_the_last(self, angles, rule, first):
        first = min(first, len(angles) - 1)
        start, last, anchor = maths.key_steps(along(angles), rule, first)[0].tolist()
        assert (start, last) == (first, len(angles) - 1)
        assert first <= anchor <= last
        if rule == "interior" and last - first >= 2:
            assert first < anchor < last

    def test_anchor_counts_from_the_first_needed_step(self):
        # the ends are 90° and 0°; of the steps between, 45° (s = √2) and 80° (s = 1.16): 80° is the less like both
        x0 = along([300.0, 90.0, 45.0, 80.0, 0.0])
        assert maths.key_steps(x0, "interior", first=1).tolist() == [[1, 4, 3]]

    def test_prediction_is_the_average_weighted_by_similarity(self):
        similarity = tensor([[[1.0, 0.5], [0.25, 0.5], [0.25, 1.0]]])
        dense = maths.predict_dense_rewards(similarity, tensor([[2.0, 4.0, 8.0]]))
        assert dense[0].tolist() == pytest.approx([(2 + 1 + 2) / 1.5, (1 + 2 + 8) / 2])

    @given(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), SMALL)
    def test_equal_rewards_stay_what_they_are(self, similarity, reward):
        dense = maths.predict_dense_rewards(tensor(similarity)[None, :, None], torch.full((1, 3), reward))
        assert dense.item() == pytest.approx(reward, abs=1e-5)

    def test_true_rewards_replace_predictions_and_the_later_of_equal_steps_counts(self):
        dense = torch.zeros(2, 4)
        steps = tensor([[0, 3, 1], [0, 3, 3]])
        written = maths.write_true_rewards(dense, steps, tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
        assert written.tolist() == [[1, 3, 0, 2], [4, 0, 0, 6]]
        assert not dense.any()


class TestReturns:
    def test_credit_of_the_current_step_is_its_own_reward(self):
        reward = tensor([[1.0, 2.0, 4.0]])
        assert maths.align_credit(reward, "current").tolist() == [[1, 2, 4]]

    def test_credit_of_the_next_step_leaves_the_last_action_without(self):
        assert maths.align_credit(tensor([[1.0, 2.0, 4.0]]), "next").tolist() == [[2, 4, 0]]
        assert maths.align_credit(tensor([[7.0]]), "next").tolist() == [[0]]

    def test_a_gain_is_over_the_estimate_that_the_action_starts_from(self):
        assert maths.align_credit(tensor([[9.0, 2.0, 4.0, 3.0]]), "gain").tolist() == [[2, 2, -1, 0]]
        assert maths.align_credit(tensor([[9.0, 2.0]]), "gain").tolist() == [[2, 0]]
        assert maths.align_credit(tensor([[7.0]]), "gain").tolist() == [[0]]

    @given(st.lists(SMALL, min_size=2, max_size=8))
    def test_undiscounted_gains_add_up_to_what_is_still_to_come(self, reward):
        returns = maths.discounted_returns(maths.align_credit(tensor(reward), "gain"), 1.0)
        to_come = [reward[-1] - before for before in (0.0, *reward[1:-1])]
        torch.testing.assert_close(returns[:-1], tensor(to_come), rtol=0, atol=1e-3)

    @given(st.lists(SMALL, min_size=3, max_size=8), st.floats(0, 1), SMALL)
    def test_what_all_rewards_have_in_common_is_no_gain(self, reward, gamma, common):
        both = tensor([reward, [one + common for one in reward]])
        returns = maths.discounted_returns(maths.align_credit(both, "gain"), gamma)
        torch.testing.assert_close(returns[0, 1:], returns[1, 1:], rtol=0, atol=1e-3)

    def test_a_trajectory_credits_its_actions_alike(self):
        reward = tensor([[9.0, 1.0, 2.0, 4.0]])
        assert maths.credited_returns(reward, "trajectory", 0.5).tolist() == [[3, 3, 3, 3]]
        assert maths.credited_returns(reward, "next", 0.5).tolist() == [[3, 4, 4, 0]]

    @pytest.mark.parametrize(("gamma", "expected"), [(0.0, [1, 2, 4]), (0.5, [3, 4, 4]), (1.0, [7, 6, 4])])
    def test_returns_by_hand(self, gamma, expected):
        reward = tensor([[1.0, 2.0, 4.0]])
        assert maths.discounted_returns(reward, gamma).tolist() == [expected]
        assert reward.tolist() == [[1, 2, 4]]

    @given(st.lists(SMALL, min_size=2, max_size=8), st.floats(0, 1))
    def test_each_return_is_its_reward_plus_the_discounted_next(self, reward, gamma):
        returns = maths.discounted_returns(tensor([reward]), gamma)[0]
        torch.testing.assert_close(returns[:-1], tensor(reward)[:-1] + gamma * returns[1:], rtol=1e-4, atol=1e-4)


class TestAdvantages:
    def test_below_min_count_the_batch_stands_in(self):
        statistics = maths.StepStatistics(size=8, min_count=3)
        returns = tensor([[1.0], [3.0], [5.0]])
        advantages, after = maths.stepwise_advantages(statistics, ["cat", "cat", "dog"], returns)
        # the batch has mean 3 and population variance 8/3
        assert advantages[:, 0].tolist() == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)], abs=1e-5)
        assert {prompt: len(rows) for prompt, rows in after.returns.items()} == {"cat": 2, "dog": 1}

    def test_at_min_count_a_prompt_has_its_own_statistics_the_new_returns_included(self):
        statistics = maths.StepStatistics(size=8, min_count=3, returns={"cat": tensor([[0.0]])})
        advantages, _ = maths.stepwise_advantages(statistics, ["cat", "cat", "dog"], tensor([[3.0], [6.0], [9.0]]))
        # cat: 0, 3, 6, mean 3, variance 6; dog: the batch 3, 6, 9
        assert advantages[:, 0].tolist() == pytest.approx([0, math.sqrt(1.5), math.sqrt(1.5)], abs=1e-5)

    def test_the_oldest_returns_leave_first(self):
        statistics = maths.StepStatistics(size=3, min_count=1)
        for value in (1.0, 2.0, 3.0, 4.0):
            _, statistics = maths.stepwise_advantages(statistics, ["cat"], tensor([[value]]))
        assert statistics.returns["cat"].flatten().tolist() == [2, 3, 4]
        _, statistics = maths.stepwise_advantages(statistics, ["cat"] * 4, tensor([[5.0], [6.0], [7.0], [8.0]]))
        assert statistics.returns["cat"].flatten().tolist() == [6, 7, 8]

    def test_each_step_has_its_own_statistics(self):
        returns = tensor([[0.0, 100.0], [2.0, 300.0]])
        advantages, _ = maths.stepwise_advantages(maths.StepStatistics(min_count=1), ["cat", "cat"], returns)
        torch.testing.assert_close(advantages, tensor([[-1.0, -1.0], [1.0, 1.0]]))

    def test_a_return_without_spread_has_advantage_zero(self):
        advantages, _ = maths.stepwise_advantages(maths.StepStatistics(min_count=1), ["cat"] * 2, torch.ones(2, 3))
        assert torch.equal(advantages, torch.zeros(2, 3))

    def test_the_statistics_given_are_left_as_they_were(self):
        statistics = maths.StepStatistics(returns={"cat": tensor([[1.0]])})
        maths.stepwise_advantages(statistics, ["cat", "dog"], tensor([[2.0], [3.0]]))
        assert {prompt: rows.tolist() for prompt, rows in statistics.returns.items()} == {"cat": [[1]]}

    @given(st.permutations(range(6)), st.integers(1, 4))
    def test_the_order_of_prompts_does_not_matter(self, order, min_count):
        prompts, returns = ["cat", "dog", "cat", "bat", "dog", "cat"], torch.arange(12.0).view(6, 2) ** 2
        statistics = maths.StepStatistics(min_count=min_count)
        expected, _ = maths.stepwise_advantages(statistics, prompts, returns)
        shuffled, _ = maths.stepwise_advantages(statistics, [prompts[i] for i in order], returns[order])
        torch.testing.assert_close(shuffled, expected[order])

    def test_clipping_holds_both_sides(self):
        assert maths.clip_advantages(tensor([[-7.0, -5.0, 0.5, 9.0]]), 5.0).tolist() == [[-5, -5, 0.5, 5]]


def loss(ratio: list[float], advantage: list[float], clip: float | None, weight: float = 1.0) -> maths.PairLoss:
    """The loss of one pair whose log-ratios are `ratio`."""
    old = tensor([[-1.0], [-2.0]])
    new = old + tensor(ratio)[:, None]
    return maths.reward_difference_loss(new, old, tensor(advantage)[:, None], tensor([weight]), clip)


def gradient(ratio: list[float], advantage: list[float], clip: float | None) -> list[float]:
    new = tensor(ratio)[:, None].requires_grad_()
    old = torch.zeros(2, 1)
    value = maths.reward_difference_loss(new, old, tensor(advantage)[:, None], torch.ones(1), clip).loss.sum()
    return torch.autograd.grad(value, new)[0].flatten().tolist()


class TestLoss:
    def test_weight_of_the_noisiest_step_is_one_over_eta_scale(self):
        assert maths.importance_weight(tensor([0, 1, 2]), 0.5).tolist() == [1, 0.5, 0.25]
        assert maths.importance_weight(tensor([[0], [2]]), 0.5, 4.0).tolist() == [[0.25], [0.0625]]

    def test_without_clipping_by_hand(self):
        result = loss([0.5, 0.25], [2.0, 1.0], None, weight=2.0)  # (2 · 0.25 - 1)²
        assert result.loss.item() == pytest.approx(0.25)
        assert result.ratio_difference.item() == pytest.approx(0.25)
        assert result.clipped.item() == 0

    def test_each_rollout_is_clipped_before_the_difference(self):
        # free (0.5 + 0.5 - 1)² = 0; held at ±0.1: (0.2 - 1)²
        result = loss([0.5, -0.5], [1.0, 0.0], 0.1)
        assert result.loss.item() == pytest.approx(0.64)
        assert result.ratio_difference.item() == pytest.approx(1.0)
        assert result.clipped.item() == 1
        # both far on the same side: the held difference is 0, not 0.1
        assert loss([0.9, 0.5], [0.4, 0.0], 0.1).loss.item() == pytest.approx(0.16)

    def test_the_worse_of_free_and_clipped_counts(self):
        # moving the wrong way is not excused by the clip: free (-1 - 1)² beats held (-0.2 - 1)²
        result = loss([-0.5, 0.5], [1.0, 0.0], 0.1)
        assert result.loss.item() == pytest.approx(4.0)
        assert result.clipped.item() == 0

    @given(st.lists(SMALL, min_size=2, max_size=2), st.lists(SMALL, min_size=2, max_size=2))
    def test_a_clip_out_of_reach_is_none_and_swapping_the_rollouts_changes_nothing(self, ratio, advantage):
        free = loss(ratio, advantage, None).loss.item()
        assert loss(ratio, advantage, 1e3).loss.item() == free
        assert loss(ratio[::-1], advantage[::-1], None).loss.item() == pytest.approx(free, rel=1e-3, abs=1e-5)
        assert loss(ratio, advantage, 0.1).loss.item() >= free

    def test_descent_raises_the_better_rollout_and_lowers_the_other(self):
        # at ratio 0: d(Δρ - ΔA)² = -2 ΔA for the first, +2 ΔA for the second
        assert gradient([0.0, 0.0], [3.0, 1.0], 1e-4) == pytest.approx([-4, 4])
        assert gradient([0.0, 0.0], [1.0, 3.0], 1e-4) == pytest.approx([4, -4])

    def test_a_held_rollout_gets_no_gradient(self):
        assert gradient([0.5, -0.5], [1.0, 0.0], 0.1) == [0, 0]
        assert gradient([0.5, 0.0], [1.0, 0.0], 0.1) == pytest.approx([0, 1.8])  # 2 (0.1 - 1), the second's sign turned

    def test_the_numbers_for_the_log_carry_no_gradient(self):
        new = torch.zeros(2, 1, requires_grad=True)
        result = maths.reward_difference_loss(new, torch.zeros(2, 1), tensor([[1.0], [0.0]]), torch.ones(1), None)
        assert result.loss.requires_grad
        assert not result.ratio_difference.requires_grad
        assert not result.clipped.requires_grad


def path(*places: float) -> torch.Tensor:
    """Clean estimates on a line, at the given places, [S 1 1 1]."""
    return torch.tensor(places, dtype=torch.float32).view(-1, 1, 1, 1)


def test_interpolation_follows_the_length_of_the_path_not_the_number_of_steps() -> None:
    # Queried at 0, 3, 2 (in the order of key_steps) with rewards 0, 8, 6; step 1 lies a quarter of the way to step 2.
    dense = maths.interpolate_along_arc(path(0, 1, 4, 5), torch.tensor([0, 3, 2]), torch.tensor([0.0, 8.0, 6.0]))
    torch.testing.assert_close(dense, torch.tensor([0.0, 1.5, 6.0, 8.0]))


def test_interpolation_beyond_the_queried_steps_keeps_their_reward() -> None:
    dense = maths.interpolate_along_arc(path(0, 1, 4, 5), torch.tensor([1, 2, 2]), torch.tensor([3.0, 7.0, 7.0]))
    torch.testing.assert_close(dense, torch.tensor([3.0, 3.0, 7.0, 7.0]))
    alone = maths.interpolate_along_arc(path(0, 1, 4), torch.tensor([2]), torch.tensor([5.0]))
    torch.testing.assert_close(alone, torch.tensor([5.0, 5.0, 5.0]))


def test_interpolation_on_a_path_that_stands_still_is_finite() -> None:
    dense = maths.interpolate_along_arc(path(2, 2, 2), torch.tensor([0, 2]), torch.tensor([1.0, 3.0]))
    assert dense.isfinite().all()


def test_sharpened_weights_by_hand() -> None:
    # Softmax of 0.9 / 0.1 and 0.8 / 0.1: weights e / (1 + e) and 1 / (1 + e).
    dense = maths.predict_sharpened_rewards(torch.tensor([[0.9], [0.8]]), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(dense, torch.tensor([math.e / (1 + math.e)]))


@pytest.mark.parametrize(("first", "expected"), [(0, 2), (1, 3)])
def test_the_middle_anchor_is_halfway_whatever_the_similarities(first: int, expected: int) -> None:
    similar = torch.tensor([1.0, -1.0, 0.5, 0.9, 1.0, 1.0])
    assert maths.anchor_step(similar, similar, "middle", first).item() == expected


def test_unlikeness_of_vectors_by_hand():
    # cosines of the three pairs: 0, 1 and 0, whatever the lengths; and two opposite ones
    assert maths.mean_unlikeness(tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])).item() == pytest.approx(2 / 3)
    assert maths.mean_unlikeness(tensor([[[1.0, 1.0], [-2.0, -2.0]], [[1.0, 0.0], [5.0, 0.0]]])).tolist() == [2, 0]
