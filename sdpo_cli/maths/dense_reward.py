"""Dense reward prediction: a reward for every step from three queried ones, by similarity of the clean estimates.

Source: arXiv 2411.11727, framework figure; the published code's `latents` similarities.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

AnchorRule = Literal["interior", "any", "middle"]
Predictor = Literal["cosine", "sharpened", "arc"]

SHARPNESS = 0.1
"""Temperature of the sharpened weights: cosines of few-step estimates lie within about 0.3 of each other."""


def cosine_similarities(x0: Float[Tensor, "*batch S C H W"], step: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch S"]:
    """Cosine similarity, over the flattened latent, of every step's clean estimate to that of `step`; in -1..1."""
    flat = x0.flatten(-3)
    index = step[..., None, None].expand(*step.shape, 1, flat.shape[-1])
    return torch.cosine_similarity(flat, flat.gather(-2, index), dim=-1)


def anchor_step(
    to_first: Float[Tensor, "*batch S"], to_last: Float[Tensor, "*batch S"], rule: AnchorRule, first: int = 0
) -> Int[Tensor, "*batch"]:
    """The step least like both ends: argmin_i (s_first(i) + s_last(i)), the earliest of equals.

    `interior` searches strictly between step `first` and the last (and gives the last where nothing is between);
    `any` searches all steps from `first` on; `middle` takes the step halfway, whatever the similarities.
    Differs: the published code is `any`: an endpoint can win, and does, which wastes the query.
    """
    steps = to_first.shape[-1]
    low, high = (first, steps) if rule == "any" else (first + 1, steps - 1)
    if low >= high or rule == "middle":
        step = steps - 1 if low >= high else (first + steps - 1) // 2
        return torch.full(to_first.shape[:-1], step, dtype=torch.long, device=to_first.device)
    return (to_first + to_last)[..., low:high].argmin(dim=-1) + low


def key_steps(x0: Float[Tensor, "*batch S C H W"], rule: AnchorRule, first: int = 0) -> Int[Tensor, "*batch 3"]:
    """The three steps whose reward is queried: first, last, anchor. `first` is the earliest step that needs one."""
    start = torch.full(x0.shape[:-4], first, dtype=torch.long, device=x0.device)
    last = torch.full_like(start, x0.shape[-4] - 1)
    anchor = anchor_step(cosine_similarities(x0, start), cosine_similarities(x0, last), rule, first)
    return torch.stack([start, last, anchor], dim=-1)


def predict_dense_rewards(
    similarity: Float[Tensor, "*batch K S"], reward: Float[Tensor, "*batch K"]
) -> Float[Tensor, "*batch S"]:
    """R(i) = Σ_k s_k(i) R_k / Σ_k s_k(i): the queried rewards averaged by similarity. `reward` is in its own units."""
    return (similarity * reward[..., None]).sum(-2) / similarity.sum(-2)


def predict_sharpened_rewards(
    similarity: Float[Tensor, "*batch K S"], reward: Float[Tensor, "*batch K"]
) -> Float[Tensor, "*batch S"]:
    """R(i) = Σ_k w_k(i) R_k, w = softmax_k(s_k(i) / τ) with τ = `SHARPNESS`.

    Differs: the published weights are the cosines themselves, which are so alike that they give the plain mean.
    """
    return ((similarity / SHARPNESS).softmax(-2) * reward[..., None]).sum(-2)


def interpolate_along_arc(
    x0: Float[Tensor, "*batch S C H W"], step: Int[Tensor, "*batch K"], reward: Float[Tensor, "*batch K"]
) -> Float[Tensor, "*batch S"]:
    """R(i) on the line between the queried steps before and after i, along the arc that the clean estimates draw.

    Place of a step: Σ_{j<i} ‖x0(j + 1) - x0(j)‖. Beyond the first and the last queried step, that step's reward.
    Differs: not in the paper; needs no direction of similarity, only the order of the steps.
    """
    moved = (x0.diff(dim=-4)).flatten(-3).norm(dim=-1)
    place = torch.cat([torch.zeros_like(moved[..., :1]), moved.cumsum(-1)], dim=-1)
    known, order = step.sort(dim=-1)
    value, at = reward.gather(-1, order), place.gather(-1, known)
    every = torch.arange(x0.shape[-4], device=x0.device).expand(place.shape).contiguous()
    right = torch.searchsorted(known, every).clamp(min(1, step.shape[-1] - 1), step.shape[-1] - 1)
    left = (right - 1).clamp(min=0)
    reach = (at.gather(-1, right) - at.gather(-1, left)).clamp(min=1e-12)
    share = ((place - at.gather(-1, left)) / reach).clamp(0, 1)
    return value.gather(-1, left).lerp(value.gather(-1, right), share)


def write_true_rewards(
    dense: Float[Tensor, "*batch S"], step: Int[Tensor, "*batch K"], reward: Float[Tensor, "*batch K"]
) -> Float[Tensor, "*batch S"]:
    """The dense rewards with the true ones put in at the queried steps; of equal steps the later listed counts."""
    for k in range(step.shape[-1]):
        dense = dense.scatter(-1, step[..., k : k + 1], reward[..., k : k + 1])
    return dense
