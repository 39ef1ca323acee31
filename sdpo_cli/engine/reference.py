"""What the base model, the adapter left out, says of the states that the policy visited."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdpo_cli.api.tensors import BaseModel
from sdpo_cli.engine.rollout import Rollouts, denoise_rollouts, take
from sdpo_cli.engine.setup import Setup
from sdpo_cli.maths import gaussian_kl, step_mean

LOGGED_PAIRS = 4
"""Prompts whose rollouts tell the epoch's divergence from the base model where the loss does not need all of them."""


@torch.no_grad()
def with_reference(model: BaseModel, rollouts: Rollouts, places: Int[Tensor, "N 2"], batch: int) -> Rollouts:
    """The rollouts with the base model's clean estimates at the given (action, pair), which are on the CPU.

    One network evaluation a state, those of `batch` places at a time. Elsewhere the estimates are 0.
    """
    reference, device = torch.zeros_like(rollouts.x0), rollouts.x0.device
    with model.without_adapter(), torch.compiler.set_stance("force_eager"):  # not worth graphs of its own
        for some in places.split(batch):
            shared = some[:, 0] < rollouts.common[some[:, 1]]
            step, pair = some.to(device, non_blocking=True).unbind(-1)
            known, x_t = take(rollouts.draw.conditioning, pair), rollouts.x_t[:, pair, step]
            reference[:, pair, step] = denoise_rollouts(model, x_t, rollouts.kernel.at(step), known, shared)
    return replace(rollouts, reference_x0=reference)


Reference = Callable[[BaseModel, Rollouts, Tensor, int], Rollouts]
"""What `with_reference` does."""


def places_of(actions: Sequence[int], pairs: int) -> Int[Tensor, "N 2"]:
    """Every (action, pair) of the first `pairs` pairs."""
    return torch.cartesian_prod(torch.tensor(actions), torch.arange(pairs))


def kl_from_base(rollouts: Rollouts, actions: Sequence[int], prompts: int) -> float:
    """KL divergence of the sampling policy from the base model, nats per element, mean over the first prompts' actions.

    Exact: both are Gaussians of one std. Needs `with_reference`.
    """
    divergences: list[Float[Tensor, "R B"]] = []
    for step in actions:
        x_t, x0, reference = (
            states[:, :prompts, step] for states in (rollouts.x_t, rollouts.x0, rollouts.reference_x0)
        )
        at = rollouts.kernel.at(torch.full(x0.shape[:2], step, device=x0.device))
        divergences.append(gaussian_kl(step_mean(x_t, x0, at), step_mean(x_t, reference, at), at.std))
    return float(torch.stack(divergences).mean())


def compared_with_base(
    setup: Setup, rollouts: Rollouts, actions: Sequence[int], batch: int, reference: Reference = with_reference
) -> tuple[Rollouts, dict[str, float]]:
    """The rollouts with what the loss needs of the base model, and how far the policy is from it.

    `reference` asks the base model.

    Where all weights are trained, the base model's are fetched only if the loss needs them; else the log has no number.
    """
    needed = setup.objective.plan.reference or setup.recipe.train.kl > 0
    if not needed and setup.recipe.model.train == "full":
        return rollouts, {}
    logged = min(LOGGED_PAIRS, len(rollouts.draw))
    places = places_of(actions, len(rollouts.draw) if needed and not setup.objective.plan.branched else logged)
    if needed and setup.objective.plan.branched:
        places = torch.cat([places, torch.stack([rollouts.common - 1, torch.arange(len(rollouts.draw))], dim=1)])
    compared = reference(setup.model, rollouts, places, batch)
    return compared if needed else rollouts, {"kl_base": kl_from_base(compared, actions, logged)}
