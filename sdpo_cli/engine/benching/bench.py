"""`sdpo bench`: how long an epoch takes, stage by stage, and how much of the hardware it uses."""

import time
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch._dynamo.utils import counters

import sdpo_cli
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.engine.benching.random_weights import with_random_weights
from sdpo_cli.engine.benching.record import STAGES, BenchResult, Conditions, Stage, middle
from sdpo_cli.engine.benching.utilisation import (
    Work,
    counted,
    device_name,
    matrix_rate,
    operations,
    peak_gb,
    synchronise,
)
from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.events import Event, Note, StageStarted
from sdpo_cli.engine.learning.credit import Asked, ask_rewards, assign_credit, key_rewards
from sdpo_cli.engine.learning.optimizer import make_optimizer
from sdpo_cli.engine.learning.preview import rewarded_decoder
from sdpo_cli.engine.learning.rollout import Draw, Rollouts, joined_rollouts, roll_out_parts, take
from sdpo_cli.engine.learning.update import Lesson, Update, lesson_loss, plan_updates, update_policy
from sdpo_cli.engine.memory import fitting, release, with_room
from sdpo_cli.engine.rewards.scorer import Scorer
from sdpo_cli.engine.rewards.scoring import LoadedReward
from sdpo_cli.engine.setup import Setup, adapter_options, load_setup, pick_device
from sdpo_cli.engine.training.remarks import remarks
from sdpo_cli.engine.training.shares import Seat, draw_epoch
from sdpo_cli.engine.training.snapshot import Progress, Snapshot
from sdpo_cli.engine.training.trainer import EpochEnd, Run, compared_with_base, fresh_statistics, run_epoch
from sdpo_cli.registry import ResolvedRecipe


def conditions(resolved: ResolvedRecipe, *, random_weights: bool) -> Conditions:
    """What `bench` would measure, told before anything is loaded."""
    device = pick_device(resolved.recipe.train.device)
    return Conditions(resolved.recipe.model_dump(mode="json"), random_weights, device_name(device))


def bench(
    resolved: ResolvedRecipe, *, epochs: int, repeat: int, random_weights: bool
) -> Generator[Event, None, BenchResult]:
    """Measure a recipe `repeat` times, each from loading on: the one in the middle, and the median. Writes nothing."""
    results = []
    for number in range(repeat):
        if repeat > 1:
            yield Note(f"measurement {number + 1} of {repeat}")
        results.append((yield from bench_once(resolved, epochs=epochs, random_weights=random_weights)))
        release()
    return middle(results)


def bench_once(resolved: ResolvedRecipe, *, epochs: int, random_weights: bool) -> Generator[Event, None, BenchResult]:
    """One measurement: load, a first epoch, `epochs` as in training, `epochs` with each stage waited for."""
    yield StageStarted("load", 0, 0)
    absent: Sequence[str] = ()
    if random_weights:
        resolved, absent = with_random_weights(resolved)
        if absent:
            yield Note(f"brightness stands in for {', '.join(absent)}, which would have to be downloaded")
    setup = yield from load_setup(replace(resolved, eval_rewards=(), eval_prompts=None))
    setup.model.add_adapter(adapter_options(setup.recipe.model, setup.recipe.seed))
    optimizer = make_optimizer(setup.recipe.train, setup.model.trainable().values())
    run = Run(Seat(setup), RunFolder(Path()), optimizer)
    return (yield from measure(run, epochs, random_weights=random_weights, absent=absent))


def measure(
    run: Run, epochs: int, *, random_weights: bool, absent: Sequence[str] = ()
) -> Generator[Event, None, BenchResult]:
    """The measurement itself."""
    setup, device = run.setup, run.setup.model.device
    yield StageStarted("rollout", 0, 0, "first epoch")
    first, end = timed(run, 1)
    graphs = counters["stats"]["unique_graphs"]
    several = f"{epochs} epoch{'s' if epochs > 1 else ''}"
    yield StageStarted("rollout", 0, 0, f"{several} as in training")
    whole = [timed(run, 2 + number)[0] for number in range(epochs)]
    yield StageStarted("rollout", 0, 0, f"{several} stage by stage")
    watches = [Watch(device) for _ in range(epochs)]
    staged = [staged_epoch(run, 2 + epochs + n, watch) for n, watch in enumerate(watches)][-1]
    new_graphs = counters["stats"]["unique_graphs"] - graphs
    syncs = host_syncs(run, 2 + 2 * epochs)
    yield from remarks(run.seat)
    needed, rate = epoch_operations(setup, staged), matrix_rate(device, getattr(torch, setup.recipe.model.dtype))
    return BenchResult(
        recipe=setup.recipe.model_dump(mode="json"),
        random_weights=random_weights,
        absent=absent,
        device=device_name(device),
        torch=torch.__version__,
        sdpo=sdpo_cli.__version__,
        pairs=setup.recipe.rollout.pairs,
        images=end.progress.images,
        micro_batch=run.seat.micro_batch,
        first_epoch=first,
        epochs=whole,
        stages=joined_stages(watches, needed, rate),
        matrix_rate=rate,
        epoch_operations=sum(needed.values()),
        peaks_gb=[max(watch.peaks.values()) for watch in watches],
        new_graphs=new_graphs,
        host_syncs=syncs,
        repeats=[],
    )


def timed(run: Run, epoch: int) -> tuple[float, EpochEnd]:
    """Seconds of one epoch as `sdpo train` runs it, and what it leaves."""
    snapshot = Snapshot(Progress(), fresh_statistics(run.setup), {}, {}, {})
    events, start = run_epoch(run, snapshot, epoch, check_ratio=False), time.perf_counter()
    while True:
        try:
            next(events)
        except StopIteration as stop:
            synchronise(run.setup.model.device)
            return time.perf_counter() - start, stop.value


@dataclass
class Watch:
    """Seconds and most memory of each stage, the device waited for before and after."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time and the memory inside to `name`."""
        synchronise(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        start = time.perf_counter()
        yield
        synchronise(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.peaks[name] = max(self.peaks.get(name, 0.0), peak_gb(self.device))


class PatientScorer(Scorer):
    """Keeps what it is asked until it is told to ask the rewards, so that decoding is timed by itself."""

    def __init__(self, rewards: Sequence[LoadedReward]) -> None:
        super().__init__(rewards)
        self._kept: list[tuple[Future[list[ScoreResult]], ScoreRequest]] = []

    def submit(self, request: ScoreRequest) -> "Future[list[ScoreResult]]":
        """Keep a request."""
        future: Future[list[ScoreResult]] = Future()
        self._kept.append((future, request))
        return future

    def ask(self) -> None:
        """Ask the rewards for all that is kept, and wait."""
        for future, request in self._kept:
            future.set_result(self.result(super().submit(request)))
        self._kept.clear()


@dataclass(frozen=True)
class Staged:
    """What one epoch, stage by stage, has made.

    Attributes:
        lesson: what the updates learnt from.
        updates: the optimiser steps.
        work: what the networks did before the update.
        compared: pictures in which the update's stage asked the base model.
    """

    lesson: Lesson
    updates: Sequence[Update]
    work: Work
    compared: int


def staged_epoch(run: Run, epoch: int, watch: Watch) -> Staged:
    """One epoch, a stage at a time."""
    setup, plan, micro_batch = run.setup, run.setup.objective.plan, run.seat.micro_batch
    with watch.stage("encode"):
        draw = draw_epoch(run.seat, epoch)
    with counted(setup.model) as work, PatientScorer(setup.rewards) as scorer:
        parts, asked = draw_and_decode(run.seat, scorer, draw, watch)
        with watch.stage("reward"):
            scorer.ask()
            scored = key_rewards(scorer, asked)
    rollouts = joined_rollouts(draw, parts)
    with watch.stage("credit"):
        advantage = assign_credit(rollouts, scored, plan, fresh_statistics(setup)).advantage
    with watch.stage("update"):
        actions, train = setup.actions, setup.recipe.train
        with counted(setup.model) as compared:
            rollouts, _ = compared_with_base(setup.model, plan, setup.recipe, rollouts, actions, micro_batch)
        updates = plan_updates(rollouts, actions, plan, batch=setup.batch, seed=setup.recipe.seed, epoch=epoch)
        lesson = Lesson(setup.objective, rollouts, advantage, train.kl, train.max_grad_norm)
        update_policy(setup.model, run.optimizer, lesson, updates, micro_batch)
    return Staged(lesson, updates, work, compared.network_pictures)


def draw_and_decode(seat: Seat, scorer: Scorer, draw: Draw, watch: Watch) -> tuple[list[Rollouts], list[Asked]]:
    """The rollouts part by part, and their pictures at the scorer."""
    setup, micro_batch, parts, asked = seat.setup, seat.micro_batch, [], []
    plan, seed, offload = setup.objective.plan, setup.recipe.seed, setup.recipe.rollout.offload
    rolling = roll_out_parts(setup.model, setup.kernel, draw, plan, seed, micro_batch, offload=offload)
    while True:
        with watch.stage("rollout"):
            part = next(rolling, None)
        if part is None:
            return parts, asked
        parts.append(part)
        with watch.stage("decode"):
            asked.append(ask_rewards(setup.model, scorer, part, plan, seat.decoded_at_once(micro_batch)))


def epoch_operations(setup: Setup, staged: Staged) -> dict[str, int]:
    """Operations of an epoch by stage, from those of one picture and of one pair's update."""
    model, rollouts, work = setup.model, staged.lesson.rollouts, staged.work
    pair, action = staged.updates[0].pairs[:1], staged.updates[0].step[:1]
    last = pair * 0 + setup.actions[-1]
    x_t = rollouts.pick(rollouts.x_t, pair, last)[0]
    at, conditioning = rollouts.kernel.at(last), take(rollouts.draw.conditioning, pair.to(model.device))

    @torch.no_grad()
    def predict() -> None:
        model.denoise(x_t, at, conditioning)

    def learn() -> None:
        lesson_loss(model, staged.lesson, pair, action)[0].loss.backward()

    decode, count = rewarded_decoder(model), sum(len(update.pairs) for update in staged.updates)
    pictures = rollouts.x0[:, :, -1].flatten(0, 1)[: max(1, work.decoded_pictures // work.decodes)].to(model.device)
    estimate = with_room(partial(operations, predict))
    base = 0
    if staged.compared:
        with model.without_adapter():
            base = with_room(partial(operations, predict))
    shown, fits = fitting(lambda size: operations(lambda: decode(pictures[:size])), len(pictures), "picture")
    return {
        "rollout": estimate * work.network_pictures,
        "decode": shown * work.decoded_pictures // fits,
        "update": with_room(partial(operations, learn)) * count + base * staged.compared,
    }


def joined_stages(watches: Sequence[Watch], needed: Mapping[str, int], rate: float) -> dict[str, Stage]:
    """Each stage over all epochs."""
    found = {}
    for name in STAGES:
        seconds = [watch.seconds[name] for watch in watches]
        share = needed[name] * len(seconds) / sum(seconds) / rate if name in needed else None
        found[name] = Stage(seconds, max(watch.peaks[name] for watch in watches), share)
    return found


def host_syncs(run: Run, epoch: int) -> int | None:
    """How often the host waits for the device in one epoch. None where torch cannot tell."""
    if run.setup.model.device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            timed(run, epoch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(one.message) for one in caught)
