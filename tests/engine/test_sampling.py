"""True k-step sampling against the official pipeline, with and without the adapter."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import repeat

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline

from sdpo_cli.api import LoadContext, Prompt, diffusers_model
from sdpo_cli.api.tensors import Sampler
from sdpo_cli.builtin.models import load_checkpoint
from sdpo_cli.builtin.models.options import UNetOptions
from sdpo_cli.engine.evaluating.sampling import sample_latents, sample_pictures
from sdpo_cli.engine.learning import rollout
from sdpo_cli.engine.learning.rollout import encode_distinct
from sdpo_cli.engine.training.shares import Seat, draw_epoch
from sdpo_cli.maths import kernel_for

SEEDS = [0, 1, 12345]
TEXTS = ["cat", "two dogs", "owl"]


def official_latents(pipeline: StableDiffusionPipeline, steps: int, eta: float) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return pipeline(
        TEXTS, num_inference_steps=steps, guidance_scale=1.0, eta=eta, generator=generators, output_type="latent"
    ).images


@pytest.fixture(scope="module", params=["epsilon", "v_prediction", "sample"])
def folder(request, tmp_path_factory):
    one = request.param == "v_prediction"
    return tiny.save_pipeline(tmp_path_factory.mktemp(request.param), request.param, set_alpha_to_one=one)


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_latents_equal_the_official_pipeline(folder, steps, eta):
    model = tiny.load(folder)
    kernel = kernel_for(model.schedule(steps), "ddim", eta)
    ours = sample_latents(model, kernel, encode_distinct(model, TEXTS), SEEDS)
    theirs = official_latents(StableDiffusionPipeline.from_pretrained(folder, safety_checker=None), steps, eta)
    scale = max(1.0, float(theirs.abs().max()))
    assert tiny.biggest_difference(ours, theirs) < 1e-4 * scale


def test_exported_adapter_draws_the_same_in_the_official_pipeline(checkpoint, tmp_path):
    model = tiny.with_random_adapter(tiny.load(checkpoint))
    model.save_adapter(tmp_path)
    kernel = kernel_for(model.schedule(4), "ddim", 0.0)
    ours = sample_latents(model, kernel, encode_distinct(model, TEXTS), SEEDS)
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    bare = official_latents(pipeline, 4, 0.0)
    pipeline.load_lora_weights(tmp_path)
    assert tiny.biggest_difference(ours, official_latents(pipeline, 4, 0.0)) < 1e-4
    assert tiny.biggest_difference(ours, bare) > 1e-2


def test_adapter_reloads_and_leaves_the_base_model_alone(checkpoint, tmp_path):
    trained = tiny.with_random_adapter(tiny.load(checkpoint))
    trained.save_adapter(tmp_path)
    bare, reloaded = tiny.load(checkpoint), tiny.load(checkpoint)
    reloaded.load_adapter(tmp_path)
    conditioning = encode_distinct(bare, TEXTS)
    kernel = kernel_for(bare.schedule(2), "ddim", 0.0)
    assert torch.equal(
        sample_latents(trained, kernel, conditioning, SEEDS), sample_latents(reloaded, kernel, conditioning, SEEDS)
    )
    with reloaded.without_adapter():
        plain = sample_latents(reloaded, kernel, conditioning, SEEDS)
    assert torch.equal(plain, sample_latents(bare, kernel, conditioning, SEEDS))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_picture_does_not_depend_on_its_batch(checkpoint, batch):
    model = tiny.load(checkpoint)
    conditioning = encode_distinct(model, TEXTS)
    sampler = Sampler("ddim", 1.0)
    together = sample_pictures(model, conditioning, SEEDS, steps=4, sampler=sampler, batch=99)
    apart = sample_pictures(model, conditioning, SEEDS, steps=4, sampler=sampler, batch=batch)
    assert tiny.biggest_difference(together, apart) < 1e-4


def test_equal_prompts_are_encoded_once(checkpoint, monkeypatch):
    model = tiny.load(checkpoint)
    encoded = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda prompts: encoded.extend(prompts) or encode(prompts))
    conditioning = encode_distinct(model, ["cat", "dog", "cat", "cat"])
    assert encoded == ["cat", "dog"]
    assert torch.equal(conditioning["prompt_embeds"][0], conditioning["prompt_embeds"][3])


def test_later_prompts_are_encoded_with_new_ones_each_once(checkpoint, monkeypatch):
    model, known, encoded = tiny.load(checkpoint), {}, []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda prompts: encoded.append(list(prompts)) or encode(prompts))
    monkeypatch.setattr(rollout, "AHEAD", 2)
    first = encode_distinct(model, ["cat", "dog"], known=known, later=["dog", "owl", "owl", "fox", "bee"])
    again = encode_distinct(model, ["owl", "fox"], known=known, later=["bee"])
    assert encoded == [["cat", "dog", "owl", "fox"]]
    assert (len(first["prompt_embeds"]), len(again["prompt_embeds"])) == (2, 2)
    torch.testing.assert_close(again["prompt_embeds"], encode_distinct(model, ["owl", "fox"])["prompt_embeds"])


@pytest.mark.parametrize(("offload", "calls"), [("offload", [5, 1]), ("keep", [2, 2, 2])])
def test_a_run_encodes_prompts_of_later_epochs_ahead_where_encoders_are_away(tmp_path, offload, calls, monkeypatch):
    monkeypatch.setattr(rollout, "AHEAD", 3)
    setup = tiny.setup(tiny.save_pipeline(tmp_path / "sd"), pairs=2, epochs=4)
    prompts = tuple(Prompt(text) for text in ("cat", "dog", "owl", "fox", "bee", "ant"))
    options = UNetOptions(path=str(tmp_path / "sd"), text_encoders=offload)
    setup = replace(setup, model=load_checkpoint(options, LoadContext()), prompts=prompts)
    encoded, encode = [], setup.model.encode
    monkeypatch.setattr(setup.model, "encode", lambda texts: encoded.append(len(texts)) or encode(texts))
    seat = Seat(setup)
    for epoch in (1, 2, 3):
        draw = draw_epoch(seat, epoch)
        expected = encode([prompt.text for prompt in draw.prompts])
        torch.testing.assert_close(draw.conditioning["prompt_embeds"], expected["prompt_embeds"])
    assert encoded == calls


def test_prompts_of_later_epochs_are_looked_up_no_further_than_there_is_room(checkpoint, monkeypatch):
    monkeypatch.setattr(rollout, "AHEAD", 2)
    texts = iter(["owl", "fox", "bee", "ant", "elk"])
    encode_distinct(tiny.load(checkpoint), ["cat"], later=texts)
    assert list(texts) == ["ant", "elk"]


def test_all_prompts_may_be_known_for_ever(checkpoint):
    known = {}
    encode_distinct(tiny.load(checkpoint), ["cat"], known=known, later=repeat("cat"))
    assert list(known) == ["cat"]


def test_encoders_that_are_away_come_once_for_many_prompts(tmp_path, monkeypatch):
    options = UNetOptions(path=str(tiny.save_pipeline(tmp_path / "sd")), text_encoders="offload")
    model, visits, depth = load_checkpoint(options, LoadContext()), [], []
    visit = model.encoders_at_hand

    @contextmanager
    def seen():
        visits.append(len(depth))
        depth.append(1)
        with visit():
            yield
        depth.pop()

    monkeypatch.setattr(model, "encoders_at_hand", seen)
    encode_distinct(model, [f"cat {number}" for number in range(70)])
    assert visits == [0, 1, 1]  # within the first: 64 and 6
    encode_distinct(model, ["cat"], known={"cat": model.encode(["cat"])})
    assert visits == [0, 1, 1, 0]  # that of `encode` alone


def test_an_encoder_is_given_few_prompts_at_once(checkpoint, monkeypatch):
    model, sizes = tiny.load(checkpoint), []
    expected = model.encode(TEXTS)
    encode = model.encode_prompts
    monkeypatch.setattr(model, "encode_prompts", lambda texts: sizes.append(len(texts)) or encode(texts))
    monkeypatch.setattr(diffusers_model, "ENCODED", 2)
    found = model.encode(TEXTS)
    assert sizes == [2, 1]
    torch.testing.assert_close(found["prompt_embeds"], expected["prompt_embeds"])


def test_no_more_encodings_are_kept_than_there_is_room_for(checkpoint, monkeypatch):
    model, known = tiny.load(checkpoint), {}
    monkeypatch.setattr(rollout, "ENCODINGS_KEPT", 3)
    encode_distinct(model, ["cat", "dog"], known=known, later=["owl", "fox"])
    assert list(known) == ["cat", "dog", "owl"]
    encode_distinct(model, ["fox", "bee", "cat"], known=known, later=["owl"])
    assert list(known) == ["fox", "bee", "cat"]
