"""What the base model, the adapter left out, says of the states that the policy visited."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.tensors import BaseModel
from sdpo_cli.engine.rollout import Rollouts, denoise_rollouts, take
from sdpo_cli.engine.setup import Setup
from sdpo_cli.maths import gaussian_kl, step_mean

LOGGED_PAIRS = 4
"""Prompts whose rollouts tell the epoch's divergence from the base model where the loss does not need all of them."""


@torch.no_grad()
def with_reference(
    model: BaseModel, rollouts: Rollouts, actions: Sequence[int], batch: int, prompts: int | None = None
) -> Rollouts:
    """The rollouts with the base model's clean estimates at the steps `actions`, of the first `prompts` prompts or all.

    One network evaluation a state, those of `batch` prompts and actions at a time. Elsewhere the estimates are 0.
    """
    reference, device = torch.zeros_like(rollouts.x0), rollouts.x0.device
    pairs = torch.arange(len(rollouts.draw) if prompts is None else prompts)
    with model.without_adapter(), torch.compiler.set_stance("force_eager"):  # not worth graphs of its own
        for some in torch.cartesian_prod(torch.tensor(actions), pairs).split(batch):
            shared = some[:, 0] < rollouts.common[some[:, 1]]
            step, pair = some.to(device, non_blocking=True).unbind(-1)
            known, x_t = take(rollouts.draw.conditioning, pair), rollouts.x_t[:, pair, step]
            reference[:, pair, step] = denoise_rollouts(model, x_t, rollouts.kernel.at(step), known, shared)
    return replace(rollouts, reference_x0=reference)


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
    setup: Setup, rollouts: Rollouts, actions: Sequence[int], batch: int
) -> tuple[Rollouts, dict[str, float]]:
    """The rollouts with what the loss needs of the base model, and how far the policy is from it.

    Where all weights are trained, the base model's are fetched only if the loss needs them; else the log has no number.
    """
    needed = setup.objective.plan.reference or setup.recipe.train.kl > 0
    if not needed and setup.recipe.model.train == "full":
        return rollouts, {}
    logged = min(LOGGED_PAIRS, len(rollouts.draw))
    compared = with_reference(setup.model, rollouts, actions, batch, prompts=None if needed else logged)
    return compared if needed else rollouts, {"kl_base": kl_from_base(compared, actions, logged)}
