"""Tiny random pipelines of the real diffusers classes, and setups on them: everything an epoch needs, in moments."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import sdpo_cli
from sdpo_cli.api import LoadContext, Prompt
from sdpo_cli.api.lora_place import WEIGHTS
from sdpo_cli.api.tensors import AdapterOptions, ScoreRequest, ScoreResult
from sdpo_cli.builtin.models import load_checkpoint
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.builtin.models.stable_diffusion import StableDiffusion
from sdpo_cli.builtin.objectives.options import SdpoOptions
from sdpo_cli.builtin.objectives.sdpo import Sdpo
from sdpo_cli.engine.learning.rollout import Draw, encode_distinct
from sdpo_cli.engine.rewards.scoring import LoadedReward
from sdpo_cli.engine.setup import Setup
from sdpo_cli.maths import kernel_for, with_floor
from sdpo_cli.recipe import Choice, ModelSection, Recipe, RewardChoice, RolloutSection, TrainSection

TOKENIZER = Path(sdpo_cli.__file__).parent / "assets" / "emoji-turbo" / "tokenizer"
PROMPTS = tuple(Prompt(text) for text in ("cat", "dog", "owl", "bee", "ant"))


def save_pipeline(
    folder: Path,
    prediction: str = "epsilon",
    *,
    kind: type = DDIMScheduler,
    pipeline: type = StableDiffusionPipeline,
    guidance_width: int | None = None,
    **scheduler: object,
) -> Path:
    """A Stable Diffusion checkpoint of random weights, 16 px pictures from 4x8x8 latents, in diffusers layout.

    Args:
        folder: where it is written.
        prediction: what its scheduler says the network predicts.
        kind: class of its scheduler, with the settings `scheduler`.
        pipeline: class of the pipeline.
        guidance_width: of the guidance embedding that an LCM's network takes.
    """
    torch.manual_seed(0)
    unet = small_unet(time_cond_proj_dim=guidance_width)
    rest = {} if pipeline is LatentConsistencyModelPipeline else {"image_encoder": None}
    pipeline(
        vae=small_vae(),
        text_encoder=CLIPTextModel(small_text()),
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        unet=unet,
        scheduler=kind.from_config(NOISE | {"prediction_type": prediction} | scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **rest,
    ).save_pretrained(folder)
    return folder


def save_xl_pipeline(
    folder: Path,
    prediction: str = "epsilon",
    *,
    kind: type = EulerDiscreteScheduler,
    guidance_width: int | None = None,
    **scheduler: object,
) -> Path:
    """The same for SDXL: both text encoders, the pooled state and the sizes as further inputs."""
    torch.manual_seed(0)
    unet = small_unet(
        cross_attention_dim=40,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
        time_cond_proj_dim=guidance_width,
    )
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    StableDiffusionXLPipeline(
        vae=small_vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=CLIPTextModel(small_text(num_hidden_layers=2)),
        text_encoder_2=CLIPTextModelWithProjection(small_text(hidden_size=24, num_hidden_layers=2, projection_dim=12)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=kind.from_config(NOISE | {"prediction_type": prediction} | scheduler),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


NOISE: dict[str, object] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
}


def small_unet(**changes: object) -> UNet2DConditionModel:
    """A UNet of 0.1 M random weights on 4x8x8 latents."""
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
            **changes,
        }
    )


def small_vae(**changes: object) -> AutoencoderKL:
    """A VAE of random weights, two pixels a latent."""
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        **changes,
    )


def small_text(**changes: object) -> CLIPTextConfig:
    """A text encoder for the embedded tokenizer."""
    return CLIPTextConfig(
        **{
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 1186,
            "max_position_embeddings": 32,
            "bos_token_id": 1184,
            "eos_token_id": 1185,
            "pad_token_id": 1185,
            **changes,
        }
    )


def load(folder: Path) -> StableDiffusion:
    """The checkpoint as a base model."""
    return load_checkpoint(UNetOptions(path=str(folder)), LoadContext())


def refusing(method, most: int, asked: list[int] | None = None):
    """A method of a model that runs out of memory with more than `most` pictures; `asked` collects how many came."""

    def call(given: torch.Tensor, *rest: object):
        if asked is not None:
            asked.append(len(given))
        if len(given) > most:
            raise torch.OutOfMemoryError("more than the card has")
        return method(given, *rest)

    return call


class Brightness:
    """The mean of a picture: a reward whose gradient everyone can guess."""

    def score(self, request: ScoreRequest) -> ScoreResult:
        return ScoreResult(request.images.mean((1, 2, 3)))


def setup(
    folder: Path, *, steps: int = 3, pairs: int = 4, epochs: int = 2, micro_batch: int = 2, **objective: object
) -> Setup:
    """A whole setup on the tiny model, reward brightness."""
    recipe = Recipe(
        model=ModelSection(name=str(folder)),
        prompts=Choice(name="tiny"),
        reward=(RewardChoice(name="brightness"),),
        rollout=RolloutSection(pairs=pairs, steps=steps),
        train=TrainSection(epochs=epochs, learning_rate=1e-3, samples_every=0),
    )
    model = load(folder)
    return Setup(
        recipe=recipe,
        model=model,
        rewards=(LoadedReward("brightness", "1", 1.0, Brightness()),),
        eval_rewards=(),
        prompts=PROMPTS,
        eval_prompts=PROMPTS,
        objective=Sdpo(SdpoOptions(**objective)),
        kernel=kernel_for(with_floor(model.schedule(steps)), "ddim", 1.0),
        batch=pairs,
        micro_batch=micro_batch,
    )


def draw(model: StableDiffusion, first: int = 0) -> Draw:
    """The five prompts as an epoch's draw."""
    return Draw(PROMPTS, first, encode_distinct(model, [prompt.text for prompt in PROMPTS]))


def with_random_adapter(model: StableDiffusion, scale: float = 0.05) -> StableDiffusion:
    """The model with a LoRA that changes pictures: its B matrices are random instead of zero."""
    model.add_adapter(AdapterOptions(rank=2, alpha=2.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def check_kohya_export(model: StableDiffusion, run: Path, exported: Path, folder: Path) -> None:
    """Assert that the one file in `exported` loads on a bare `model` as what `run` trained, to the last bit."""
    (file,) = exported.glob("*.safetensors")
    model.load_adapter(file)
    model.save_adapter(folder)
    back, trained = (load_file(one / WEIGHTS) for one in (folder, run / "adapter"))
    assert back.keys() == trained.keys()
    assert all(torch.equal(back[key], value) for key, value in trained.items())
    assert any(bool(value.any()) for key, value in trained.items() if ".lora_B." in key), "nothing was trained"


def biggest_difference(one: Float[Tensor, "..."], other: Float[Tensor, "..."]) -> float:
    """max |one - other|."""
    return float((one - other).detach().abs().max())
