"""True k-step sampling: the pictures of the model's own diffusers pipeline."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.api.tensors import BaseModel, Conditioning, Sampler
from sdpo_cli.engine.learning.rollout import take
from sdpo_cli.maths import Kernel, kernel_for, step_mean


@torch.no_grad()
def sample_pictures(
    model: BaseModel,
    conditioning: Conditioning,
    seeds: Sequence[int],
    steps: int,
    sampler: Sampler,
    batch: int,
) -> Float[Tensor, "B 3 H W"]:
    """Pictures 0..1 on the CPU, one a seed; the conditioning has one row a seed.

    Each picture's noise comes from `torch.Generator().manual_seed(seed)` alone, in diffusers' order (start, then one
    draw a step where η > 0): the same picture in any batch, and in the pipeline with that generator. Compiled blocks
    run uncompiled: what they were compiled for are training's batches.
    """
    kernel = kernel_for(model.schedule(steps), sampler.transition, sampler.eta).to(model.device)
    pictures = []
    with torch.compiler.set_stance("force_eager"):  # as a decorator it would load torch's compiler with this module
        for rows in torch.arange(len(seeds), device=model.device).split(batch):
            latents = sample_latents(model, kernel, take(conditioning, rows), [seeds[row] for row in rows.tolist()])
            pictures.append(model.decode(latents).cpu())
    return torch.cat(pictures)


def sample_latents(
    model: BaseModel, kernel: Kernel, conditioning: Conditioning, seeds: Sequence[int]
) -> Float[Tensor, "B C H W"]:
    """The latents at the end of all steps, one a seed."""
    sources = [torch.Generator().manual_seed(seed) for seed in seeds]
    x = kernel.initial_scale * draw(model, sources)
    noisy = bool((kernel.std > 0).any())
    for step in range(len(kernel)):
        at = kernel.at(torch.full((len(seeds),), step, device=model.device))
        x = step_mean(x, model.denoise(x, at, conditioning), at)
        if noisy:
            x = x + at.std[..., None, None, None] * draw(model, sources)
    return x


def draw(model: BaseModel, sources: Sequence[torch.Generator]) -> Float[Tensor, "B C H W"]:
    """Standard normal latents, each from its own generator, shaped as diffusers draws one picture's."""
    return torch.cat([torch.randn((1, *model.latent_shape), generator=source) for source in sources]).to(model.device)
