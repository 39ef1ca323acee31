"""The checks of tests/engine/parity.py for the transformer families, on the tiny random pipelines of flow_tiny.py."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import diffusers
import flow_tiny
import tiny
import torch
from flow_texts import TEXTS
from parity import Case
from sdpo_model_flow.base import FlowModel
from sdpo_model_flow.packing import pack
from torch import Tensor

from sdpo_cli.api import LoadContext, Prompt
from sdpo_cli.api.tensors import BaseModel, LearningPlan
from sdpo_cli.engine.evaluating.sampling import sample_latents
from sdpo_cli.engine.learning.rollout import Draw, encode_distinct, roll_out
from sdpo_cli.engine.learning.update import replay
from sdpo_cli.maths import kernel_for
from sdpo_cli.registry import load_registry

SEEDS = [0, 1, 12345]
STEPS = (1, 2, 4, 8)
PROMPTS = tuple(map(Prompt, TEXTS))


@dataclass(frozen=True)
class Family:
    """A kind of checkpoint: a row of the table, and a tiny pipeline of flow_tiny.py."""

    row: str
    name: str

    @property
    def tiny(self) -> flow_tiny.Tiny:
        """How the tiny pipeline is made and drawn with."""
        return flow_tiny.TINY[self.name]

    def saved(self, folder: Path) -> Path:
        """The checkpoint in `folder`, saved there if it is not yet."""
        path = folder / self.name
        return path if path.exists() else flow_tiny.save(self.name, path)

    def load(self, folder: Path, dtype: str = "float32", **options: Any) -> BaseModel:
        """The checkpoint as a base model, found by its folder."""
        chosen = load_registry().model(str(self.saved(folder)), {**self.tiny.options, **options})
        return chosen.load(LoadContext(dtype=dtype))

    def official(self, folder: Path) -> Any:
        """The checkpoint as diffusers' own pipeline."""
        pipeline = diffusers.DiffusionPipeline.from_pretrained(self.saved(folder))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def as_official(self, model: BaseModel, drawn: Tensor) -> Tensor:
        """Our latents in the form in which the official pipeline gives them."""
        if self.name == "flux2-klein":
            return model.to_latents(drawn, model.vae)
        return pack(drawn) if self.name in ("flux", "flux-dev", "qwen-image") else drawn


FAMILIES = (
    Family("SD3.5, shift 3", "sd3"),
    Family("FLUX.1 schnell", "flux"),
    Family("FLUX.1 dev, embedded guidance 3.5", "flux-dev"),
    Family("FLUX.2 klein", "flux2-klein"),
    Family("SANA-Sprint, embedded guidance 4.5", "sana-sprint"),
    Family("Z-Image, shift 3", "z-image"),
    Family("Qwen-Image", "qwen-image"),
)
BY_NAME = {family.name: family for family in FAMILIES}


@dataclass(frozen=True)
class Drawn:
    """What an official pipeline drew from `SEEDS`: latents or pictures, and the timesteps and σ it went through."""

    drawn: Tensor
    timestep: Tensor
    sigma: Tensor


def draw_officially(family: Family, pipeline: Any, steps: int, output: str = "latent") -> Drawn:
    """The same start, and the same noise of every step, as `ours`."""
    between = {"intermediate_timesteps": None} if family.name == "sana-sprint" and steps != 2 else {}
    drawn = pipeline(
        prompt=list(TEXTS),
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type=output,
        height=family.tiny.options["height"],
        width=family.tiny.options["width"],
        **family.tiny.call,
        **between,
    ).images
    timestep = pipeline.scheduler.timesteps[:steps]
    sigma = timestep.sin() if family.name == "sana-sprint" else pipeline.scheduler.sigmas[:steps]
    return Drawn(drawn, timestep, sigma)


@cache
def bare(family: Family, folder: Path) -> BaseModel:
    """The checkpoint as a base model that nobody changes."""
    return family.load(folder)


@cache
def official_runs(family: Family, folder: Path) -> dict[int, Drawn]:
    """The official pipeline with every number of steps."""
    pipeline = family.official(folder)
    return {k: draw_officially(family, pipeline, k) for k in STEPS}


def our_latents(model: BaseModel, steps: int) -> Tensor:
    """What we draw from `SEEDS`."""
    kernel = kernel_for(model.schedule(steps), model.sampler.transition, model.sampler.eta)
    return sample_latents(model, kernel, encode_distinct(model, TEXTS), SEEDS)


def ours(family: Family, model: BaseModel, steps: int) -> Tensor:
    """The same in the form in which the official pipeline gives latents."""
    return family.as_official(model, our_latents(model, steps))


def levels(family: Family, folder: Path) -> float:
    """Largest difference of timesteps and of σ from those that the official pipeline went through."""
    model, worst = bare(family, folder), 0.0
    for k, official in official_runs(family, folder).items():
        schedule = model.schedule(k)
        worst = max(worst, tiny.biggest_difference(schedule.timestep, official.timestep))
        worst = max(worst, tiny.biggest_difference(schedule.sigma, official.sigma))
    return worst


def latents(family: Family, folder: Path) -> float:
    """Largest difference of latents over k = 1, 2, 4, 8, from the same start and the same noise of every step."""
    model, official = bare(family, folder), official_runs(family, folder)
    return max(tiny.biggest_difference(ours(family, model, k), official[k].drawn) for k in STEPS)


def pictures(family: Family, folder: Path) -> float:
    """Largest difference of decoded 2-step pictures, of 1."""
    model = bare(family, folder)
    official = draw_officially(family, family.official(folder), 2, "pt").drawn
    return tiny.biggest_difference(model.decode(our_latents(model, 2)), official)


def exported(family: Family, folder: Path) -> float:
    """Largest difference of 4-step latents between us and the official pipeline with our adapter loaded."""
    model, official = tiny.with_random_adapter(family.load(folder)), family.official(folder)
    adapter = family.saved(folder) / "adapter"
    model.save_adapter(adapter)
    official.load_lora_weights(adapter)
    return tiny.biggest_difference(ours(family, model, 4), draw_officially(family, official, 4).drawn)


@torch.no_grad()
def replayed(dtype: str, family: Family, folder: Path) -> float:
    """Largest difference between sampled and replayed log-probabilities, the steps mixed as in an update."""
    model = tiny.with_random_adapter(family.load(folder, dtype))
    transition = "cps" if isinstance(model, FlowModel) else "renoise"
    kernel = kernel_for(model.schedule(4), transition, 0.7)
    draw = Draw(PROMPTS, 0, encode_distinct(model, TEXTS))
    rollouts = roll_out(model, kernel, draw, LearningPlan(), 0, 2)
    actions, pairs, worst = torch.arange(4)[kernel.std > 0], torch.arange(len(PROMPTS)), 0.0
    for shift in range(len(actions)):
        step = actions[(pairs + shift) % len(actions)]
        log_prob = replay(model, rollouts, pairs, step).log_prob
        worst = max(worst, tiny.biggest_difference(log_prob, rollouts.log_prob[:, pairs, step]))
    return worst


CHECKS: tuple[tuple[str, float, Callable[[Family, Path], float]], ...] = (
    ("timesteps and σ", 1e-6, levels),
    ("latents, 1 to 8 steps", 1e-4, latents),
    ("pictures, 2 steps", 1e-4, pictures),
    ("exported adapter in diffusers", 1e-4, exported),
    ("log-probabilities replayed", 1e-5, partial(replayed, "float32")),
    ("the same in bfloat16", 2e-2, partial(replayed, "bfloat16")),
)
CASES = [
    Case(family.row, check, bound, partial(measure, family)) for family in FAMILIES for check, bound, measure in CHECKS
]
