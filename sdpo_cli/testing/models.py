"""The laws of a base model."""

import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sdpo_cli.api.tensors import AdapterOptions, BaseModel, Conditioning
from sdpo_cli.maths import TRANSITIONS, Kernel, Schedule, kernel_for, step_mean
from sdpo_cli.testing.laws import BrokenLawError, Stage, close, keep, noise, require, require_floats

PROMPTS = ("a red cat", "a dog on the moon")


def check_base_model(model: BaseModel, prompts: Sequence[str] = PROMPTS, steps: int = 2) -> None:
    """Levels fall, prompts do not touch each other, pictures are pictures, and the adapter starts, trains and is saved.

    Afterwards the model carries an adapter. PluginError names the law that is broken.
    """
    keep(model_laws(model, prompts, steps))


def model_laws(model: BaseModel, prompts: Sequence[str] = PROMPTS, steps: int = 2) -> list[Stage]:
    """The laws of `check_base_model`; those of the adapter come last and in the order of its life."""
    trial = _Trial(model, prompts, steps)
    return [
        {
            "a model has an identity": lambda: require(bool(model.identity), "it is empty"),
            "the sampler's transition is known": trial.transition,
        },
        {
            "a schedule has the steps asked for": trial.steps_asked_for,
            "levels lie in 0..1": trial.levels,
            "every step has less noise": trial.less_noise,
            "timesteps fall": trial.timesteps,
        },
        {"axis 0 of the conditioning is the prompt": trial.prompt_axis},
        {"a prompt's conditioning is its own": trial.conditioning_alone},
        {"clean estimates are finite float32 latents": lambda: require(bool(trial.estimates), "there are none")},
        {"a clean estimate is its picture's own": trial.estimate_alone},
        {"decoded pictures are finite float32": trial.decoded},
        {"pictures lie in 0..1": trial.pictures_in_range},
        {"there is no adapter at first": trial.no_adapter},
        {"an adapter can be trained": trial.adapter_trainable},
        {"an adapter is float32": trial.adapter_float32},
        {"a fresh adapter changes nothing": trial.fresh_adapter},
        {"gradients reach the adapter": trial.gradients},
        {"a trained adapter changes pictures": trial.trained_adapter},
        {"without_adapter gives the base model": trial.without_adapter},
        {"a saved adapter loads again": trial.round_trip},
    ]


class _Trial:
    """A model under trial. What several laws look at is worked out once, when first wanted."""

    def __init__(self, model: BaseModel, prompts: Sequence[str], steps: int) -> None:
        self.model, self.prompts, self.steps = model, prompts, steps

    @cached_property
    def schedule(self) -> Schedule:
        return self.model.schedule(self.steps)

    @cached_property
    def kernel(self) -> Kernel:
        sampler = self.model.sampler
        return kernel_for(self.schedule, sampler.transition, sampler.eta).to(self.model.device)

    @cached_property
    def conditioning(self) -> Conditioning:
        return self.model.encode(self.prompts)

    @cached_property
    def x_t(self) -> Tensor:
        return noise(len(self.prompts), *self.model.latent_shape).to(self.model.device)

    def at(self, step: int, count: int) -> Kernel:
        """The level of a step for `count` pictures."""
        return self.kernel.at(torch.full((count,), step, device=self.model.device))

    def denoise(self, step: int, x_t: Tensor) -> Tensor:
        """The clean estimates of the first prompts' pictures."""
        return self.model.denoise(x_t, self.at(step, len(x_t)), self.model.encode(self.prompts[: len(x_t)]))

    def first_estimate(self) -> Tensor:
        """The clean estimate of the noisiest step."""
        return self.denoise(0, self.x_t).detach()

    def transition(self) -> None:
        transition = self.model.sampler.transition
        require(transition in TRANSITIONS, f"{transition} is none of {list(TRANSITIONS)}")

    def steps_asked_for(self) -> None:
        require(len(self.schedule) == self.steps, f"it has {len(self.schedule)}, not {self.steps}")

    def levels(self) -> None:
        schedule = self.schedule
        levels = torch.cat([schedule.alpha, schedule.sigma, schedule.alpha_next, schedule.sigma_next])
        require(bool(((levels >= 0) & (levels <= 1)).all()), "alpha or sigma does not")

    def less_noise(self) -> None:
        sigma = self.schedule.sigma
        falls = bool((self.schedule.sigma_next < sigma).all()) and bool((sigma.diff() < 0).all())
        require(falls, f"sigma is {sigma.tolist()}")

    def timesteps(self) -> None:
        timestep = self.schedule.timestep
        require(bool((timestep.diff() < 0).all()), f"they are {timestep.tolist()}")

    def prompt_axis(self) -> None:
        for name, tensor in self.conditioning.items():
            require(len(tensor) == len(self.prompts), f"{name} has {len(tensor)} of {len(self.prompts)}")

    def conditioning_alone(self) -> None:
        alone = self.model.encode(self.prompts[:1])
        for name, tensor in self.conditioning.items():
            same = tensor[:1].shape == alone[name].shape and close(tensor[:1], alone[name])
            require(same, f"{name} differs when it is encoded alone")

    @cached_property
    def estimates(self) -> list[tuple[Tensor, Tensor]]:
        """Latent and clean estimate of every step, its noise left at zero; each estimate is checked."""
        found, x_t = [], self.x_t
        with torch.no_grad():
            for step in range(len(self.kernel)):
                x0 = self.denoise(step, x_t)
                try:
                    require_floats(x0, tuple(self.x_t.shape))
                except BrokenLawError as fault:
                    raise BrokenLawError(f"at step {step} {fault}") from None
                found.append((x_t, x0))
                x_t = step_mean(x_t, x0, self.at(step, len(x_t)))
        return found

    def estimate_alone(self) -> None:
        with torch.no_grad():
            for step, (x_t, x0) in enumerate(self.estimates):
                require(close(self.denoise(step, x_t[:1]), x0[:1]), f"step {step} differs when taken alone")

    @cached_property
    def pictures(self) -> Tensor:
        return self.model.decode(self.estimates[-1][1])

    def decoded(self) -> None:
        require_floats(self.pictures, (len(self.prompts), 3, *self.pictures.shape[-2:]))

    def pictures_in_range(self) -> None:
        low, high = self.pictures.min(), self.pictures.max()
        require(bool(low >= 0) and bool(high <= 1), f"they span {low:.3g}..{high:.3g}")

    def no_adapter(self) -> None:
        count = len(self.model.trainable())
        require(count == 0, f"trainable() names {count} weights")

    @cached_property
    def base(self) -> Tensor:
        """The clean estimate without an adapter."""
        return self.estimates[0][1]

    def adapter_trainable(self) -> None:
        self.model.add_adapter(AdapterOptions(rank=2, alpha=2.0))
        weights = self.model.trainable()
        require(bool(weights) and all(weight.requires_grad for weight in weights.values()), "it cannot")

    def adapter_float32(self) -> None:
        require(all(weight.dtype == torch.float32 for weight in self.model.trainable().values()), "it is not")

    def fresh_adapter(self) -> None:
        require(close(self.first_estimate(), self.base), "the clean estimate differs")

    def gradients(self) -> None:
        weights = list(self.model.trainable().values())
        gradients = torch.autograd.grad(self.denoise(0, self.x_t).square().mean(), weights, allow_unused=True)
        reached = any(gradient is not None and bool(gradient.any()) for gradient in gradients)
        require(reached, "all are zero")

    @cached_property
    def trained(self) -> Tensor:
        """The clean estimate after the adapter's weights have been changed."""
        with torch.no_grad():
            for index, weight in enumerate(self.model.trainable().values()):
                weight.add_(noise(*weight.shape, seed=index).to(weight) * 0.1)
        return self.first_estimate()

    def trained_adapter(self) -> None:
        require(not close(self.trained, self.base), "the clean estimate is the base model's")

    def without_adapter(self) -> None:
        with self.model.without_adapter():
            require(close(self.first_estimate(), self.base), "the clean estimate differs")

    @torch.no_grad()
    def round_trip(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_adapter(Path(folder))
            for weight in self.model.trainable().values():
                weight.zero_()
            self.model.load_adapter(Path(folder))
        require(close(self.first_estimate(), self.trained), "the clean estimate differs")
