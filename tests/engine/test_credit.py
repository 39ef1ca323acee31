"""Which rewards are asked for, and what becomes of them."""

import pytest
import tiny
import torch

from sdpo_cli.api.tensors import LearningPlan, ScoreRequest, ScoreResult
from sdpo_cli.engine.learning.credit import (
    ask_rewards,
    assign_credit,
    dense_rewards,
    distinct_queries,
    key_rewards,
)
from sdpo_cli.engine.learning.rollout import action_steps, roll_out
from sdpo_cli.engine.rewards.scorer import Scorer
from sdpo_cli.engine.rewards.scoring import LoadedReward
from sdpo_cli.errors import PluginError
from sdpo_cli.maths import StepStatistics, kernel_for, with_floor

REWARD = (LoadedReward("brightness", "1", 1.0, tiny.Brightness()),)


def rolled(checkpoint, plan: LearningPlan, steps: int = 4, *, floor: bool = True):
    model = tiny.load(checkpoint)
    schedule = model.schedule(steps)
    kernel = kernel_for(with_floor(schedule) if floor else schedule, "ddim", 1.0)
    return model, roll_out(model, kernel, tiny.draw(model), plan, 0, 5)


def score_rollouts(model, rewards, rollouts, plan, batch):
    with Scorer(rewards) as scorer:
        return key_rewards(scorer, [ask_rewards(model, scorer, rollouts, plan, batch)])


@pytest.mark.parametrize(
    ("plan", "steps", "queries_a_pair"),
    [
        (LearningPlan(credit="current"), 4, 5),
        (LearningPlan(credit="next"), 4, 6),
        (LearningPlan(credit="next"), 3, 4),
        (LearningPlan(credit="next"), 2, 2),
        (LearningPlan(credit="current"), 2, 3),
        (LearningPlan(credit="current", dense="exact"), 4, 7),
        (LearningPlan(credit="next", dense="exact"), 4, 6),
        (LearningPlan(credit="gain", dense="exact"), 4, 6),
        (LearningPlan(dense="final"), 4, 2),
        (LearningPlan(credit="current", shared_noise=False), 4, 6),
    ],
)
def test_reward_queries_of_a_pair(checkpoint, plan, steps, queries_a_pair):
    model, rollouts = rolled(checkpoint, plan, steps)
    asked = []

    class Counting(tiny.Brightness):
        def score(self, request: ScoreRequest) -> ScoreResult:
            asked.append(len(request.images))
            return super().score(request)

    scored = score_rollouts(model, (LoadedReward("counting", "1", 1.0, Counting()),), rollouts, plan, 3)
    assert scored.queries == sum(asked) == 5 * queries_a_pair
    assert max(asked) <= 3


@pytest.mark.parametrize("credit", ["current", "next"])
@pytest.mark.parametrize("dense", ["anchors", "exact"])
def test_key_rewards_are_those_of_the_decoded_estimates(checkpoint, credit, dense):
    plan = LearningPlan(credit=credit, dense=dense)
    model, rollouts = rolled(checkpoint, plan)
    scored = score_rollouts(model, REWARD, rollouts, plan, 4)
    rewards = dense_rewards(rollouts, scored, plan)
    truth = torch.stack([model.decode(rollouts.x0[:, :, step].flatten(0, 1)).mean((1, 2, 3)) for step in range(4)], -1)
    truth = truth.view(2, 5, 4)
    torch.testing.assert_close(rewards.gather(-1, scored.key_step), truth.gather(-1, scored.key_step))
    first = 1 if credit == "next" else 0
    torch.testing.assert_close(rewards[..., [first, -1]], truth[..., [first, -1]])
    assert float(scored.reward[..., scored.last].mean()) == pytest.approx(float(truth[..., -1].mean()), abs=1e-6)
    if dense == "exact":
        torch.testing.assert_close(rewards[..., first:], truth[..., first:])


def test_final_mode_gives_every_step_the_last_reward(checkpoint):
    plan = LearningPlan(dense="final")
    model, rollouts = rolled(checkpoint, plan)
    scored = score_rollouts(model, REWARD, rollouts, plan, 10)
    rewards = dense_rewards(rollouts, scored, plan)
    torch.testing.assert_close(rewards, rewards[..., -1:].expand_as(rewards))
    torch.testing.assert_close(
        rewards[..., 0], model.decode(rollouts.x0[:, :, -1].flatten(0, 1)).mean((1, 2, 3)).view(2, 5)
    )


def test_a_query_named_twice_is_asked_once():
    steps = torch.tensor([[[0, 3, 3]], [[0, 3, 1]]])
    for common, expected in (
        (0, [[[True, False, False, True]], [[True, True, False, True]]]),
        (1, [[[True, False, False, True]], [[False, True, False, True]]]),
        (2, [[[True, True, False, True]], [[False, False, False, True]]]),
    ):
        assert distinct_queries(steps, 4, torch.tensor([common])).tolist() == expected


def test_branched_rollouts_have_one_reward_where_they_are_one(checkpoint):
    plan = LearningPlan(dense="exact", branched=True)
    model, rollouts = rolled(checkpoint, plan)
    scored = score_rollouts(model, REWARD, rollouts, plan, 3)
    assert scored.queries == int((6 - 2 * (rollouts.common - 1) + (rollouts.common - 1)).sum())
    rewards = dense_rewards(rollouts, scored, plan)[:, :, 1:]
    pictures = model.decode(rollouts.x0[:, :, 1:].flatten(0, 2)).mean((1, 2, 3)).view(2, 5, 3)
    torch.testing.assert_close(rewards, pictures)


def test_actions_that_earn_nothing_or_have_no_density_are_left_out(checkpoint, tmp_path):
    _, rollouts = rolled(checkpoint, LearningPlan())
    assert action_steps(rollouts.kernel, LearningPlan(credit="next")) == [0, 1, 2]
    assert action_steps(rollouts.kernel, LearningPlan(credit="current")) == [0, 1, 2, 3]
    clean_end = tiny.save_pipeline(tmp_path / "clean", set_alpha_to_one=True)
    _, rollouts = rolled(clean_end, LearningPlan(), floor=False)
    assert action_steps(rollouts.kernel, LearningPlan(credit="current")) == [0, 1, 2]
    assert bool(rollouts.log_prob.isfinite().all())


def test_advantages_credit_the_action_with_the_next_estimates_reward(checkpoint):
    plan = LearningPlan(credit="next", gamma=0.0, dense="exact", advantage_clip=100.0)
    model, rollouts = rolled(checkpoint, plan)
    scored = score_rollouts(model, REWARD, rollouts, plan, 10)
    credited = assign_credit(rollouts, scored, plan, StepStatistics())
    reward = dense_rewards(rollouts, scored, plan)[..., 1:].flatten(0, 1)
    expected = (reward - reward.mean(0)) / (reward.std(0, correction=0) + 1e-6)
    torch.testing.assert_close(credited.advantage.flatten(0, 1)[:, :3], expected, rtol=1e-3, atol=1e-3)
    assert set(credited.statistics.returns) == {prompt.text for prompt in tiny.PROMPTS}
    assert all(returns.shape == (2, 4) for returns in credited.statistics.returns.values())


def test_a_gain_leaves_out_what_earlier_actions_did(checkpoint):
    plan = LearningPlan(credit="gain", gamma=1.0, dense="exact", advantage_clip=100.0)
    model, rollouts = rolled(checkpoint, plan)
    scored = score_rollouts(model, REWARD, rollouts, plan, 10)
    credited = assign_credit(rollouts, scored, plan, StepStatistics())
    reward = dense_rewards(rollouts, scored, plan).flatten(0, 1)
    gained = torch.stack([reward[:, 3], reward[:, 3] - reward[:, 1], reward[:, 3] - reward[:, 2]], -1)
    expected = (gained - gained.mean(0)) / (gained.std(0, correction=0) + 1e-6)
    torch.testing.assert_close(credited.advantage.flatten(0, 1)[:, :3], expected, rtol=1e-3, atol=1e-3)


def test_a_trajectory_s_actions_all_have_the_first_one_s_advantage(checkpoint):
    by_step, by_trajectory = (
        LearningPlan(credit=credit, gamma=0.5, dense="exact", advantage_clip=100.0) for credit in ("next", "trajectory")
    )
    model, rollouts = rolled(checkpoint, by_step)
    scored = score_rollouts(model, REWARD, rollouts, by_step, 10)
    first = assign_credit(rollouts, scored, by_step, StepStatistics()).advantage[..., :1]
    alike = assign_credit(rollouts, scored, by_trajectory, StepStatistics()).advantage
    torch.testing.assert_close(alike, first.expand_as(alike), rtol=0, atol=0)


def test_a_reward_that_is_not_finite_stops_with_its_name(checkpoint):
    plan = LearningPlan()
    model, rollouts = rolled(checkpoint, plan)

    class Broken:
        def score(self, request: ScoreRequest) -> ScoreResult:
            return ScoreResult(torch.full((len(request.images),), torch.nan))

    with pytest.raises(PluginError) as fault:
        score_rollouts(model, (LoadedReward("broken", "1", 1.0, Broken()),), rollouts, plan, 4)
    assert str(fault.value) == (
        "reward broken: values are not finite: nan for picture 0, 4 of 4 in all "
        "(4 pictures, the first of 'cat'); a reward must give finite numbers"
    )
