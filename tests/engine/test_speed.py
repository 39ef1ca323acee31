"""What makes an epoch fast, by counts and by equality with the plain way: never by a clock."""

import gc
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import tiny
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch.nn.functional import group_norm, silu
from torch.utils.flop_counter import FlopCounterMode

from sdpo_cli.api import LoadContext, fused, lora_layers
from sdpo_cli.api.attention import CudnnAttention, is_cudnn_faster, prefer_cudnn
from sdpo_cli.api.compiling import compile_blocks
from sdpo_cli.api.lora_layers import NarrowLinear, NarrowMatrix
from sdpo_cli.api.tensors import AdapterOptions, LearningPlan
from sdpo_cli.builtin.models import load_checkpoint
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.engine import memory
from sdpo_cli.engine.benching.bench import Watch, epoch_operations, staged_epoch, timed
from sdpo_cli.engine.benching.utilisation import Work, counted, matrix_rate, operations
from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.learning.optimizer import make_optimizer
from sdpo_cli.engine.learning.reference import LOGGED_PAIRS
from sdpo_cli.engine.learning.rollout import roll_out
from sdpo_cli.engine.learning.update import plan_updates, replay
from sdpo_cli.engine.rewards.scoring import LoadedReward
from sdpo_cli.engine.training import trainer
from sdpo_cli.engine.training.shares import Seat
from sdpo_cli.engine.training.trainer import Run
from sdpo_cli.errors import UsageError
from sdpo_cli.maths import kernel_for, with_floor


def gradient(model, rollouts) -> torch.Tensor:
    """Of the summed log-probabilities of the first update."""
    update = plan_updates(rollouts, [0, 1], LearningPlan(), batch=5, seed=0, epoch=1)[0]
    log_prob = replay(model, rollouts, update.pairs, update.step).log_prob
    grads = torch.autograd.grad(log_prob.sum(), list(model.trainable().values()))
    return torch.cat([grad.flatten() for grad in grads])


def rolled(model):
    kernel = kernel_for(with_floor(model.schedule(2)), "ddim", 1.0)
    return roll_out(model, kernel, tiny.draw(model), LearningPlan(), 0, 5)


def pictures(model, rollouts):
    return model.decode(rollouts.x0[:, :, -1].flatten(0, 1))


def relative(one, other) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def plain(checkpoint):
    return tiny.with_random_adapter(tiny.load(checkpoint))


@pytest.fixture(scope="module")
def compiled(checkpoint):
    """Captured by torch.compile and run as captured: what inductor makes of it is tested on a GPU."""
    model = tiny.load(checkpoint)
    model.compile(backend="eager")
    return tiny.with_random_adapter(model)


class Asked(tiny.Brightness):
    """Brightness that remembers how many pictures each request had."""

    def __init__(self):
        self.requests = []

    def score(self, request):
        self.requests.append(len(request.images))
        return super().score(request)


class TestCounts:
    """Of one epoch of 4 pairs and 3 steps in micro-batches of 2: two rollouts a pair, two of the steps are learnt.

    For the log, two steps of all four pairs go through the base model too.
    """

    @pytest.fixture
    def run(self, checkpoint):
        return self.started(checkpoint)

    def started(self, checkpoint, **sizes):
        setup, reward = tiny.setup(checkpoint, **sizes), Asked()
        setup = replace(setup, rewards=(LoadedReward("brightness", "1", 1.0, reward),))
        setup.model.add_adapter(AdapterOptions(rank=2, alpha=2.0))
        weights = setup.model.trainable().values()
        return Run(Seat(setup), RunFolder(Path()), make_optimizer(setup.recipe.train, weights)), reward.requests

    @pytest.mark.parametrize("pairs", [1, 2, 4, 8])
    def test_grow_in_proportion_to_the_pairs(self, checkpoint, pairs):
        run, _ = self.started(checkpoint, pairs=pairs, steps=2)
        with counted(run.setup.model) as work:
            timed(run, 1)
        logged = 2 * min(pairs, LOGGED_PAIRS) - min(pairs, LOGGED_PAIRS)  # the only action starts from shared noise
        assert work.network_pictures - logged == pairs * (2 * 2 - 1 + 1)
        assert work.decoded_pictures == pairs * 2

    @pytest.mark.parametrize("steps", [2, 3, 4, 6])
    def test_grow_in_proportion_to_the_steps(self, checkpoint, steps):
        run, _ = self.started(checkpoint, pairs=2, steps=steps)
        with counted(run.setup.model) as work:
            timed(run, 1)
        actions = 2 * (2 * (steps - 1) - 1)
        assert work.network_pictures == 2 * (2 * steps - 1) + 2 * actions
        assert work.decoded_pictures <= 2 * 2 * 3

    def test_an_epoch_leaves_no_tensor_behind(self, run):
        run, _ = run
        counts = []
        for epoch in range(1, 5):
            timed(run, epoch)
            if epoch > 2:
                gc.collect()
                counts.append(sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects()))
        assert counts[0] == counts[1]

    def test_of_the_expensive_calls(self, run):
        run, requests = run
        with counted(run.setup.model) as work:
            timed(run, 1)
        assert (work.network_calls, work.decodes) == (2 * 3 + 2 * 2 + 2 * 2, 4)
        rollouts, shared = 2 * 4 * 3, 4
        assert work.network_pictures == rollouts - shared + 2 * (2 * 4 * 2 - shared)
        assert (work.decoded_pictures, requests) == (2 * 4 * 2, [4, 4, 4, 4])

    def test_fewer_pictures_are_decoded_at_once_where_the_recipe_says_so(self, run):
        run, requests = run
        train = run.setup.recipe.train.model_copy(update={"decode_batch": 3})
        setup = replace(run.setup, recipe=run.setup.recipe.model_copy(update={"train": train}))
        timed(replace(run, seat=Seat(setup)), 1)
        assert requests == [3, 3, 2] * 2

    def test_what_does_not_fit_does_not_count(self, run, monkeypatch):
        run, _ = run
        sizes = self.refuse(run, monkeypatch, "decode", 2)
        with counted(run.setup.model) as work:
            timed(run, 1)
        assert sum(size for size in sizes if size > 2) > 0
        assert work.decoded_pictures == 2 * 4 * 2

    def test_a_measurement_goes_on_with_what_fits(self, run, monkeypatch):
        run, _ = run
        expected = epoch_operations(run.setup, staged_epoch(run, 1, Watch(torch.device("cpu"))))
        sizes = self.refuse(run, monkeypatch, "decode", 2)
        timed(run, 1)
        sizes.clear()
        staged = staged_epoch(run, 1, Watch(torch.device("cpu")))
        assert set(sizes) == {2}
        self.refuse(run, monkeypatch, "decode", 1)
        assert epoch_operations(run.setup, staged) == expected

    def test_an_update_counts_its_pairs_and_what_the_base_model_is_asked(self, run):
        run, _ = run
        staged = staged_epoch(run, 1, Watch(torch.device("cpu")))
        without = replace(staged, compared=0)
        base, learnt = (epoch_operations(run.setup, one)["update"] for one in (staged, without))
        model, x_t = run.setup.model, staged.lesson.rollouts.x_t[0, :1, 0]
        at, known = staged.lesson.rollouts.kernel.at(torch.tensor([1])), model.encode(["cat"])

        def ask():
            with torch.no_grad(), model.without_adapter():
                model.denoise(x_t, at, known)

        assert base - learnt == 2 * (2 * 4) * operations(ask) - 4 * operations(ask)  # the first states are shared
        half = replace(staged, compared=0, updates=staged.updates[: len(staged.updates) // 2])
        assert learnt == 2 * epoch_operations(run.setup, half)["update"]

    def refuse(self, run, monkeypatch, name, most):
        """Let the model run out of memory with more than `most` pictures; gives how many it has been asked for."""
        sizes, kind = [], type(run.setup.model)  # the class's: counting puts methods on the model and takes them off
        small = tiny.refusing(getattr(run.setup.model, name), most, sizes)
        monkeypatch.setattr(kind, name, lambda self, *given: small(*given))
        return sizes

    def test_operations_are_counted_once_recordings_have_made_room(self, run, monkeypatch):
        run, _ = run
        staged, given_up = staged_epoch(run, 1, Watch(torch.device("cpu"))), []
        expected = epoch_operations(run.setup, staged)
        denoise, calls = run.setup.model.denoise, []

        def full(*given):
            calls.append(1)
            if len(calls) % 2:
                raise torch.OutOfMemoryError("more than the card has")
            return denoise(*given)

        monkeypatch.setattr(run.setup.model, "denoise", full)
        monkeypatch.setattr(memory, "any_recordings", lambda: True)
        monkeypatch.setattr(memory, "give_up_recordings", lambda: given_up.append(1))
        assert epoch_operations(run.setup, staged) == expected
        assert len(given_up) == 3  # the policy's estimate, the base model's, an update

    def test_the_log_waits_for_the_device_once(self, run, monkeypatch):
        run, _ = run
        fetches, metrics = [], trainer.epoch_metrics

        def watched(name, fetch):
            return lambda one: (fetches.append(name), fetch(one))[1]

        def watching(*arguments):
            with monkeypatch.context() as patch:
                for name in ("tolist", "item", "cpu", "numpy", "__float__", "__int__", "__bool__"):
                    patch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
                return metrics(*arguments)

        monkeypatch.setattr(trainer, "epoch_metrics", watching)
        timed(run, 1)
        assert fetches == ["tolist"]

    def test_nothing_is_counted_afterwards(self, run):
        run, _ = run
        with counted(run.setup.model) as work:
            pass
        timed(run, 1)
        assert work == Work()

    def test_operations_are_those_of_the_products(self):
        weight = torch.ones(3, 4, requires_grad=True)
        product = torch.ones(2, 3) @ weight
        assert operations(lambda: torch.ones(2, 3) @ weight) == 2 * 2 * 3 * 4
        assert operations(lambda: product.sum().backward()) == 2 * 2 * 3 * 4

    def test_a_rate_is_of_the_order_that_processors_have(self):
        assert 1e8 < matrix_rate(torch.device("cpu"), torch.float32) < 1e15


class TestNarrowLora:
    """A LoRA on a bfloat16 network is multiplied in bfloat16."""

    def load(self, checkpoint, dtype):
        return tiny.with_random_adapter(load_checkpoint(UNetOptions(path=str(checkpoint)), LoadContext(dtype=dtype)))

    def test_no_activation_is_widened_for_it(self, checkpoint, monkeypatch):
        model, seen, product = self.load(checkpoint, "bfloat16"), set(), lora_layers.added

        def watched(*factors):
            seen.add(tuple(one.dtype for one in factors[:-1]))
            return product(*factors)

        monkeypatch.setattr(lora_layers, "added", watched)
        rolled(model)
        assert seen == {(torch.bfloat16,) * 4}
        assert {one.dtype for one in model.trainable().values()} == {torch.float32}

    def test_the_product_is_the_plain_one(self):
        base, x, down, up = (torch.randn(size) for size in ((2, 7, 5), (2, 7, 6), (3, 6), (5, 3)))
        expected = base + 0.5 * x @ down.t() @ up.t()
        torch.testing.assert_close(lora_layers.added(base, x, down, up, 0.5), expected)

    def test_it_can_be_left_out(self, checkpoint):
        model, plain = (
            self.load(checkpoint, "bfloat16"),
            load_checkpoint(UNetOptions(path=str(checkpoint)), LoadContext(dtype="bfloat16")),
        )
        with model.without_adapter():
            assert torch.equal(rolled(model).x0, rolled(plain).x0)
        assert not torch.equal(rolled(model).x0, rolled(plain).x0)

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_other_number_formats_keep_the_wide_way(self, checkpoint, dtype):
        kinds = {type(module) for module in self.load(checkpoint, dtype).denoiser.modules()}
        assert not kinds & {NarrowLinear, NarrowMatrix}

    def test_its_gradient_is_as_near_to_float32_as_the_wide_way_is(self, checkpoint, monkeypatch):
        exact, narrow = (self.load(checkpoint, dtype) for dtype in ("float32", "bfloat16"))
        monkeypatch.setattr(lora_layers, "is_bfloat16", lambda layer: False)
        wide, rollouts = self.load(checkpoint, "bfloat16"), rolled(exact)
        expected, same = gradient(exact, rollouts), replace(rollouts, draw=tiny.draw(narrow))
        errors = [relative(gradient(model, same), expected) for model in (narrow, wide)]
        assert errors[0] < 1.2 * errors[1]

    def test_convolutions_too(self, checkpoint):
        model = load_checkpoint(UNetOptions(path=str(checkpoint)), LoadContext(dtype="bfloat16"))
        model.add_adapter(AdapterOptions(rank=2, alpha=2.0, targets=("conv1",)))
        assert any(isinstance(module, NarrowMatrix) for module in model.denoiser.modules())
        assert float(gradient(model, rolled(model)).norm()) > 0


class TestCompiled:
    """Blocks compiled one by one: the same numbers, and no graph is made twice."""

    def test_the_same_pictures_and_gradient_and_no_new_graph_in_the_second_epoch(self, plain, compiled):
        counters.clear()
        rollouts, expected = rolled(compiled), rolled(plain)
        torch.testing.assert_close(rollouts.x0, expected.x0)
        torch.testing.assert_close(pictures(compiled, rollouts), pictures(plain, expected))
        assert relative(gradient(compiled, rollouts), gradient(plain, expected)) < 1e-4
        graphs = counters["stats"]["unique_graphs"]
        assert graphs >= 8
        gradient(compiled, rolled(compiled))
        pictures(compiled, rollouts)
        assert counters["stats"]["unique_graphs"] == graphs
        assert not counters["graph_break"]

    def test_first_states_that_fill_a_batch_are_computed_once_for_all_rollouts(self, plain, compiled):
        kernel = kernel_for(with_floor(plain.schedule(2)), "ddim", 1.0)
        with counted(compiled) as work:
            found = roll_out(compiled, kernel, tiny.draw(compiled), LearningPlan(), 0, 2)
        assert (work.network_calls, work.network_pictures) == (
            1 + 2 + 2,
            4 + 2 * 4 + 2 * 2,
        )  # of 4 pairs, and of the 5th
        expected = rolled(plain)
        for name in ("x_t", "x0", "log_prob"):
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)

    def test_states_of_their_own_are_not_shared(self, plain, compiled):
        plan, kernel = LearningPlan(shared_noise=False), kernel_for(with_floor(plain.schedule(2)), "ddim", 1.0)
        found, expected = (roll_out(model, kernel, tiny.draw(model), plan, 0, 2) for model in (compiled, plain))
        torch.testing.assert_close(found.x0, expected.x0, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("layers", "left_out"), [(1, 1), (2, 0)])
    def test_a_middle_block_is_left_out_where_it_is_alone(self, layers, left_out):
        whole, rest = (
            compile_blocks(tiny.small_unet(transformer_layers_per_block=layers), "eager", middle=middle)
            for middle in (True, False)
        )
        assert whole - rest == left_out

    def test_fewer_pictures_are_decoded_by_the_same_graph(self, plain, compiled):
        x0 = rolled(plain).x0[0, :, -1]
        pictures(compiled, rolled(compiled))
        counters.clear()
        torch.testing.assert_close(compiled.decode(x0[:3]), plain.decode(x0[:3]))
        assert not counters["stats"]

    def test_the_lora_can_be_left_out_saved_and_loaded(self, plain, compiled, checkpoint, tmp_path):
        with plain.without_adapter(), compiled.without_adapter():
            torch.testing.assert_close(rolled(compiled).x0, rolled(plain).x0)
        for name, model in (("plain", plain), ("compiled", compiled)):
            model.save_adapter(tmp_path / name)
        one, other = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("plain", "compiled"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        fresh = tiny.load(checkpoint)
        fresh.load_adapter(tmp_path / "compiled")
        torch.testing.assert_close(rolled(fresh).x0, rolled(plain).x0)

    def test_with_gradient_checkpointing(self, checkpoint, plain):
        options = UNetOptions(path=str(checkpoint), gradient_checkpointing=True)
        model = load_checkpoint(options, LoadContext())
        model.compile(backend="eager")
        tiny.with_random_adapter(model)
        rollouts = rolled(plain)
        assert relative(gradient(model, rollouts), gradient(plain, rollouts)) < 1e-4


class TestTriton:
    """Asked for where the model is compiled: before anything is sampled."""

    @pytest.fixture
    def model(self, checkpoint):
        model = tiny.load(checkpoint)
        model.device = torch.device("cuda")
        return model

    def test_without_a_compiler_nothing_is_compiled(self, checkpoint, monkeypatch, tmp_path):
        monkeypatch.setenv("PATH", str(tmp_path))
        import_module("torch._inductor.cpp_builder").cpp_compiler_search.cache_clear()
        with pytest.raises(UsageError) as fault:
            tiny.load(checkpoint).compile()
        assert str(fault.value) == (
            "model.compile: needs a C++ compiler; install one, such as g++, or leave compile off"
        )

    def test_where_it_is_missing_compiling_is_refused(self, model, monkeypatch):
        monkeypatch.setitem(sys.modules, "triton", None)
        said = "model.compile: needs Triton on CUDA; install it, or leave compile off"
        with pytest.raises(UsageError, match=f"^{said}$"):
            model.compile()
        assert not model.compiled

    def test_cards_too_old_for_it_are_refused(self, model, monkeypatch):
        monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
        said = "model.compile: needs a card of compute capability 7.0 or newer; leave compile off"
        with pytest.raises(UsageError, match=f"^{said}$"):
            model.compile()
        assert not model.compiled


class TestFused:
    """Blocks kept channels-last. Their kernels need a GPU: here torch's own stand in for them, in float32."""

    @pytest.fixture(autouse=True)
    def kernels(self, monkeypatch):
        self.calls = 0

        def normalised(norm, x, addend=None, *, act=True):
            self.calls += 1
            x = x if addend is None else x + addend[:, :, None, None]
            output = group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
            return (silu(output) if act else output).contiguous(memory_format=torch.channels_last)

        monkeypatch.setattr(fused, "normalised", normalised)

        def interleaved(parts, bias):
            count, (height, width) = len(parts), (side - 1 for side in parts.shape[2:])
            parts = parts.unflatten(1, (2, 2, -1))
            rows = [
                torch.stack([parts[:, a, b, :, a : a + height, b : b + width] for b in (0, 1)], dim=-1) for a in (0, 1)
            ]
            return torch.stack(rows, dim=-3).view(count, len(bias), 2 * height, 2 * width) + bias[:, None, None]

        monkeypatch.setattr(fused, "interleaved", interleaved)
        monkeypatch.setattr(fused, "summed", lambda one, other, bias: one + other + bias[:, None, None])

    def load(self, folder, **options):
        model = load_checkpoint(UNetOptions(path=str(folder), **options), LoadContext())
        fused.fuse_blocks(model.denoiser)
        fused.fuse_blocks(model.vae.decoder)
        return model

    def test_no_block_is_left_out(self, checkpoint):
        model = self.load(checkpoint)
        for network in (model.denoiser, model.vae.decoder):
            assert not [block for block in network.modules() if type(block) in fused.FUSED]
            assert type(network.conv_norm_out) is fused.FusedNorm

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_the_same_estimates_pictures_and_gradient(self, checkpoint, plain, checkpointing):
        model = tiny.with_random_adapter(self.load(checkpoint, gradient_checkpointing=checkpointing))
        rollouts, expected = rolled(model), rolled(plain)
        torch.testing.assert_close(rollouts.x0, expected.x0, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(pictures(model, expected), pictures(plain, expected))
        assert relative(gradient(model, expected), gradient(plain, expected)) < 1e-4
        assert self.calls > 0

    def test_operations_are_counted_as_those_of_the_plain_network(self, checkpoint, plain):
        model, x0 = self.load(checkpoint), torch.randn(2, *plain.latent_shape)
        counts = [operations(lambda one=one: one.decode(x0)) for one in (model, plain)]
        with FlopCounterMode(display=False) as needed:
            model.decode(x0)
        assert counts[0] == counts[1] > needed.get_total_flops()

    def test_so_are_those_of_a_gradient(self, checkpoint, plain):
        model, rollouts = tiny.with_random_adapter(self.load(checkpoint)), rolled(plain)
        update = plan_updates(rollouts, [0, 1], LearningPlan(), batch=5, seed=0, epoch=1)[0]

        def learn(one):
            replay(one, rollouts, update.pairs, update.step).log_prob.sum().backward()
            for weight in one.trainable().values():
                weight.grad = None

        counts = [operations(partial(learn, one)) for one in (model, plain)]
        assert counts[0] == counts[1]

    @pytest.mark.parametrize("targets", [("upsamplers.0.conv",), ("conv_out",), ("up_blocks.1.attentions.0.proj_out",)])
    def test_nothing_before_the_first_trained_layer_goes_backward(self, checkpoint, targets):
        counts = []
        for model in (self.load(checkpoint), tiny.load(checkpoint)):
            model.add_adapter(AdapterOptions(rank=2, alpha=2.0, targets=targets))
            rollouts = rolled(model)
            update = plan_updates(rollouts, [0, 1], LearningPlan(), batch=5, seed=0, epoch=1)[0]
            with FlopCounterMode(display=False) as counter:
                replay(model, rollouts, update.pairs, update.step).log_prob.sum().backward()
            counts.append(counter.get_total_flops())
        assert counts[0] <= counts[1]

    def test_the_first_block_needs_no_graph_of_its_own(self, checkpoint):
        model = tiny.with_random_adapter(self.load(checkpoint))
        model.compile(backend="eager")
        counters.clear()
        rollouts = rolled(model)
        graphs = counters["stats"]["unique_graphs"]
        gradient(model, rollouts)
        assert counters["stats"]["unique_graphs"] == 2 * graphs > 0

    def test_a_decoder_none_of_which_is_compiled_decodes_no_more_pictures_than_asked_for(self, checkpoint, plain):
        model, x0, sizes = self.load(checkpoint), torch.randn(4, *plain.latent_shape), []
        model.compile(backend="eager")
        model.vae.decoder.register_forward_pre_hook(lambda decoder, inputs: sizes.append(len(inputs[0])))
        model.decode(x0)
        torch.testing.assert_close(model.decode(x0[:3]), plain.decode(x0[:3]))
        assert (model.compiled, sizes) == (True, [4, 3])

    @pytest.mark.parametrize(
        "targets",
        [
            ("conv1", "conv_shortcut"),
            ("time_emb_proj", "proj_in", "proj_out"),
            ("ff.net.0.proj",),
            ("upsamplers.0.conv",),
        ],
    )
    def test_a_lora_on_any_layer_still_learns(self, checkpoint, targets):
        gradients = []
        for model in (self.load(checkpoint), tiny.load(checkpoint)):
            model.add_adapter(AdapterOptions(rank=2, alpha=2.0, targets=targets))
            rollouts = rolled(model)
            gradients.append(gradient(model, rollouts))
        assert float(gradients[0].norm()) > 0
        assert relative(*gradients) < 1e-4

    @pytest.mark.parametrize("targets", [("ff.net.0.proj",), ("upsamplers.0.conv",)])
    def test_a_lora_on_any_layer_is_heeded_and_merged(self, checkpoint, targets, tmp_path):
        options, estimates = AdapterOptions(rank=2, alpha=2.0, targets=targets), []
        for model in (self.load(checkpoint), tiny.load(checkpoint)):
            rolled(model)
            model.add_adapter(options)
            self.change(model)
            adapted = rolled(model).x0
            model.save_merged(tmp_path / f"{len(estimates)}")
            torch.testing.assert_close(rolled(model).x0, adapted, rtol=1e-3, atol=1e-3)
            estimates.append(adapted)
        torch.testing.assert_close(*estimates, rtol=1e-3, atol=1e-3)
        assert relative(estimates[0], rolled(tiny.load(checkpoint)).x0) > 0.02

    def test_trained_weights_keep_the_plain_way_and_are_used_afterwards(self, checkpoint, tmp_path):
        model, plain = self.load(checkpoint), tiny.load(checkpoint)
        for one in (model, plain):
            rolled(one)
            one.add_adapter(AdapterOptions(kind="full"))
            self.change(one)
        self.calls = 0
        trained = rolled(plain).x0
        torch.testing.assert_close(rolled(model).x0, trained, rtol=1e-3, atol=1e-3)
        assert self.calls == 0
        model.save_merged(tmp_path / "merged")
        torch.testing.assert_close(rolled(model).x0, trained, rtol=1e-3, atol=1e-3)

    def change(self, model):
        """Other trained weights, the same ones of equal models."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in model.trainable().values():
                weight += 0.3 * torch.randn(weight.shape, generator=generator)

    def test_a_latent_of_odd_sides_is_upsampled_to_what_it_came_from(self):
        unet = tiny.small_unet().requires_grad_(False).eval()
        x, text = torch.randn(2, 4, 9, 7), torch.randn(2, 7, 16)
        expected = unet(x, 1, encoder_hidden_states=text).sample
        fused.fuse_blocks(unet)
        torch.testing.assert_close(unet(x, 1, encoder_hidden_states=text).sample, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(
        ("settings", "fits"),
        [
            ({}, True),
            ({"kernel_size": 5}, False),
            ({"padding": 2}, False),
            ({"padding_mode": "reflect"}, False),
            ({"stride": 2}, False),
            ({"dilation": 2}, False),
            ({"groups": 2}, False),
            ({"bias": False}, False),
        ],
    )
    def test_only_the_usual_convolution_is_taken_apart(self, settings, fits):
        conv = torch.nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1, **settings})
        assert fused.is_plain_convolution(conv) is fits

    def test_linear_projections_too(self):
        unet = tiny.small_unet(use_linear_projection=True).requires_grad_(False).eval()
        x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 16)
        expected = unet(x, 1, encoder_hidden_states=text).sample
        assert fused.fuse_blocks(unet) == 17
        torch.testing.assert_close(unet(x, 1, encoder_hidden_states=text).sample, expected)


class TestAttention:
    """Which layers are asked to use cuDNN; without it they compute as ever."""

    def test_graphs_with_it_may_be_kept_on_disk(self, monkeypatch):
        marked = {}
        monkeypatch.setattr(import_module("torch._inductor.config"), "unsafe_marked_cacheable_functions", marked)
        compile_blocks(tiny.small_unet(), "eager")
        for name in ("_backend_from_string", "_sdpa_kernel"):  # what torch calls inside `sdpa_kernel`
            assert callable(getattr(torch.nn.attention, name))
            assert f"torch.nn.attention.{name}" in marked

    def test_heads_of_64_alone(self):
        unet = tiny.small_unet(attention_head_dim=1, block_out_channels=(64, 128), norm_num_groups=8)
        x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 16)
        expected = unet(x, 1, encoder_hidden_states=text).sample
        layers = [layer for layer in unet.modules() if isinstance(layer, Attention)]
        narrow = [layer for layer in layers if layer.inner_dim == 64]
        assert prefer_cudnn(unet) == len(narrow)
        assert 0 < len(narrow) < len(layers)
        assert all(isinstance(layer.processor, CudnnAttention) for layer in narrow)
        torch.testing.assert_close(unet(x, 1, encoder_hidden_states=text).sample, expected)

    def test_a_processor_of_ones_own_is_kept(self):
        unet = tiny.small_unet(attention_head_dim=1, block_out_channels=(64, 64), norm_num_groups=8)
        unet.set_attn_processor(AttnProcessor())
        assert prefer_cudnn(unet) == 0

    def test_a_processor_has_none_of_it(self):
        assert not is_cudnn_faster(torch.device("cpu"))

    @pytest.mark.parametrize(
        ("capability", "hip", "version", "faster"),
        [
            ((9, 0), None, 91900, True),
            ((9, 0), None, 91800, False),
            ((9, 0), None, None, False),
            ((9, 0), "6.4", 3004000, False),
            ((8, 9), None, 91900, False),
            ((10, 0), None, 91900, False),
        ],
    )
    def test_only_cards_of_the_kind_that_was_measured(self, monkeypatch, capability, hip, version, faster):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
        assert is_cudnn_faster(torch.device("cuda")) is faster
