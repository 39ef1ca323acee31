"""The checks of parity.py for the UNet families: tiny random pipelines against the official diffusers ones."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import tiny
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from parity import Case
from torch import Tensor

from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import BaseModel, LearningPlan
from sdpo_cli.builtin.models import load_checkpoint, load_xl_checkpoint
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.engine.evaluating.sampling import sample_latents
from sdpo_cli.engine.learning.rollout import encode_distinct, roll_out
from sdpo_cli.engine.learning.update import replay
from sdpo_cli.maths import kernel_for, with_floor

SEEDS, TEXTS = [0, 1, 12345], ["cat", "two dogs", "owl"]
STEPS = (1, 2, 4, 8)
LEADING = {"timestep_spacing": "leading"}


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint: how a tiny one is saved, which pipeline draws it, and its guidance."""

    name: str
    save: Callable[[Path], Path]
    pipeline: Any
    guidance: float | None = None

    @cache  # noqa: B019 (as many as there are families)
    def load(self, folder: Path) -> BaseModel:
        """The checkpoint as a base model."""
        return self.loaded(folder, "float32")

    @cache  # noqa: B019
    def adapted(self, folder: Path, dtype: str) -> BaseModel:
        """The same with a random adapter."""
        return tiny.with_random_adapter(self.loaded(folder, dtype))

    def loaded(self, folder: Path, dtype: str) -> BaseModel:
        """A base model of its own."""
        load = load_xl_checkpoint if self.pipeline is StableDiffusionXLPipeline else load_checkpoint
        return load(UNetOptions(path=str(self.saved(folder)), guidance=self.guidance), LoadContext(dtype=dtype))

    @cache  # noqa: B019
    def official(self, folder: Path) -> Any:
        """The checkpoint as diffusers' own pipeline."""
        unchecked = {} if self.pipeline is StableDiffusionXLPipeline else {"safety_checker": None}
        pipeline = self.pipeline.from_pretrained(self.saved(folder), **unchecked)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def saved(self, folder: Path) -> Path:
        """The checkpoint in `folder`, saved there if it is not yet."""
        path = folder / str(FAMILIES.index(self))
        return path if path.exists() else self.save(path)

    def official_latents(self, pipeline: Any, steps: int, output: str = "latent") -> Tensor:
        """What the official pipeline draws from `SEEDS`; pictures where `output` is `pt`."""
        return pipeline(
            TEXTS,
            num_inference_steps=steps,
            guidance_scale=1.0 if self.guidance is None else self.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
            output_type=output,
        ).images


SD, XL = tiny.save_pipeline, tiny.save_xl_pipeline
LCM = partial(SD, kind=LCMScheduler, guidance_width=16)
FAMILIES = (
    Family("Stable Diffusion, DDIM trailing (Hyper-SD15)", partial(SD, prediction="epsilon"), StableDiffusionPipeline),
    Family(
        "Stable Diffusion 2, v, DDIM leading",
        partial(SD, prediction="v_prediction", **LEADING),
        StableDiffusionPipeline,
    ),
    Family("SD-Turbo, Euler trailing", partial(SD, kind=EulerDiscreteScheduler), StableDiffusionPipeline),
    Family(
        "Stable Diffusion 1, guidance 7.5, DDIM leading", partial(SD, **LEADING), StableDiffusionPipeline, guidance=7.5
    ),
    Family(
        "LCM, embedded guidance 8",
        partial(LCM, pipeline=LatentConsistencyModelPipeline),
        LatentConsistencyModelPipeline,
        guidance=8.0,
    ),
    Family(
        "SDXL-Turbo, Euler ancestral trailing",
        partial(XL, kind=EulerAncestralDiscreteScheduler),
        StableDiffusionXLPipeline,
    ),
    Family("SDXL-Lightning, Euler trailing", XL, StableDiffusionXLPipeline),
    Family(
        "SDXL-Lightning in 1 step, sample, Euler trailing", partial(XL, prediction="sample"), StableDiffusionXLPipeline
    ),
    Family("Hyper-SDXL, DDIM trailing", partial(XL, kind=DDIMScheduler), StableDiffusionXLPipeline),
    Family("SDXL, guidance 5, Euler leading", partial(XL, **LEADING), StableDiffusionXLPipeline, guidance=5.0),
    Family(
        "LCM-SDXL, embedded guidance 8",
        partial(XL, kind=LCMScheduler, guidance_width=16),
        StableDiffusionXLPipeline,
        guidance=8.0,
    ),
)


def latents(family: Family, folder: Path) -> float:
    """Largest difference of latents over k = 1, 2, 4, 8, from the same start and the same noise of every step."""
    model, official = family.load(folder), family.official(folder)
    return max(tiny.biggest_difference(ours(model, k), family.official_latents(official, k)) for k in STEPS)


def pictures(family: Family, folder: Path) -> float:
    """Largest difference of decoded 2-step pictures, of 1."""
    model = family.load(folder)
    return tiny.biggest_difference(
        model.decode(ours(model, 2)), family.official_latents(family.official(folder), 2, "pt")
    )


def ours(model: BaseModel, steps: int) -> Tensor:
    """What we draw from `SEEDS`."""
    kernel = kernel_for(model.schedule(steps), model.sampler.transition, model.sampler.eta)
    return sample_latents(model, kernel, encode_distinct(model, TEXTS), SEEDS)


def levels(family: Family, folder: Path) -> float:
    """Largest difference of timesteps, and of σ / α relative to the scheduler's own table."""
    model, scheduler = family.load(folder), family.official(folder).scheduler
    worst = 0.0
    for k in STEPS:
        schedule = model.schedule(k)
        scheduler.set_timesteps(k)
        timestep = scheduler.timesteps.double()
        cumprod = scheduler.alphas_cumprod[timestep.long()].double()
        sigma = scheduler.sigmas[:-1].double() if hasattr(scheduler, "sigmas") else ((1 - cumprod) / cumprod).sqrt()
        off = schedule.sigma / schedule.alpha / sigma
        worst = max(worst, tiny.biggest_difference(schedule.timestep, timestep), float((off - 1).abs().max()))
    return worst


def replayed(dtype: str, family: Family, folder: Path) -> float:
    """Largest difference between sampled and replayed log-probabilities, the steps mixed as in an update."""
    model = family.adapted(folder, dtype)
    kernel = kernel_for(with_floor(model.schedule(4)), model.sampler.transition, 1.0)
    rollouts = roll_out(model, kernel, tiny.draw(model), LearningPlan(), 0, 2)
    pairs = torch.arange(5)
    with torch.no_grad():
        log_prob = replay(model, rollouts, pairs, pairs % 4).log_prob
    return tiny.biggest_difference(log_prob, rollouts.log_prob[:, pairs, pairs % 4])


def exported(family: Family, folder: Path) -> float:
    """Largest difference of 4-step latents between us and the official pipeline with our adapter loaded."""
    model, official = family.adapted(folder, "float32"), family.official(folder)
    adapter = family.saved(folder) / "adapter"
    model.save_adapter(adapter)
    official.load_lora_weights(adapter)
    theirs = family.official_latents(official, 4)
    official.unload_lora_weights()
    return tiny.biggest_difference(ours(model, 4), theirs)


CHECKS: tuple[tuple[str, float, Callable[[Family, Path], float]], ...] = (
    ("timesteps and σ", 1e-6, levels),
    ("latents, 1 to 8 steps", 1e-4, latents),
    ("pictures, 2 steps", 1e-4, pictures),
    ("exported adapter in diffusers", 1e-4, exported),
    ("log-probabilities replayed", 1e-5, partial(replayed, "float32")),
    ("the same in bfloat16", 2e-2, partial(replayed, "bfloat16")),
)
CASES = [
    Case(family.name, check, bound, partial(measure, family)) for family in FAMILIES for check, bound, measure in CHECKS
]
