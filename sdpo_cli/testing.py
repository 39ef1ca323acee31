"""For plug-in authors: each check tries one object against its contract and names the law that it breaks.

    from sdpo_cli.testing import check_reward

    def test_brightness_keeps_the_contract():
        check_reward(Brightness())

`sdpo plugins check NAME` runs the same checks. All of them use small random inputs and fixed seeds.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api import BaseModelSpec, LoadContext, ObjectiveSpec, Prompt, PromptSourceSpec, RewardSpec
from sdpo_cli.api.tensors import (
    AdapterOptions,
    BaseModel,
    ImageEmbedder,
    LossBatch,
    Objective,
    Reward,
    ScoreRequest,
    ScoreResult,
)
from sdpo_cli.errors import PluginError, SdpoError
from sdpo_cli.maths import TRANSITIONS, Kernel, Schedule, kernel_for, step_mean
from sdpo_cli.registry import Chosen

PROMPTS = ("a red cat", "a dog on the moon", "")
TOLERANCE = 1e-4


def check_reward(reward: Reward, prompts: Sequence[str] = PROMPTS, size: int = 64) -> None:
    """Scores are [B], float32, finite, repeatable, of each picture alone, of any size, and leave the request as it is.

    Args:
        reward: as `load` returns it.
        prompts: what the pictures are said to show; at least two.
        size: height and width, pixels, of the pictures; others are tried too.
    PluginError names the law that is broken.
    """
    images = _noise(len(prompts), 3, size, size).sigmoid()
    kept = images.clone()
    values = _score(reward, images, prompts).values
    _law("a request is left as it is", torch.equal(images, kept), "the images were changed")
    _law("scores are repeatable", _close(_score(reward, images, prompts).values, values), "a second call differs")
    alone = torch.cat([_score(reward, images[i : i + 1], prompts[i : i + 1]).values for i in range(len(prompts))])
    _law("a picture's score is its own", _close(alone, values), "scored alone it differs from scored among others")
    _score(reward, images[:0], [])
    _score(reward, _noise(2, 3, size // 2, size + 13).sigmoid(), prompts[:2])
    for flat in (torch.zeros(2, 3, size, size), torch.ones(2, 3, size, size)):
        _score(reward, flat, prompts[:2])
    if isinstance(reward, ImageEmbedder):
        _check_embedder(reward, images)


def check_prompt_source(prompts: Sequence[Prompt]) -> None:
    """There are prompts, each a `Prompt` with a text, and metadata is what JSON can say. PluginError names the law."""
    _law("a source has prompts", len(prompts) > 0, "it is empty")
    for index, prompt in enumerate(prompts):
        _law("a source gives Prompts", isinstance(prompt, Prompt), f"number {index} is a {type(prompt).__name__}")
        said = isinstance(prompt.text, str) and prompt.text.strip() != ""
        _law("a prompt says something", said, f"number {index} is {prompt.text!r}")
        _law("metadata is what JSON can say", _is_json(prompt.metadata), f"that of number {index} is not")


def check_objective(objective: Objective) -> None:
    """The loss is a finite mean over prompts whose gradient favours the better rollout. PluginError names the law."""
    plan = objective.plan
    _law("a plan has rollouts", plan.rollouts >= 1, f"rollouts is {plan.rollouts}")
    _law("a discount lies in 0..1", 0 <= plan.gamma <= 1, f"gamma is {plan.gamma}")
    advantage = (torch.linspace(-1, 1, plan.rollouts)[:, None] + 0.25) * torch.tensor([1.0, 0.5, 2.0])
    old = _noise(plan.rollouts, 3)
    new = old.clone().requires_grad_()
    step = torch.tensor([0, 1, 2])
    result = objective.loss(LossBatch(new, old, advantage, step))
    _number("the loss", result.loss)
    for name, value in result.metrics.items():
        _number(f"metric {name}", value)
    _law("the loss depends on log_prob_new", result.loss.requires_grad, "it carries no gradient")
    (gradient,) = torch.autograd.grad(result.loss, new)
    _law("the gradient is finite", bool(gradient.isfinite().all()), "it is not")
    if plan.rollouts > 1:
        better = bool((gradient[-1] < gradient[0]).all())
        _law("descending favours the better rollout", better, "the worse rollout gains as much or more")
    order = torch.tensor([2, 0, 1])
    shuffled = objective.loss(LossBatch(new[:, order], old[:, order], advantage[:, order], step[order])).loss
    _law("the order of prompts is no matter", _close(shuffled, result.loss), "another order gives another loss")


def check_base_model(model: BaseModel, prompts: Sequence[str] = PROMPTS[:2], steps: int = 2) -> None:
    """Levels fall, prompts do not touch each other, pictures are pictures, and the adapter starts, trains and is saved.

    Afterwards the model carries an adapter. PluginError names the law that is broken.
    """
    _law("a model has an identity", bool(model.identity), "it is empty")
    transition = model.sampler.transition
    _law("the sampler's transition is known", transition in TRANSITIONS, f"{transition} is none of {list(TRANSITIONS)}")
    schedule = model.schedule(steps)
    _check_schedule(schedule, steps)
    _check_encoding(model, prompts)
    kernel = kernel_for(schedule, transition, model.sampler.eta).to(model.device)
    images = model.decode(_draw(model, kernel, prompts))
    _floats("decode", images, (len(prompts), 3, *images.shape[-2:]))
    inside = bool(((images >= 0) & (images <= 1)).all())
    _law("pictures lie in 0..1", inside, f"they span {images.min():.3g}..{images.max():.3g}")
    _check_adapter(model, kernel, prompts)


def check_spec(chosen: Chosen[Any], context: LoadContext | None = None) -> None:
    """Load a plug-in and run the check of its kind. PluginError where it breaks a law or cannot be loaded."""
    checks = {
        RewardSpec: check_reward,
        PromptSourceSpec: check_prompt_source,
        ObjectiveSpec: check_objective,
        BaseModelSpec: check_base_model,
    }
    check = next(check for kind, check in checks.items() if isinstance(chosen.spec, kind))
    loaded = chosen.load(context or LoadContext())
    try:
        check(loaded)
    except SdpoError:
        raise
    except Exception as error:
        raise PluginError(f"raised {type(error).__name__}: {error}") from error


def _law(law: str, holds: bool, fault: str) -> None:
    if not holds:
        raise PluginError(fault, place=law)


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.float(), other.float(), rtol=TOLERANCE, atol=TOLERANCE)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, Mapping)


def _number(what: str, value: Tensor) -> None:
    scalar = isinstance(value, Tensor) and value.ndim == 0 and bool(value.isfinite())
    _law(f"{what} is one finite number", scalar, f"it is {value!r}")


def _floats(what: str, value: Any, shape: tuple[int, ...]) -> None:
    """The law that `value` is a finite float32 tensor of that shape, without a gradient."""
    _law(f"{what} gives a tensor", isinstance(value, Tensor), f"it gives a {type(value).__name__}")
    _law(f"{what} gives {list(shape)}", value.shape == shape, f"it gives {list(value.shape)}")
    _law(f"{what} gives float32", value.dtype == torch.float32, f"it gives {value.dtype}")
    _law(f"{what} gives finite numbers", bool(value.isfinite().all()), f"{int((~value.isfinite()).sum())} are not")


def _score(reward: Reward, images: Float[Tensor, "B 3 H W"], prompts: Sequence[str]) -> ScoreResult:
    with torch.no_grad():
        result = reward.score(ScoreRequest(images, prompts, [{} for _ in prompts]))
    _law("score gives a ScoreResult", isinstance(result, ScoreResult), f"it gives a {type(result).__name__}")
    _floats("score", result.values, (len(prompts),))
    for name, value in result.details.items():
        _law(f"detail {name} is [B]", tuple(value.shape) == (len(prompts),), f"it is {list(value.shape)}")
    return result


def _check_embedder(reward: ImageEmbedder, images: Float[Tensor, "B 3 H W"]) -> None:
    with torch.no_grad():
        vectors = reward.embed(images)
    _floats("embed", vectors, (len(images), vectors.shape[-1]))
    _law("embeddings are unit vectors", _close(vectors.norm(dim=-1), torch.ones(len(images))), "their lengths differ")


def _check_schedule(schedule: Schedule, steps: int) -> None:
    _law("a schedule has the steps asked for", len(schedule) == steps, f"it has {len(schedule)}, not {steps}")
    levels = (schedule.alpha, schedule.sigma, schedule.alpha_next, schedule.sigma_next)
    inside = all(bool(((level >= 0) & (level <= 1)).all()) for level in levels)
    _law("levels lie in 0..1", inside, "alpha or sigma does not")
    falls = bool((schedule.sigma_next < schedule.sigma).all()) and bool((schedule.sigma.diff() < 0).all())
    _law("every step has less noise", falls, f"sigma is {schedule.sigma.tolist()}")
    _law("timesteps fall", bool((schedule.timestep.diff() < 0).all()), f"they are {schedule.timestep.tolist()}")


def _check_encoding(model: BaseModel, prompts: Sequence[str]) -> None:
    together, alone = model.encode(prompts), model.encode(prompts[:1])
    for name, tensor in together.items():
        _law(f"axis 0 of {name} is the prompt", len(tensor) == len(prompts), f"it has {len(tensor)} of {len(prompts)}")
        same = tensor[:1].shape == alone[name].shape and _close(tensor[:1], alone[name])
        _law("a prompt's conditioning is its own", same, f"{name} differs when it is encoded alone")


def _denoise(model: BaseModel, kernel: Kernel, step: int, x_t: Tensor, prompts: Sequence[str]) -> Tensor:
    at = kernel.at(torch.full((len(prompts),), step, device=model.device))
    return model.denoise(x_t, at, model.encode(prompts))


@torch.no_grad()
def _draw(model: BaseModel, kernel: Kernel, prompts: Sequence[str]) -> Tensor:
    """The last clean estimate, every step's noise left at zero; each estimate is checked."""
    x_t = _noise(len(prompts), *model.latent_shape).to(model.device)
    for step in range(len(kernel)):
        x0 = _denoise(model, kernel, step, x_t, prompts)
        _floats(f"denoise at step {step}", x0, (len(prompts), *model.latent_shape))
        alone = _denoise(model, kernel, step, x_t[:1], prompts[:1])
        _law("a clean estimate is its picture's own", _close(alone, x0[:1]), f"step {step} differs when taken alone")
        x_t = step_mean(x_t, x0, kernel.at(torch.full((len(prompts),), step, device=model.device)))
    return x0


def _check_adapter(model: BaseModel, kernel: Kernel, prompts: Sequence[str]) -> None:
    x_t = _noise(len(prompts), *model.latent_shape).to(model.device)
    base = _denoise(model, kernel, 0, x_t, prompts).detach()
    _law("there is no adapter at first", not model.trainable(), f"trainable() names {len(model.trainable())} weights")
    model.add_adapter(AdapterOptions(rank=2, alpha=2.0))
    weights = model.trainable()
    _law("an adapter can be trained", bool(weights) and all(w.requires_grad for w in weights.values()), "it cannot")
    _law("an adapter is float32", all(w.dtype == torch.float32 for w in weights.values()), "it is not")
    fresh = _denoise(model, kernel, 0, x_t, prompts)
    _law("a fresh adapter changes nothing", _close(fresh.detach(), base), "the clean estimate differs")
    gradients = torch.autograd.grad(fresh.square().mean(), list(weights.values()), allow_unused=True)
    reached = any(gradient is not None and bool(gradient.any()) for gradient in gradients)
    _law("gradients reach the adapter", reached, "all are zero")
    _check_round_trip(model, lambda: _denoise(model, kernel, 0, x_t, prompts).detach(), base)


@torch.no_grad()
def _check_round_trip(model: BaseModel, draw: Any, base: Tensor) -> None:
    for index, weight in enumerate(model.trainable().values()):
        weight.add_(_noise(*weight.shape, seed=index).to(weight) * 0.1)
    trained = draw()
    _law("a trained adapter changes pictures", not _close(trained, base), "the clean estimate is the base model's")
    with model.without_adapter():
        _law("without_adapter gives the base model", _close(draw(), base), "the clean estimate differs")
    with tempfile.TemporaryDirectory() as folder:
        model.save_adapter(Path(folder))
        for weight in model.trainable().values():
            weight.zero_()
        model.load_adapter(Path(folder))
    _law("a saved adapter loads again", _close(draw(), trained), "the clean estimate differs")
