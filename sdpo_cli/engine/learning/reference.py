"""What the base model, the adapter left out, says of the states that the policy visited."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdpo_cli.api.tensors import BaseModel, LearningPlan
from sdpo_cli.engine.learning.rollout import Rollouts, denoise_rollouts, take
from sdpo_cli.maths import gaussian_kl, step_mean
from sdpo_cli.recipe import Recipe

LOGGED_PAIRS, LOGGED = 4, 16
"""Prompts, and of their actions how many, that tell the epoch's divergence from the base model."""


Reference = Callable[[BaseModel, Rollouts, Tensor, int], Tensor]
"""What `base_estimates` does."""


@torch.no_grad()
def base_estimates(
    model: BaseModel, rollouts: Rollouts, places: Int[Tensor, "N 2"], batch: int
) -> Float[Tensor, "R N C H W"]:
    """The base model's clean estimates at the given (action, pair), which are on the CPU; where the rollouts lie.

    One network evaluation a state, those of `batch` places at a time.
    """
    shape = (len(rollouts.x0), len(places), *rollouts.x0.shape[3:])
    estimates = torch.empty(shape, device=rollouts.x0.device)
    with model.without_adapter(), torch.compiler.set_stance("force_eager"):  # not worth graphs of its own
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            step, pair = some.unbind(-1)
            x_t, shared = rollouts.pick(rollouts.x_t, pair, step), step < rollouts.common[pair]
            here, row = (one.to(model.device, non_blocking=True) for one in (step, pair))
            known = take(rollouts.draw.conditioning, row)
            found = denoise_rollouts(model, x_t, rollouts.kernel.at(here), known, shared, one_size=False)
            estimates[:, start : start + len(some)] = found
    return estimates


def with_reference(rollouts: Rollouts, places: Int[Tensor, "N 2"], estimates: Float[Tensor, "R N C H W"]) -> Rollouts:
    """The rollouts with the base model's estimates at the given (action, pair); elsewhere they are 0."""
    reference = torch.zeros_like(rollouts.x0)
    step, pair = places.to(reference.device, non_blocking=True).unbind(-1)
    reference[:, pair, step] = estimates
    return replace(rollouts, reference_x0=reference)


def places_of(actions: Sequence[int], pairs: int) -> Int[Tensor, "N 2"]:
    """Every (action, pair) of the first `pairs` pairs."""
    return torch.cartesian_prod(torch.tensor(actions), torch.arange(pairs))


def logged_places(actions: Sequence[int], pairs: int) -> Int[Tensor, "N 2"]:
    """The (action, pair) that tell the epoch's divergence: of the first pairs up to `LOGGED`, evenly spread."""
    places = places_of(actions, min(LOGGED_PAIRS, pairs))
    spread = torch.linspace(0, len(places) - 1, min(LOGGED, len(places)), dtype=torch.float64)
    return places[spread.round().long()]


def learnt_places(plan: LearningPlan, rollouts: Rollouts, actions: Sequence[int]) -> Int[Tensor, "N 2"]:
    """The (action, pair) that updates learn from: of branched rollouts each pair's branch alone."""
    pairs = len(rollouts.draw)
    if not plan.branched:
        return places_of(actions, pairs)
    return torch.stack([rollouts.common - 1, torch.arange(pairs)], dim=1)


def not_among(places: Int[Tensor, "N 2"], known: Int[Tensor, "M 2"]) -> Int[Tensor, "L 2"]:
    """The places that are not among the known ones."""
    return places[~(places[:, None] == known).all(-1).any(-1)]


def kl_from_base(rollouts: Rollouts, places: Int[Tensor, "N 2"], estimates: Float[Tensor, "R N C H W"]) -> float:
    """KL divergence of the sampling policy from the base model, nats per element, mean over the (action, pair).

    Exact: both are Gaussians of one std.
    """
    step, pair = places.unbind(-1)
    x_t, x0 = (rollouts.pick(states, pair, step) for states in (rollouts.x_t, rollouts.x0))
    at = rollouts.kernel.at(step.to(x0.device, non_blocking=True).expand(len(x0), -1))
    base = estimates.to(x0.device)
    return float(gaussian_kl(step_mean(x_t, x0, at), step_mean(x_t, base, at), at.std).mean())


def compared_with_base(
    model: BaseModel,
    plan: LearningPlan,
    recipe: Recipe,
    rollouts: Rollouts,
    actions: Sequence[int],
    batch: int,
    reference: Reference = base_estimates,
) -> tuple[Rollouts, dict[str, float]]:
    """The rollouts with what the loss needs of the base model, and how far the policy is from it.

    `reference` asks the base model.

    Where all weights are trained, the base model's are fetched only if the loss needs them; else the log has no number.
    """
    pairs, needed = len(rollouts.draw), plan.reference or recipe.train.kl > 0
    if not needed and recipe.model.train == "full":
        return rollouts, {}
    logged = logged_places(actions, pairs)
    learnt = learnt_places(plan, rollouts, actions) if needed else logged
    places = torch.cat([logged, not_among(learnt, logged)])
    estimates = reference(model, rollouts, places, batch)
    divergence = {"kl_base": kl_from_base(rollouts, logged, estimates[:, : len(logged)])}
    return with_reference(rollouts, places, estimates) if needed else rollouts, divergence
