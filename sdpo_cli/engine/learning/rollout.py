"""Dual-state trajectory sampling: for every step the noisy state, the clean estimate and the log-probability.

Source: arXiv 2411.11727, part 1 of SDPO.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sdpo_cli.api import Prompt
from sdpo_cli.api.tensors import BaseModel, Compilable, Conditioning, LearningPlan, Offloader
from sdpo_cli.engine.learning.randomness import generator, normal, shuffled
from sdpo_cli.maths import Kernel, gaussian_log_prob, step_mean

ENCODINGS_KEPT = 1024
"""Encoded prompts kept in the host's memory at the most."""
AHEAD = 128
"""Prompts of later epochs that are encoded with new ones: offloaded encoders come to the device more rarely."""


@dataclass(frozen=True)
class Draw:
    """The prompts of one epoch. `first` is the running number of the first pair since the run began."""

    prompts: Sequence[Prompt]
    first: int
    conditioning: Conditioning

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Rollouts:
    """R rollouts of each of B prompts. The tensors lie where the network computes, or all on the CPU.

    Attributes:
        draw: what was drawn.
        kernel: the Gaussians of the S steps, where the network computes.
        x_t: noisy states, step i's in place i, the final state last.
        x0: clean estimate of every step.
        log_prob: of every sampled step; 0 where the step has no density.
        common: on the CPU, of how many steps a prompt's rollouts have the same state and clean estimate: the first
            where they start from the same noise, those up to the branch where they branch.
        reference_x0: the base model's clean estimates of the same states, where they were asked for.
    """

    draw: Draw
    kernel: Kernel
    x_t: Float[Tensor, "R B S1 C H W"]
    x0: Float[Tensor, "R B S C H W"]
    log_prob: Float[Tensor, "R B S"]
    common: Int[Tensor, " B"]
    reference_x0: Float[Tensor, "R B S C H W"] | None = None

    def pick(self, table: Shaped[Tensor, "R B S *rest"], pairs: Int[Tensor, "*N"], step: Int[Tensor, "*N"]) -> Tensor:
        """[R *N *rest]: of a table like these the given steps of the given pairs, where the network computes."""
        place = [one.to(table.device, non_blocking=True) for one in (pairs, step)]
        return table[:, place[0], place[1]].to(self.kernel.std.device, non_blocking=True)


def first_rewarded_step(plan: LearningPlan) -> int:
    """The earliest clean estimate whose reward any action is credited with: only `current` needs step 0's."""
    return 0 if plan.credit == "current" else 1


def action_steps(kernel: Kernel, plan: LearningPlan) -> list[int]:
    """The steps that carry a policy gradient: they have a density, and a reward they can change."""
    std = kernel.std.tolist()
    return [step for step in range(len(kernel) - first_rewarded_step(plan)) if std[step] > 0]


def draw_prompts(prompts: Sequence[Prompt], count: int, epoch: int, seed: int) -> list[Prompt]:
    """The `count` prompts of an epoch (from 1): every prompt once, in random order, then all again in another."""
    places = [divmod(place, len(prompts)) for place in range((epoch - 1) * count, epoch * count)]
    orders = {lap: lap_order(len(prompts), lap, seed) for lap, _ in places}
    return [prompts[orders[lap][index]] for lap, index in places]


def lap_order(count: int, lap: int, seed: int) -> list[int]:
    """The order in which the prompts come in one lap through them."""
    return shuffled(count, generator(seed, "prompts", lap))


def take(conditioning: Conditioning, index: Tensor) -> Conditioning:
    """The rows of the given prompts."""
    return {name: value[index] for name, value in conditioning.items()}


def encode_distinct(
    model: BaseModel,
    prompts: Sequence[str],
    *,
    known: dict[str, Conditioning] | None = None,
    later: Iterable[str] = (),
    batch: int = 64,
) -> Conditioning:
    """Conditioning of every prompt, each distinct text encoded once.

    `known` remembers up to `ENCODINGS_KEPT` texts from call to call, on the CPU. Where any text is new, up to `AHEAD`
    new ones of those wanted `later` are encoded with it.
    """
    known = {} if known is None else known
    new = [text for text in dict.fromkeys(prompts) if text not in known]
    if len(known) + len(new) > ENCODINGS_KEPT:
        known.clear()
        new = list(dict.fromkeys(prompts))
    if new:
        new = with_later(new, known, later, min(AHEAD, ENCODINGS_KEPT - len(known) - len(new)))
    with model.encoders_at_hand() if isinstance(model, Offloader) and new else nullcontext():
        for start in range(0, len(new), batch):
            some = new[start : start + batch]
            encoded = {name: value.cpu() for name, value in model.encode(some).items()}
            for row, text in enumerate(some):
                known[text] = {name: value[row] for name, value in encoded.items()}
    rows = {name: torch.stack([known[text][name] for text in prompts]) for name in known[prompts[0]]}
    return {name: value.to(model.device, non_blocking=True) for name, value in rows.items()}


def with_later(new: Sequence[str], known: Container[str], later: Iterable[str], room: int) -> list[str]:
    """The new texts, and up to `room` more of those wanted later that are neither among them nor known."""
    found = dict.fromkeys(new)
    for text in islice(later, ENCODINGS_KEPT):  # all texts of a short list may be known
        if len(found) >= len(new) + room:
            break
        if text not in known:
            found[text] = None
    return list(found)


def denoise_rollouts(
    model: BaseModel,
    x_t: Float[Tensor, "R B C H W"],
    at: Kernel,
    conditioning: Conditioning,
    shared: Bool[Tensor, " B"],
    *,
    one_size: bool,
) -> Float[Tensor, "R B C H W"]:
    """Clean estimates of all rollouts in one network batch; a prompt whose states are shared is computed once.

    With `one_size` each state is computed, as a compiled network wants all batches equally large (`first_estimates`
    fills them with other prompts'). `at` holds the level of each prompt, [B]. `shared` is on the CPU: a device that
    must tell how large a batch is makes everybody wait.
    """
    rollouts, prompts = x_t.shape[:2]
    own = torch.ones(rollouts, prompts, dtype=torch.bool)
    own[1:] = ~shared | one_size
    place = own.flatten().cumsum(0).view(rollouts, prompts) - 1
    places = torch.where(own, place, place[:1].expand_as(place))
    index, row, places = (
        one.to(x_t.device, non_blocking=True)
        for one in (torch.arange(prompts).expand(rollouts, -1)[own], own.flatten().nonzero()[:, 0], places)
    )
    estimate = model.denoise(x_t.flatten(0, 1)[row], at.at(index), take(conditioning, index))
    return estimate[places]


def roll_out(model: BaseModel, kernel: Kernel, draw: Draw, plan: LearningPlan, seed: int, batch: int) -> Rollouts:
    """Sample all prompts of `draw`, `batch` prompts at a time; the numbers do not depend on `batch`."""
    return joined_rollouts(draw, list(roll_out_parts(model, kernel, draw, plan, seed, batch)))


def roll_out_parts(
    model: BaseModel, kernel: Kernel, draw: Draw, plan: LearningPlan, seed: int, batch: int, *, offload: bool = False
) -> Iterator[Rollouts]:
    """`roll_out`, part by part: each has the next `batch` prompts of `draw`.

    With `offload` what is sampled goes to the CPU step by step.
    """
    every = common_steps(kernel, plan, range(draw.first, draw.first + len(draw)), seed)
    known = first_estimates(model, kernel, draw, plan, seed, batch)
    for start in range(0, len(draw), batch):
        end = min(start + batch, len(draw))
        rows, numbers = torch.arange(start, end, device=model.device), range(draw.first + start, draw.first + end)
        part = Draw(draw.prompts[start : start + batch], numbers[0], take(draw.conditioning, rows))
        common = every[start:end]
        store = torch.device("cpu") if offload else model.device
        first = known[start:end] if start < len(known) else None
        trajectories = sample_trajectories(model, kernel, part.conditioning, plan, numbers, seed, common, store, first)
        yield Rollouts(part, kernel, *trajectories, common)


@torch.no_grad()
def first_estimates(
    model: BaseModel, kernel: Kernel, draw: Draw, plan: LearningPlan, seed: int, batch: int
) -> Float[Tensor, "N C H W"]:
    """Clean estimates of step 0 of the first N pairs, once for all rollouts of a pair, by a compiled network.

    Its batches have one size: these are filled with other pairs. N = 0 with fewer pairs than fill one, with rollouts
    that start each from its own noise, and for a network that computes a shared state once in any batch.
    """
    size, found = plan.rollouts * batch, [torch.empty(0, *model.latent_shape, device=model.device)]
    if plan.shared_noise and is_compiled(model):
        for start in range(0, len(draw) - size + 1, size):
            rows = torch.arange(start, start + size, device=model.device)
            numbers = range(draw.first + start, draw.first + start + size)
            x = kernel.initial_scale * initial_noise(model, plan, numbers, seed)[0]
            found.append(model.denoise(x, kernel.at(torch.zeros_like(rows)), take(draw.conditioning, rows)))
    return torch.cat(found)


def is_compiled(model: BaseModel) -> bool:
    """Whether the model wants batches of one size."""
    return isinstance(model, Compilable) and model.compiled


def joined_rollouts(draw: Draw, parts: Sequence[Rollouts]) -> Rollouts:
    """The parts of `draw` as one."""
    if len(parts) == 1:
        return replace(parts[0], draw=draw)
    x_t, x0, log_prob = (
        torch.cat([getattr(part, name) for part in parts], dim=1) for name in ("x_t", "x0", "log_prob")
    )
    return Rollouts(draw, parts[0].kernel, x_t, x0, log_prob, torch.cat([part.common for part in parts]))


def common_steps(kernel: Kernel, plan: LearningPlan, numbers: Sequence[int], seed: int) -> Int[Tensor, " B"]:
    """Of how many steps the rollouts of each pair have the same state; the action at the last of these is the branch.

    The branch is one of the actions, each as likely, and belongs to the pair's running number.
    Source: chance in one step of a trajectory alone is TempFlow-GRPO's, arXiv 2508.04324; there in groups, the other
    steps deterministic.
    """
    if not plan.branched:
        return torch.full((len(numbers),), int(plan.shared_noise))
    actions = action_steps(kernel, plan)
    orders = [shuffled(len(actions), generator(seed, "branch", number)) for number in numbers]
    return torch.tensor([actions[order[0]] + 1 for order in orders])


@torch.no_grad()
def sample_trajectories(
    model: BaseModel,
    kernel: Kernel,
    conditioning: Conditioning,
    plan: LearningPlan,
    numbers: Sequence[int],
    seed: int,
    common: Int[Tensor, " B"],
    store: torch.device,
    first: Float[Tensor, "B C H W"] | None = None,
) -> tuple[Float[Tensor, "R B S1 C H W"], Float[Tensor, "R B S C H W"], Float[Tensor, "R B S"]]:
    """x_t, x0 and log-probabilities of R rollouts of the pairs with the given running numbers, kept in `store`.

    `first` are the clean estimates of step 0, where they are known.
    """
    x = kernel.initial_scale * initial_noise(model, plan, numbers, seed)
    drawn = range(0, plan.rollouts, 2 if plan.antithetic else 1)
    sources = [generator(seed, "action", number, r) for r in drawn for number in numbers]
    states, estimates, log_probs = [x.to(store)], [], []
    for step in range(len(kernel)):
        at = kernel.at(torch.full((len(numbers),), step, device=model.device))
        if first is not None and step == 0:
            x0 = first.expand_as(x)
        else:
            x0 = denoise_rollouts(model, x, at, conditioning, step < common, one_size=is_compiled(model))
        wide = at.at(torch.arange(len(numbers), device=model.device).expand(plan.rollouts, -1))
        mean = step_mean(x, x0, wide)
        noise = normal(model.latent_shape, sources, model.device).view(len(drawn), *x.shape[1:])
        if plan.antithetic:
            noise = mirrored(noise)[: plan.rollouts]
        if plan.branched:
            here = (common == step + 1).to(model.device, non_blocking=True)[:, None, None, None]
            noise = torch.where(here, noise, noise[:1])
        x = mean + wide.std[..., None, None, None] * noise
        log_probs.append(torch.where(wide.std > 0, gaussian_log_prob(x, mean, wide.std), 0.0).to(store))
        states.append(x.to(store))
        estimates.append(x0.to(store))
    return torch.stack(states, 2), torch.stack(estimates, 2), torch.stack(log_probs, 2)


def mirrored(noise: Float[Tensor, "N ..."]) -> Float[Tensor, "M ..."]:
    """Each noise and after it its negative, M = 2 N: antithetic variates (Hammersley and Morton, 1956)."""
    return torch.stack([noise, -noise], dim=1).flatten(0, 1)


def initial_noise(
    model: BaseModel, plan: LearningPlan, numbers: Sequence[int], seed: int
) -> Float[Tensor, "R B C H W"]:
    """The noise each rollout starts from: the same for all rollouts of a pair, or each its own."""
    owners = range(1 if plan.shared_noise else plan.rollouts)
    sources = [generator(seed, "noise", number, r) for r in owners for number in numbers]
    noise = normal(model.latent_shape, sources, model.device)
    return noise.view(len(owners), len(numbers), *model.latent_shape).expand(plan.rollouts, -1, -1, -1, -1)
