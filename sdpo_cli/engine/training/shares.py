"""An epoch's work in shares: what each process of a team does of it, and what rank 0 makes of that.

Pairs are shared out as neighbours, the rows of an update by turns. Every number belongs to a pair's running number or
to an update, so that it does not depend on how many processes there are, but for the order of sums.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from sdpo_cli.api import Prompt
from sdpo_cli.api.tensors import AdapterOptions, BaseModel, Conditioning, Offloader
from sdpo_cli.engine.learning.credit import Answered, Asked, KeyRewards, answered, ask_rewards, joined_rewards
from sdpo_cli.engine.learning.reference import Reference, base_estimates
from sdpo_cli.engine.learning.rollout import (
    Draw,
    Rollouts,
    draw_prompts,
    encode_distinct,
    joined_rollouts,
    roll_out_parts,
)
from sdpo_cli.engine.learning.update import Gradients, Lesson, Numbers, Update, added, own_gradients
from sdpo_cli.engine.memory import fitting, with_room
from sdpo_cli.engine.rewards.scorer import Scorer
from sdpo_cli.engine.setup import Setup
from sdpo_cli.engine.training.team import ALONE, Team
from sdpo_cli.errors import UsageError


@dataclass
class Seat:
    """What a process has at hand for its share. Draw, rollouts, pictures and lesson are of the epoch at work.

    Attributes:
        setup: everything loaded.
        team: whom it works with.
        known: prompts encoded so far.
        micro_batch: pairs in a forward pass that fit into this process's memory.
        pictures: decoded at once that fitted into it in the epoch before; None before the first.
        scorer: asks the rewards.
        draw: the epoch's prompts, all of them.
        own: the rollouts of its share; None where it has none.
        asked: their pictures on the way to the rewards.
        lesson: what is learnt from all rollouts.
    """

    setup: Setup
    team: Team = ALONE
    known: dict[str, Conditioning] = field(default_factory=dict)
    micro_batch: int = field(init=False)
    pictures: int | None = None
    scorer: Scorer | None = None
    draw: Draw | None = None
    own: Rollouts | None = None
    asked: Sequence[Asked] = ()
    lesson: Lesson | None = None

    def __post_init__(self) -> None:
        self.micro_batch = self.setup.micro_batch

    def decoded_at_once(self, pairs: int) -> int:
        """Pictures to decode at once where so many pairs are sampled at once: no more than have fitted."""
        wanted = self.setup.decoded_at_once(pairs)
        return min(wanted, self.pictures or wanted)

    def forget(self) -> None:
        """Let go of the epoch that has ended."""
        self.draw, self.own, self.asked, self.lesson = None, None, (), None


def alike(setup: Setup) -> dict[str, str]:
    """What must be the same in all processes of a run."""
    return {**setup.about, "kind of device": setup.model.device.type}


def check_alike(setup: Setup, others: Sequence[Mapping[str, str]]) -> None:
    """At rank 0: UsageError where another process has loaded something else."""
    for rank, other in enumerate(others, start=1):
        for what, own in alike(setup).items():
            if other[what] != own:
                fault, remedy = f"{other[what]}, where rank 0 has {own}", "let all find the same files and plug-ins"
                raise UsageError(fault, place=f"rank {rank}: {what}", remedy=remedy)


def add_adapter(seat: Seat, options: AdapterOptions) -> None:
    """Make ready to train."""
    seat.setup.model.add_adapter(options)


def trained_weights(seat: Seat) -> list[nn.Parameter]:
    """The weights that are trained."""
    return list(seat.setup.model.trainable().values())


@torch.no_grad()
def weights_of(seat: Seat) -> Float[Tensor, " weights"] | None:
    """At rank 0: all trained weights, on the CPU, to be sent; None where there is nobody to send them to."""
    return parameters_to_vector(trained_weights(seat)).cpu() if seat.team.size > 1 else None


@torch.no_grad()
def take_weights(seat: Seat, weights: Float[Tensor, " weights"] | None) -> None:
    """At a worker: make the weights rank 0's."""
    if seat.team.rank > 0:
        for weight, part in parts_of(seat, weights):
            weight.copy_(part)


def parts_of(seat: Seat, vector: Float[Tensor, " weights"]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each trained weight and its part of what has a number for every one of all weights."""
    weights = trained_weights(seat)
    parts = vector.split([weight.numel() for weight in weights])
    return ((weight, part.view_as(weight)) for weight, part in zip(weights, parts, strict=True))


def draw_epoch(seat: Seat, epoch: int) -> Draw:
    """The epoch's prompts, encoded."""
    setup, recipe = seat.setup, seat.setup.recipe

    def drawn(number: int) -> list[Prompt]:
        return draw_prompts(setup.prompts, recipe.rollout.pairs, number, recipe.seed)

    prompts = drawn(epoch)
    coming = range(epoch + 1, recipe.train.epochs + 1) if is_away(setup.model) else ()
    later = (prompt.text for number in coming for prompt in drawn(number))
    conditioning = encode_distinct(setup.model, [prompt.text for prompt in prompts], known=seat.known, later=later)
    return Draw(prompts, (epoch - 1) * recipe.rollout.pairs, conditioning)


def is_away(model: BaseModel) -> bool:
    """Whether the model's text encoders come to the device for each call, so that fewer calls are cheaper."""
    return isinstance(model, Offloader) and model.offloads_encoders


def part_of(draw: Draw, span: slice) -> Draw:
    """Neighbouring pairs of a draw."""
    conditioning = {name: value[span] for name, value in draw.conditioning.items()}
    return Draw(draw.prompts[span], draw.first + span.start, conditioning)


def bare(rollouts: Rollouts) -> Rollouts:
    """The rollouts without their prompts, which every process has."""
    return replace(rollouts, draw=Draw((), rollouts.draw.first, {}))


def sampled(seat: Seat, epoch: int) -> Rollouts:
    """At rank 0: the epoch's rollouts, whose pictures are on their way to the rewards."""
    parts = seat.team.perform(sample_share, seat, weights_of(seat), epoch)
    return joined_rollouts(seat.draw, [part for part in parts if part])


def sample_share(seat: Seat, weights: Float[Tensor, " weights"] | None, epoch: int) -> Rollouts | None:
    """Roll out this process's pairs of an epoch and ask the rewards about them."""
    take_weights(seat, weights)
    seat.forget()
    seat.draw = with_room(partial(draw_epoch, seat, epoch))
    own = part_of(seat.draw, seat.team.span(len(seat.draw)))
    if not len(own):
        return None
    (seat.own, seat.asked), seat.micro_batch = fitting(partial(roll_out_and_ask, seat, own), seat.micro_batch, "pair")
    seat.pictures = min(part.batch for part in seat.asked)
    return bare(seat.own)


def roll_out_and_ask(seat: Seat, draw: Draw, batch: int) -> tuple[Rollouts, list[Asked]]:
    """Sample the draw, `batch` pairs at a time; the finished ones are scored while the next are sampled."""
    setup, scorer, pictures = seat.setup, seat.scorer, seat.decoded_at_once(batch)
    scorer.forget()  # what an attempt that ran out of memory has asked
    plan, parts, asked = setup.objective.plan, [], []
    rollout, seed = setup.recipe.rollout, setup.recipe.seed
    for part in roll_out_parts(setup.model, setup.kernel, draw, plan, seed, batch, offload=rollout.offload):
        parts.append(part)
        asked.append(ask_rewards(setup.model, scorer, part, plan, pictures))
        pictures = asked[-1].batch
    return joined_rollouts(draw, parts), asked


def scored(seat: Seat) -> KeyRewards:
    """At rank 0: the rewards of all rollouts, waited for."""
    shares = seat.team.perform(score_share, seat)
    return joined_rewards(seat.setup.rewards, [part for share in shares for part in share])


def score_share(seat: Seat) -> list[Answered]:
    """The rewards of this process's rollouts, waited for."""
    found, seat.asked = [answered(seat.scorer, part) for part in seat.asked], ()
    return found


def reference_of(seat: Seat) -> Reference:
    """At rank 0: what asks the base model about the states of the rollouts."""
    return base_estimates if seat.team.size == 1 else partial(joint_estimates, seat)


def joint_estimates(
    seat: Seat, model: BaseModel, rollouts: Rollouts, places: Int[Tensor, "N 2"], batch: int
) -> Float[Tensor, "R N C H W"]:
    """`base_estimates`, each process asked about its own rollouts."""
    shape = (len(rollouts.x0), len(places), *rollouts.x0.shape[3:])
    estimates = torch.empty(shape, device=rollouts.x0.device)
    for own, part in seat.team.perform(compare_share, seat, places):
        if part is not None:
            estimates[:, own] = part
    return estimates


def compare_share(
    seat: Seat, places: Int[Tensor, "N 2"]
) -> tuple[Bool[Tensor, " N"], Float[Tensor, "R M C H W"] | None]:
    """Which of the places are in this process's rollouts, and the base model's estimates there."""
    span = seat.team.span(len(seat.draw))
    own = (places[:, 1] >= span.start) & (places[:, 1] < span.stop)
    if not own.any():
        return own, None
    here = places[own] - torch.tensor([0, span.start])
    return own, base_estimates(seat.setup.model, seat.own, here, seat.micro_batch)


def gradients_of(seat: Seat, lesson: Lesson) -> Gradients:
    """At rank 0: what makes the gradients of the lesson's updates."""
    if seat.team.size == 1:
        return own_gradients
    seat.team.perform(take_lesson, seat, bare(lesson.rollouts), lesson.advantage)
    return partial(joint_gradients, seat)


def take_lesson(seat: Seat, rollouts: Rollouts, advantage: Float[Tensor, "R B S"]) -> None:
    """Keep what the epoch's updates learn from."""
    setup, train = seat.setup, seat.setup.recipe.train
    seat.lesson = Lesson(setup.objective, replace(rollouts, draw=seat.draw), advantage, train.kl, train.max_grad_norm)


def joint_gradients(seat: Seat, model: BaseModel, lesson: Lesson, update: Update, micro_batch: int) -> Numbers:
    """`own_gradients`, each process making that of its rows; rank 0's become the sum of all."""
    shares = seat.team.perform(learn_share, seat, weights_of(seat), update)
    for _, gradient in shares[1:]:
        if gradient is not None:
            for weight, part in parts_of(seat, gradient):
                if weight.grad is not None:
                    weight.grad += part.to(weight.device)
    return reduce(added, (numbers for numbers, _ in shares))


def learn_share(
    seat: Seat, weights: Float[Tensor, " weights"] | None, update: Update
) -> tuple[Numbers, Float[Tensor, " weights"] | None]:
    """What this process's rows of an update add to its numbers and, but at rank 0, where it stays, to its gradient."""
    take_weights(seat, weights)
    mine, trained = slice(seat.team.rank, None, seat.team.size), trained_weights(seat)

    def attempt(micro_batch: int) -> Numbers:
        for weight in trained:
            weight.grad = None
        return own_gradients(seat.setup.model, seat.lesson, update, micro_batch, mine)

    numbers, seat.micro_batch = fitting(attempt, seat.micro_batch, "pair")
    if seat.team.rank == 0 or not numbers:
        return numbers, None
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in trained]
    return numbers, parameters_to_vector(gradients).cpu()
