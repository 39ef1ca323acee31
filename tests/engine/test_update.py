"""Step-shuffled updates: what is updated when, and what an update does to the weights."""

from dataclasses import replace
from itertools import pairwise

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import AdapterOptions, LearningPlan
from sdpo_cli.builtin.models import load_checkpoint
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.builtin.objectives.options import RebelOptions, SdpoOptions
from sdpo_cli.builtin.objectives.sdpo import Sdpo
from sdpo_cli.builtin.objectives.trajectory_difference import TrajectoryDifference
from sdpo_cli.engine.learning import reference
from sdpo_cli.engine.learning.reference import (
    LOGGED,
    base_estimates,
    compared_with_base,
    kl_from_base,
    logged_places,
    places_of,
    with_reference,
)
from sdpo_cli.engine.learning.rollout import roll_out
from sdpo_cli.engine.learning.update import (
    Lesson,
    NonFiniteError,
    Update,
    attempt_update,
    plan_updates,
    replay,
    update_policy,
)
from sdpo_cli.errors import TrainingError
from sdpo_cli.maths import kernel_for, with_floor

ACTIONS = [0, 1, 2]


@pytest.fixture
def model(checkpoint):
    return tiny.with_random_adapter(tiny.load(checkpoint))


@pytest.fixture
def rollouts(model):
    kernel = kernel_for(with_floor(model.schedule(4)), "ddim", 1.0)
    return roll_out(model, kernel, tiny.draw(model), LearningPlan(), 0, 5)


@pytest.fixture
def advantage():
    return torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))


def weights(model):
    return torch.cat([parameter.detach().flatten().clone() for parameter in model.trainable().values()])


def optimizer(model):
    return torch.optim.SGD(list(model.trainable().values()), lr=1.0)


def lesson(rollouts, advantage, objective=None, max_grad_norm=1e9, kl=0.0):
    return Lesson(objective or Sdpo(SdpoOptions()), rollouts, advantage, kl, max_grad_norm)


@pytest.mark.parametrize("batch", [2, 5])
def test_every_action_of_every_pair_is_taken_once_in_an_order_of_its_own(rollouts, batch):
    updates = plan_updates(rollouts, ACTIONS, LearningPlan(), batch=batch, seed=0, epoch=1)
    assert len(updates) == 3 * -(-5 // batch)
    taken = [(int(p), int(s)) for one in updates for p, s in zip(one.pairs, one.step, strict=True)]
    assert sorted(taken) == [(pair, step) for pair in range(5) for step in ACTIONS]
    orders = {pair: [step for other, step in taken if other == pair] for pair in range(5)}
    assert len({tuple(order) for order in orders.values()}) > 1


@pytest.mark.parametrize("updates", ["shuffled", "accumulated", "trajectory"])
def test_of_branched_rollouts_the_branch_alone_is_taken(model, updates):
    plan = LearningPlan(branched=True, updates=updates)
    kernel = kernel_for(with_floor(model.schedule(4)), "ddim", 1.0)
    rollouts = roll_out(model, kernel, tiny.draw(model), plan, 0, 5)
    made = plan_updates(rollouts, ACTIONS, plan, batch=3, seed=0, epoch=1)
    assert [len(one.pairs) for one in made] == [3, 2]
    taken = [(int(p), s.tolist()) for one in made for p, s in zip(one.pairs, one.step, strict=True)]
    branch = [[step] if updates == "trajectory" else step for step in (rollouts.common - 1).tolist()]
    assert sorted(taken) == list(enumerate(branch))


def test_shuffles_follow_the_seed_and_the_epoch(rollouts):
    def plan(seed, epoch):
        return [
            (one.pairs.tolist(), one.step.tolist())
            for one in plan_updates(rollouts, ACTIONS, LearningPlan(), batch=2, seed=seed, epoch=epoch)
        ]

    assert plan(0, 1) == plan(0, 1)
    assert plan(0, 1) != plan(0, 2)
    assert plan(0, 1) != plan(1, 1)


def moved(model, rollouts, advantage, micro_batch):
    before = weights(model)
    update = plan_updates(rollouts, ACTIONS, LearningPlan(), batch=5, seed=0, epoch=1)[0]
    objective = Sdpo(SdpoOptions(clip=0.0))
    metrics = attempt_update(model, optimizer(model), lesson(rollouts, advantage, objective), update, micro_batch)
    step = weights(model) - before
    with torch.no_grad():
        start = 0
        for parameter in model.trainable().values():
            parameter.copy_(before[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
    return step, metrics


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_micro_batches_add_up_to_the_whole_gradient(model, rollouts, advantage, micro_batch):
    whole, whole_metrics = moved(model, rollouts, advantage, 5)
    parts, part_metrics = moved(model, rollouts, advantage, micro_batch)
    assert float(whole.norm()) > 1e-4
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-6)
    assert float(part_metrics["loss"]) == pytest.approx(float(whole_metrics["loss"]), rel=1e-4)


def test_the_gradient_is_that_of_the_pairwise_policy_gradient(model, rollouts, advantage):
    """At ratio 1, dL/dθ = -2 mean w ΔA d(Δρ)/dθ: the loss written out by hand."""
    step, _ = moved(model, rollouts, advantage, 5)
    update = plan_updates(rollouts, ACTIONS, LearningPlan(), batch=5, seed=0, epoch=1)[0]
    log_prob = replay(model, rollouts, update.pairs, update.step).log_prob
    chosen = advantage[:, update.pairs, update.step]
    weight = 0.99 ** update.step.float()
    surrogate = (-2 * weight * (chosen[0] - chosen[1]) * (log_prob[0] - log_prob[1])).mean()
    gradient = torch.autograd.grad(surrogate, list(model.trainable().values()))
    torch.testing.assert_close(step, -torch.cat([one.flatten() for one in gradient]), rtol=1e-2, atol=1e-5)


class FormatsMade(TorchDispatchMode):
    """Remembers the number formats of all tensors that are made; some devices, such as Apple's, have no float64."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.seen |= {one.dtype for one in tree_leaves(made) if isinstance(one, torch.Tensor)}
        return made


def test_rollout_and_update_make_no_float64_on_the_device(model, advantage):
    kernel = kernel_for(with_floor(model.schedule(4)), "ddim", 1.0)
    with FormatsMade() as formats:
        rollouts = roll_out(model, kernel, tiny.draw(model), LearningPlan(), 0, 5)
        updates = plan_updates(rollouts, ACTIONS, LearningPlan(), batch=5, seed=0, epoch=1)
        update_policy(model, torch.optim.AdamW(model.trainable().values()), lesson(rollouts, advantage), updates, 2)
    assert torch.float32 in formats.seen
    assert torch.float64 not in formats.seen


def test_the_gradient_is_scaled_to_its_longest_norm(model, rollouts, advantage):
    before = weights(model)
    update = plan_updates(rollouts, ACTIONS, LearningPlan(), batch=5, seed=0, epoch=1)[0]
    metrics = attempt_update(model, optimizer(model), lesson(rollouts, advantage, max_grad_norm=1e-3), update, 5)
    assert metrics["grad_norm"] > 1e-3
    assert float((weights(model) - before).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_the_first_update_that_is_not_finite_is_named(model, rollouts, advantage):
    """The updates after it are not finite either: they start from its weights."""
    advantage[0, 1, 1] = torch.nan
    updates = [Update(torch.arange(5), torch.full((5,), step)) for step in (0, 1, 2)]
    with pytest.raises(NonFiniteError) as fault:
        update_policy(model, optimizer(model), lesson(rollouts, advantage, max_grad_norm=1.0), updates, 5)
    assert str(fault.value) == (
        "update of steps [1]: loss is nan, grad_norm is nan; the epoch is undone; "
        "lower train.learning_rate, or use model.dtype float32"
    )
    assert fault.value.update is updates[1]


@pytest.mark.parametrize("batch", [2, 5])
def test_numbers_are_fetched_once_for_all_updates(model, rollouts, advantage, monkeypatch, batch):
    """On a GPU each time would be a wait for the device."""
    updates = plan_updates(rollouts, ACTIONS, LearningPlan(), batch=batch, seed=0, epoch=1)
    fetches = []

    def watched(name, fetch):
        return lambda one: (fetches.append(name), fetch(one))[1]

    for name in ("tolist", "item", "cpu", "numpy", "__float__", "__int__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
    found, _ = update_policy(model, optimizer(model), lesson(rollouts, advantage), updates, 2)
    assert fetches == ["tolist"]
    assert set(found) == {"loss", "clip_fraction", "ratio_difference", "grad_norm", "ratio_max"}


def test_out_of_memory_halves_the_micro_batch_and_loses_no_update(model, rollouts, advantage, monkeypatch):
    denoise = model.denoise

    def small(x_t, at, conditioning):
        if len(x_t) > 4:
            raise torch.OutOfMemoryError("more than the card has")
        return denoise(x_t, at, conditioning)

    updates = plan_updates(rollouts, ACTIONS, LearningPlan(), batch=5, seed=0, epoch=1)[:1]
    expected, _ = moved(model, rollouts, advantage, 2)
    monkeypatch.setattr(model, "denoise", small)
    before = weights(model)
    _, micro_batch = update_policy(
        model, optimizer(model), lesson(rollouts, advantage, Sdpo(SdpoOptions(clip=0.0))), updates, 5
    )
    assert micro_batch == 2
    torch.testing.assert_close(weights(model) - before, expected, rtol=1e-3, atol=1e-6)


def test_a_pair_that_does_not_fit_at_all_is_said_in_one_line(model, rollouts, advantage, monkeypatch):
    def none(*arguments):
        raise torch.OutOfMemoryError("more than the card has")

    updates = plan_updates(rollouts, ACTIONS, LearningPlan(), batch=5, seed=0, epoch=1)
    monkeypatch.setattr(model, "denoise", none)
    with pytest.raises(TrainingError) as fault:
        update_policy(model, optimizer(model), lesson(rollouts, advantage, max_grad_norm=1.0), updates, 5)
    assert str(fault.value) == (
        "one pair does not fit into the device's memory; "
        "use model.options.gradient_checkpointing, model.dtype bfloat16, smaller pictures or a smaller model"
    )


def gradient(folder, dtype):
    """The adapter's gradient of one update from small advantages: as small as large latents and batches make it."""
    model = tiny.with_random_adapter(load_checkpoint(UNetOptions(path=str(folder)), LoadContext(dtype=dtype)))
    kernel = kernel_for(with_floor(model.schedule(4)), "ddim", 1.0)
    rollouts = roll_out(model, kernel, tiny.draw(model), LearningPlan(), 0, 5)
    advantage = 1e-3 * torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))
    (update,) = plan_updates(rollouts, [0], LearningPlan(), batch=5, seed=0, epoch=1)
    attempt_update(model, optimizer(model), lesson(rollouts, advantage), update, 5)
    return torch.cat([weight.grad.flatten() for weight in model.trainable().values()])


def test_a_small_gradient_survives_float16(checkpoint):
    exact, half = gradient(checkpoint, "float32"), gradient(checkpoint, "float16")
    assert float((half - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize("batch", [2, 5])
def test_accumulated_updates_take_all_actions_of_a_batch_at_once(rollouts, batch):
    updates = plan_updates(rollouts, ACTIONS, LearningPlan(updates="accumulated"), batch=batch, seed=0, epoch=1)
    assert len(updates) == -(-5 // batch)
    for one in updates:
        taken = sorted(zip(one.pairs.tolist(), one.step.tolist(), strict=True))
        assert taken == [(pair, step) for pair in sorted(set(one.pairs.tolist())) for step in ACTIONS]
    assert sorted({pair for one in updates for pair in one.pairs.tolist()}) == [0, 1, 2, 3, 4]


def test_accumulated_gradients_are_the_mean_of_the_single_ones(model, rollouts, advantage):
    free = Sdpo(SdpoOptions(clip=0.0))

    def gradient(step):
        update = Update(torch.arange(5).repeat(len(step)), torch.tensor(step).repeat_interleave(5))
        attempt_update(model, optimizer(model), lesson(rollouts, advantage, free), update, 15)
        found = torch.cat([weight.grad.flatten() for weight in model.trainable().values()])
        restore(model, before)
        return found

    before = weights(model)
    single = torch.stack([gradient([step]) for step in ACTIONS])
    torch.testing.assert_close(gradient(ACTIONS), single.mean(0), rtol=1e-3, atol=1e-6)


def restore(model, values):
    with torch.no_grad():
        for parameter, value in zip(
            model.trainable().values(),
            values.split([one.numel() for one in model.trainable().values()]),
            strict=True,
        ):
            parameter.copy_(value.view_as(parameter))


def test_whole_trajectories_reach_the_objective_together(model, rollouts, advantage):
    seen = []

    class Watcher(TrajectoryDifference):
        def loss(self, batch):
            seen.append(batch)
            return super().loss(batch)

    watcher = Watcher(RebelOptions(), None)
    (update,) = plan_updates(rollouts, ACTIONS, watcher.plan, batch=5, seed=0, epoch=1)
    attempt_update(model, optimizer(model), lesson(rollouts, advantage, watcher), update, 6)
    assert [tuple(batch.log_prob_new.shape) for batch in seen] == [(2, 2, 3), (2, 2, 3), (2, 1, 3)]
    for batch, pairs in zip(seen, update.pairs.split(2), strict=True):
        assert torch.equal(batch.log_prob_old, rollouts.log_prob[:, pairs][..., ACTIONS])
        assert torch.equal(batch.advantage, advantage[:, pairs][..., ACTIONS])
        torch.testing.assert_close(batch.log_prob_new, batch.log_prob_old, rtol=0, atol=1e-4)


def compared_with(model, rollouts, batch):
    places = places_of(ACTIONS, 5)
    return with_reference(rollouts, places, base_estimates(model, rollouts, places, batch))


def divergence_of(model, rollouts, pairs):
    places = places_of(ACTIONS, pairs)
    return kl_from_base(rollouts, places, base_estimates(model, rollouts, places, 5))


def test_the_reference_is_the_model_without_its_adapter(model, rollouts):
    pairs, step = torch.arange(5), torch.tensor([0, 1, 2, 1, 0])
    compared = compared_with(model, rollouts, batch=2)
    replayed = replay(model, compared, pairs, step)
    with model.without_adapter():
        bare = replay(model, rollouts, pairs, step)
    torch.testing.assert_close(replayed.log_prob_reference, bare.log_prob, rtol=0, atol=1e-5)
    assert float(replayed.kl.detach().min()) > 0
    assert bare.kl is None


@pytest.mark.parametrize(("actions", "pairs", "count"), [(10, 8, 16), (3, 8, 12), (50, 2, 16), (1, 1, 1)])
def test_the_log_asks_about_a_few_actions_spread_over_all_steps_and_the_first_prompts(actions, pairs, count):
    places = logged_places(range(actions), pairs)
    assert len({(action, pair) for action, pair in places.tolist()}) == len(places) == count
    assert (int(places[0, 0]), int(places[-1, 0])) == (0, actions - 1)
    assert max(after - before for before, after in pairwise([0, *places[:, 0].tolist()])) <= -(-actions // 15)
    assert set(places[:, 1].tolist()) == set(range(min(4, pairs)))


def test_a_loss_that_needs_the_base_model_has_its_estimate_of_every_action(model, rollouts, checkpoint, monkeypatch):
    monkeypatch.setattr(reference, "LOGGED", 5)  # fewer than there are
    setup = tiny.setup(checkpoint)
    section = setup.recipe.train.model_copy(update={"kl": 0.1})
    recipe = setup.recipe.model_copy(update={"train": section})
    found, logged = compared_with_base(model, LearningPlan(), recipe, rollouts, ACTIONS, 5)
    expected = compared_with(model, rollouts, batch=5).reference_x0
    torch.testing.assert_close(found.reference_x0, expected, rtol=1e-4, atol=1e-5)
    places = logged_places(ACTIONS, 5)
    assert len(places) == 5
    divergence = kl_from_base(rollouts, places, base_estimates(model, rollouts, places, 5))
    assert logged == {"kl_base": pytest.approx(divergence, rel=1e-3)}


def test_a_compiled_model_is_asked_for_what_rollouts_share_once(checkpoint, monkeypatch):
    setup = tiny.setup(checkpoint, steps=8, branched=True)
    model = tiny.with_random_adapter(setup.model)
    rollouts = roll_out(model, setup.kernel, tiny.draw(model), setup.objective.plan, 0, 5)
    places = torch.stack([rollouts.common - 1, torch.arange(5)], dim=1)
    expected = base_estimates(model, rollouts, places, 5)
    asked, denoise = [], model.denoise
    monkeypatch.setattr(model, "denoise", lambda x, at, known: asked.append(len(x)) or denoise(x, at, known))
    model.compile(backend="eager")
    torch.testing.assert_close(base_estimates(model, rollouts, places, 5), expected)
    assert asked == [5]


def test_of_branched_pairs_the_base_model_is_asked_about_the_branch_and_for_the_log(checkpoint, monkeypatch):
    setup = tiny.setup(checkpoint, steps=8, branched=True)
    section = setup.recipe.train.model_copy(update={"kl": 0.1})
    setup = replace(setup, recipe=setup.recipe.model_copy(update={"train": section}))
    model = tiny.with_random_adapter(setup.model)
    rollouts = roll_out(model, setup.kernel, tiny.draw(model), setup.objective.plan, 0, 5)
    asked, denoise = [], model.denoise
    monkeypatch.setattr(model, "denoise", lambda x, at, known: asked.append(len(x)) or denoise(x, at, known))
    compared, _ = compared_with_base(model, setup.objective.plan, setup.recipe, rollouts, list(range(7)), 5)
    assert sum(asked) <= 2 * LOGGED + 5  # the log's actions, and every pair's branch
    branch = rollouts.common - 1
    replayed = replay(model, compared, torch.arange(5), branch)
    with model.without_adapter():
        bare = replay(model, rollouts, torch.arange(5), branch)
    torch.testing.assert_close(replayed.log_prob_reference, bare.log_prob, rtol=0, atol=1e-5)


def test_the_divergence_is_nothing_without_an_adapter_and_grows_with_it(checkpoint):
    model = tiny.load(checkpoint)
    model.add_adapter(AdapterOptions())
    kernel = kernel_for(with_floor(model.schedule(4)), "ddim", 1.0)

    def divergence():
        rollouts = roll_out(model, kernel, tiny.draw(model), LearningPlan(), 0, 5)
        return divergence_of(model, rollouts, 3)

    assert divergence() == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        for weight in model.trainable().values():
            weight += 0.02
    small = divergence()
    with torch.no_grad():
        for weight in model.trainable().values():
            weight += 0.1
    assert divergence() > small > 0


def test_descending_the_divergence_leads_back_to_the_base_model(model, rollouts, advantage):
    compared = compared_with(model, rollouts, batch=5)
    before = divergence_of(model, rollouts, 5)
    update = Update(torch.arange(5).repeat(3), torch.tensor(ACTIONS).repeat_interleave(5))
    pull = lesson(compared, torch.zeros_like(advantage), max_grad_norm=0.01, kl=1e3)
    for _ in range(5):
        attempt_update(model, optimizer(model), pull, update, 15)
    again = roll_out(model, rollouts.kernel, tiny.draw(model), LearningPlan(), 0, 5)
    assert divergence_of(model, again, 5) < before
