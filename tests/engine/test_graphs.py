"""Which passes are recorded and replayed, and when not. CUDA graphs need a GPU: here Python stands in for them.

The stand-ins write where graphs would write: into places that the next replay overwrites.
"""

import copy
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import tiny
import torch
from peft.tuners.lora import LoraLayer
from torch._dynamo.utils import counters
from torch.utils import _pytree as pytree

from sdpo_cli.api import graphs
from sdpo_cli.api.graphs import any_recordings, held_by_recordings, record_passes, state_of
from sdpo_cli.api.recording import Recording, aliased, answered, kind_of
from sdpo_cli.api.tensors import AdapterOptions, LearningPlan, ScoreRequest, ScoreResult
from sdpo_cli.engine.benching.bench import timed
from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.learning.optimizer import make_optimizer
from sdpo_cli.engine.learning.rollout import roll_out
from sdpo_cli.engine.learning.update import replay
from sdpo_cli.engine.memory import fitting, with_room
from sdpo_cli.engine.rewards.scorer import THREAD, Scorer
from sdpo_cli.engine.rewards.scoring import LoadedReward
from sdpo_cli.engine.training.remarks import remarks, unheard
from sdpo_cli.engine.training.shares import Seat
from sdpo_cli.engine.training.trainer import Run
from sdpo_cli.errors import TrainingError
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
        assert THREAD not in [thread.name for thread in threading.enumerate()]  # it may use the device
        if self.fault:
            raise self.fault
        leaves = [
            torch.zeros(size, dtype=known) if isinstance(size, torch.Size) else known for size, known in kind.leaves
        ]
        args, kwargs = pytree.tree_unflatten(leaves, kind.spec)
        inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
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


def recorded(checkpoint):
    model = tiny.load(checkpoint)
    model.compiled = True  # batches of one size
    model.recorder = record_passes(model.denoiser, CpuPool())
    return tiny.with_random_adapter(model)


@pytest.fixture
def model(checkpoint):
    return recorded(checkpoint)


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
    """Past the calls that are computed, and those that check a recording; gives rollouts."""
    rollouts = rolled(model)
    gradients(model, rollouts, (1, 1, 1))
    assert [kind.gradient for kind in model.recorder.recordings] == [True, False]
    rolled(model)
    return rollouts


def replays(model, call):
    """How many graphs a call replays, forward ones."""
    counts = []
    for recording in model.recorder.recordings.values():
        inner = recording.forward.replay
        recording.forward = Again(lambda inner=inner: (counts.append(1), inner()))
    call()
    return len(counts)


def close(ones, others):
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


class TestReplayed:
    """A recorded pass gives what the network gives."""

    def test_the_same_estimates_and_gradients(self, model, plain):
        rollouts = warm(model)
        assert replays(model, lambda: close(gradients(model, rollouts), gradients(plain, rollouts))) == 2
        assert replays(model, lambda: close([rolled(model, 1).x0], [rolled(plain, 1).x0])) == 2

    def test_the_larger_first_and_nothing_new_in_the_second_epoch(self, model):
        rollouts = warm(model)
        for _ in range(3):
            rollouts = rolled(model)
            gradients(model, rollouts)
        assert model.recorder.pool.made == [True, False]

    def test_weights_that_change_in_place_are_used(self, model, plain):
        rollouts = warm(model)
        for one in (model, plain):
            with torch.no_grad():
                for weight in one.trainable().values():
                    weight.mul_(2)
        assert replays(model, lambda: close(gradients(model, rollouts), gradients(plain, rollouts))) == 2
        assert replays(model, lambda: close([rolled(model).x0], [rolled(plain).x0])) == 2

    def test_a_pass_in_between_is_computed(self, model, plain):
        """Its recording would overwrite what the first one's gradient needs."""
        rollouts = warm(model)
        first, second = log_prob(model, rollouts, 0), log_prob(model, rollouts, 1)
        with torch.no_grad():
            log_prob(model, rollouts, 0)
        model.denoiser.zero_grad()
        (first + second).backward()
        close([weight.grad for weight in model.trainable().values()], gradients(plain, rollouts))

    def test_a_pass_whose_gradient_nobody_wants_blocks_nothing(self, model):
        rollouts = warm(model)
        log_prob(model, rollouts, 0)
        assert replays(model, lambda: gradients(model, rollouts)) == 2

    def test_a_gradient_is_given_once(self, model):
        rollouts = warm(model)
        loss = log_prob(model, rollouts, 0)
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError) as fault:
            loss.backward()
        assert str(fault.value) == (
            "the gradient of a recorded pass can be asked for once, before the next recorded pass"
        )

    def test_weights_that_change_before_the_gradient_are_an_error_as_ever(self, model):
        rollouts = warm(model)
        loss = log_prob(model, rollouts, 0)
        with torch.no_grad():
            next(iter(model.trainable().values())).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_two_sizes_with_gradients_in_turn(self, model, plain):
        """As where micro-batches do not divide a batch."""
        rollouts = rolled(model)

        def both(one):
            for weight in one.trainable().values():
                weight.grad = None
            for pairs in (torch.arange(3), torch.arange(3, 5)) * 3:
                replay(one, rollouts, pairs, torch.ones_like(pairs)).log_prob.sum().backward()
            return [weight.grad for weight in one.trainable().values()]

        close(both(model), both(plain))
        assert [kind.gradient for kind in model.recorder.recordings] == [True, True, False]
        assert replays(model, lambda: close(both(model), both(plain))) == 6

    @pytest.mark.parametrize("gradient", [True, False])
    def test_an_answer_is_not_overwritten_by_the_next(self, model, monkeypatch, gradient):
        rollouts = warm(model)
        forward, answers, kept = model.denoiser.forward, [], []

        def keeping(*args, **kwargs):
            answer = forward(*args, **kwargs)
            answers.append(next(one for one in pytree.tree_leaves(answer)).detach())
            kept.append(answers[-1].clone())
            return answer

        monkeypatch.setattr(model.denoiser, "forward", keeping)
        with torch.set_grad_enabled(gradient):
            assert replays(model, lambda: [log_prob(model, rollouts, step).item() for step in (0, 1)]) == 2
        assert torch.equal(answers[0], kept[0])
        assert not torch.equal(answers[1], kept[0])

    def test_a_gradient_is_not_overwritten_by_the_next(self, model):
        rollouts = warm(model)
        weight = next(iter(model.trainable().values()))
        (first,) = torch.autograd.grad(log_prob(model, rollouts, 0), weight)
        kept = first.clone()
        gradients(model, rollouts, (1,))
        assert torch.equal(first, kept)

    def test_a_recording_that_answers_otherwise_is_not_used(self, model, plain):
        rollouts = rolled(model)
        record = model.recorder.pool.record

        def wrong(network, kind, slots):
            return record(lambda *args, **kwargs: 1.5 * network(*args, **kwargs)[0], kind, slots)

        model.recorder.pool.record = wrong
        close(gradients(model, rollouts, (1, 1, 1, 0)), gradients(plain, rollouts, (1, 1, 1, 0)))
        assert model.recorder.fault == "a recorded pass differs from the network by 0.5 of its answer"
        assert not any_recordings()

    def test_a_copy_of_the_network_computes_for_itself(self, model):
        warm(model)
        copied = copy.deepcopy(model.denoiser)
        with torch.no_grad():
            for weight in copied.parameters():
                weight.zero_()
        x = torch.randn(2, 4, 8, 8)
        conditioning = next(iter(tiny.draw(model).conditioning.values()))[:2]
        assert float(copied(x, 1, conditioning).sample.abs().max()) == 0
        assert float(model.denoiser(x, 1, conditioning).sample.abs().max()) > 0

    def test_epochs_train_the_same_weights(self, checkpoint):
        ends = []
        for pool in (None, CpuPool()):
            setup = tiny.setup(checkpoint)
            setup.model.compiled = True
            if pool:
                record_passes(setup.model.denoiser, pool)
            setup.model.add_adapter(AdapterOptions(rank=2, alpha=2.0))
            weights = setup.model.trainable()
            run = Run(Seat(setup), RunFolder(Path()), make_optimizer(setup.recipe.train, weights.values()))
            counts = [timed(run, epoch) and len(pool.made if pool else []) for epoch in (1, 2, 3)]
            ends.append([weight.detach() for weight in weights.values()])
        assert counts == [2, 2, 2]
        close(*ends)

    def test_other_parameters_in_the_same_places_compile_nothing_anew(self, checkpoint):
        model = tiny.load(checkpoint)
        model.compile(backend="eager")
        tiny.with_random_adapter(model)
        rollouts = rolled(model)
        loss, own = log_prob(model, rollouts, 1), dict(model.trainable())
        expected = torch.autograd.grad(loss, list(own.values()), retain_graph=True)
        compiled = counters["stats"]["unique_graphs"]
        with aliased(state_of(model.denoiser).slots) as weights:
            assert not {id(weight) for weight in weights} & {id(weight) for weight in own.values()}
            found = torch.autograd.grad(log_prob(model, rollouts, 1), weights)
        assert counters["stats"]["unique_graphs"] == compiled
        assert all(one is own[name] for name, one in model.trainable().items())
        norms = [sorted(float(one.norm()) for one in grads) for grads in (found, expected)]
        torch.testing.assert_close(*norms)


class TestForgotten:
    """What a recording depends on has changed: it is dropped, and made anew."""

    def scaled(self, model):
        for module in model.denoiser.modules():
            if isinstance(module, LoraLayer):
                module.scaling["sdpo"] = 0.5

    def frozen(self, model):
        next(iter(model.trainable().values())).requires_grad_(False)

    def exchanged(self, model):
        weight = list(model.trainable().values())[1]
        weight.data = 2 * weight.data

    def base_exchanged(self, model):
        model.denoiser.conv_in.weight.data = 2 * model.denoiser.conv_in.weight.data

    def in_another_mode(self, model):
        model.denoiser.train(not model.denoiser.training)

    def saved_and_loaded(self, model):
        with TemporaryDirectory() as folder:
            model.save_adapter(Path(folder))
            model.load_adapter(Path(folder))

    @pytest.mark.parametrize("change", [scaled, frozen, exchanged, base_exchanged, in_another_mode, saved_and_loaded])
    def test_recordings_are_made_anew(self, model, plain, change):
        rollouts = warm(model)
        change(self, model)
        change(self, plain)
        assert replays(model, lambda: close([rolled(model).x0], [rolled(plain).x0])) == 0
        assert not model.recorder.recordings
        with suppress(AttributeError):  # one weight has no gradient
            gradients(model, rollouts, (1, 1, 1))
        assert len(model.recorder.recordings) == 2
        rolled(model)
        assert replays(model, lambda: close([rolled(model).x0], [rolled(plain).x0])) == 2


class TestComputed:
    """Passes that no recording stands for."""

    @pytest.mark.parametrize(
        "way",
        [
            lambda model: torch.compiler.set_stance("force_eager"),
            lambda model: model.without_adapter(),
            lambda model: torch.inference_mode(),
            lambda model: autocast(),
            lambda model: hooked(model.denoiser.conv_in),
        ],
        ids=["sampling", "base model", "inference", "autocast", "hook"],
    )
    def test_without_losing_the_recordings(self, model, way):
        warm(model)
        x, at, conditioning = torch.randn(10, 4, 8, 8), kernel_of(model), tiny.draw(model).conditioning
        conditioning = {name: torch.cat([one, one]) for name, one in conditioning.items()}

        def call():
            with torch.no_grad():
                model.denoise(x, at, conditioning)

        with way(model):
            assert replays(model, call) == 0
        assert replays(model, call) == 1

    def test_without_an_adapter(self, checkpoint):
        assert state_of(tiny.load(checkpoint).denoiser) is None

    def test_where_all_weights_are_trained(self, checkpoint):
        model = tiny.load(checkpoint)
        record_passes(model.denoiser, pool := CpuPool())
        model.add_adapter(AdapterOptions(kind="full"))
        rollouts = rolled(model)
        gradients(model, rollouts, (1, 1, 1, 1))
        assert pool.made == []

    def test_where_there_are_enough_recordings(self, model, plain, monkeypatch):
        monkeypatch.setattr(graphs, "MOST", 1)
        rollouts = rolled(model)
        gradients(model, rollouts, (1, 1, 1, 1))
        assert model.recorder.pool.made == [True]
        assert replays(model, lambda: close([rolled(model).x0], [rolled(plain).x0])) == 0

    def test_where_a_recording_does_not_fit(self, model, plain):
        model.recorder.pool.fault = torch.OutOfMemoryError("more than the card has")
        rollouts = rolled(model)
        close(gradients(model, rollouts, (1, 1, 1, 0)), gradients(plain, rollouts, (1, 1, 1, 0)))
        model.recorder.pool.fault = None
        gradients(model, rollouts)
        assert (model.recorder.pool.made, model.recorder.fault) == ([], "")

    def test_where_a_pass_cannot_be_recorded(self, model, plain):
        model.recorder.pool.fault = RuntimeError("called a synchronizing CUDA operation")
        rollouts = rolled(model)
        close(gradients(model, rollouts, (1, 1, 1, 0)), gradients(plain, rollouts, (1, 1, 1, 0)))
        assert model.recorder.fault == "RuntimeError: called a synchronizing CUDA operation"

    @pytest.mark.parametrize(
        "leaf", [torch.zeros(2, device="meta"), torch.zeros(2, requires_grad=True), torch.nn.Parameter(), [object()]]
    )
    def test_where_an_argument_is_no_plain_tensor_or_value(self, leaf):
        assert kind_of((leaf,), {}, torch.device("cpu"))[0] is None

    def test_calls_of_one_kind_have_shapes_formats_names_and_values_in_common(self):
        x = torch.zeros(2, 3)
        calls = [
            ((x,), {}),
            ((x[:1],), {}),
            ((x.double(),), {}),
            ((), {"x": x}),
            ((), {"y": x}),
            (([x],), {}),
            ((x, 1), {}),
            ((x, True), {}),
            ((x, None), {}),
        ]
        kinds = [kind_of(*call, torch.device("cpu"))[0] for call in calls]
        with torch.no_grad():
            kinds.append(kind_of(*calls[0], torch.device("cpu"))[0])
        assert len(set(kinds)) == 10
        assert kind_of((x + 1,), {}, torch.device("cpu"))[0] == kinds[0]


class TestMemory:
    """What recordings hold is given back where it runs out."""

    def test_for_a_pass_that_does_not_fit_beside_them(self, model, plain):
        rollouts = warm(model)
        network, tried = model.recorder.plain, []

        def tight(*args, **kwargs):
            tried.append(any_recordings())
            if any_recordings():
                raise torch.OutOfMemoryError("more than the card has")
            return network(*args, **kwargs)

        model.recorder.plain = tight
        with torch.compiler.set_stance("force_eager"), plain.without_adapter(), model.without_adapter():
            close([rolled(model).x0], [rolled(plain).x0])
        assert tried == [True, False, False]
        assert held_by_recordings() == 0
        close(gradients(model, rollouts), gradients(plain, rollouts))

    def test_first_for_pairs_and_last_for_pictures(self, model):
        for what, expected in (("pair", [4, 4, 2]), ("picture", [4, 2, 1, 4])):
            warm(model)
            assert held_by_recordings() == 2000
            tried = []

            def call(batch, tried=tried, expected=expected):
                tried.append(batch)
                if len(tried) < len(expected):
                    raise torch.OutOfMemoryError("more than the card has")

            fitting(call, 4, what)
            assert (tried, any_recordings()) == (expected, False)

    def test_for_a_reward_that_does_not_fit_beside_them(self, model):
        warm(model)
        tried = []

        class Large:
            def score(self, request):
                tried.append((len(request.images), any_recordings()))
                if any_recordings():
                    raise torch.OutOfMemoryError("more than the card has")
                return ScoreResult(request.images.mean((1, 2, 3)))

        images = torch.rand(4, 3, 8, 8)
        with Scorer([LoadedReward("large", "1", 1.0, Large())]) as scorer:
            (result,) = scorer.result(scorer.submit(ScoreRequest(images, ["cat"] * 4, [{}] * 4)))
        torch.testing.assert_close(result.values, images.mean((1, 2, 3)))
        assert tried == [(4, True), (2, True), (1, True), (1, False), (1, False), (2, False)]

    def test_while_another_thread_gives_them_up(self, model, monkeypatch):
        """That they are gone when it is this one's turn makes no batch smaller than 1."""
        warm(model)
        tried = []

        def call(batch):
            tried.append(batch)
            if len(tried) == 1:
                raise torch.OutOfMemoryError("more than the card has")

        monkeypatch.setattr("sdpo_cli.engine.memory.give_up_recordings", lambda: False)
        fitting(call, 1, "picture")
        assert tried == [1, 1]

    @pytest.mark.parametrize(("what", "sizes"), [("pair", [2, 2, 1, 1]), ("picture", [2, 1, 2, 1])])
    def test_once_a_size_where_they_are_made_anew_each_time(self, monkeypatch, what, sizes):
        monkeypatch.setattr("sdpo_cli.engine.memory.any_recordings", lambda: True)
        tried = []

        def call(batch):
            tried.append(batch)
            raise torch.OutOfMemoryError("more than the card has")

        with pytest.raises(TrainingError, match=f"one {what} does not fit into the device's memory"):
            fitting(call, 2, what)
        assert tried == sizes

    @pytest.mark.parametrize("held", [True, False])
    def test_for_work_that_cannot_be_halved(self, model, held):
        if held:
            warm(model)

        def work():
            if any_recordings() or not held:
                raise torch.OutOfMemoryError("more than the card has")
            return 3

        if held:
            assert with_room(work) == 3
        else:
            with pytest.raises(torch.OutOfMemoryError):
                with_room(work)

    def test_recordings_that_were_of_use_may_be_made_again(self, model, monkeypatch):
        monkeypatch.setattr(graphs, "WORTH", 10)
        for _ in range(graphs.CHANCES + 1):
            rollouts = warm(model)
            for _ in range(graphs.WORTH // 2):
                gradients(model, rollouts)
            assert graphs.give_up_recordings()
        assert model.recorder.fault == ""

    def test_not_for_ever_anew(self, model):
        for _ in range(graphs.CHANCES):
            rollouts = warm(model)
            assert graphs.give_up_recordings()
        rolled(model)
        gradients(model, rollouts, (1, 1, 1, 1))
        assert not any_recordings()
        assert not graphs.give_up_recordings()
        assert model.recorder.fault == "memory ran out"

    def test_and_the_run_says_so_once(self, model, checkpoint):
        seat, heard = Seat(tiny.setup(checkpoint)), set()
        assert list(unheard(remarks(seat), heard)) == []
        model.recorder.fault = "memory ran out"
        assert [note.text for note in unheard(remarks(seat), heard)] == [
            "passes of the network are no longer recorded as CUDA graphs, which costs time alone: memory ran out"
        ]
        assert list(unheard(remarks(seat), heard)) == []


@contextmanager
def autocast():
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


@contextmanager
def hooked(module):
    handle = module.register_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


def kernel_of(model):
    return kernel_for(with_floor(model.schedule(2)), "ddim", 1.0).at(torch.ones(10, dtype=torch.long))
