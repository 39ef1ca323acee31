"""CLIP towers: equal to open_clip's, from files of every layout, loaded once, each thing encoded once."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from sdpo_cli.api import clip_text
from sdpo_cli.api.clip import (
    CLIP_H,
    CLIP_L,
    PROMPTS_KEPT,
    ClipReward,
    ClipSource,
    image_tower,
    text_tower,
    text_vectors,
)
from sdpo_cli.api.clip_text import END, LENGTH, START, token_ids
from sdpo_cli.api.clip_weights import from_open_clip, image_config, image_network, part_of, text_config, text_network
from sdpo_cli.api.images import clip_pixels, padded_pixels
from sdpo_cli.api.tensors import ScoreRequest
from sdpo_cli.errors import ArtifactError, UsageError
from sdpo_cli.testing import check_reward

GOLDEN = Path(__file__).parents[1] / "golden"
KINDS = {"clip-h": CLIP_H, "clip-l": CLIP_L}
PROMPTS = [row["prompt"] for row in json.loads((GOLDEN / "clip-tokens.json").read_text())]


def weights_of(name):
    golden = load_file(GOLDEN / f"{name}.safetensors")
    return {key.removeprefix("weights."): one for key, one in golden.items() if key.startswith("weights.")}


def vectors_of(name, kind, folder):
    """What our towers make of a golden file's pixels and tokens."""
    golden = load_file(GOLDEN / f"{name}.safetensors")
    file = folder / f"{name}.safetensors"
    save_file(weights_of(name), file)
    images = image_network(kind, file)(pixel_values=golden["pixels"]).image_embeds
    return normalize(images, dim=-1), text_vectors(text_network(kind, file)[0], golden["tokens"]), golden


class Calls:
    """Counts what passes through a network."""

    def __init__(self, network):
        self.sizes = []
        network.register_forward_hook(lambda *args: self.sizes.append(len(args[-1][0])))


# --- equal to upstream


@pytest.mark.parametrize("name", KINDS)
def test_towers_equal_open_clips(name, tmp_path):
    images, texts, golden = vectors_of(name, KINDS[name], tmp_path)
    torch.testing.assert_close(images, golden["image"], rtol=0, atol=1e-6)
    torch.testing.assert_close(texts, golden["text"], rtol=0, atol=1e-6)
    assert text_network(KINDS[name], tmp_path / f"{name}.safetensors")[1] == pytest.approx(20.0855, abs=1e-3)  # e³


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("change", ["activation", "heads"])
def test_a_wrong_activation_or_head_count_shows(name, change, tmp_path):
    """Both load without a word: this is what the golden files are for."""
    kind = KINDS[name]
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[kind.activation]
    wrong = replace(kind, activation=other) if change == "activation" else replace(kind, image_heads=8, text_heads=8)
    images, texts, golden = vectors_of(name, wrong, tmp_path)
    assert (images - golden["image"]).abs().max() > 1e-3
    assert (texts - golden["text"]).abs().max() > 1e-3


def test_every_key_of_the_true_vit_h_finds_its_place():
    shapes = json.loads((GOLDEN / "clip-h-keys.json").read_text())
    assert len(shapes) == 686
    renamed = from_open_clip({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    with torch.device("meta"):
        image = CLIPVisionModelWithProjection(image_config(CLIP_H, renamed))
        text = CLIPTextModelWithProjection(text_config(CLIP_H, renamed))
    expected = {**image.state_dict(), **text.state_dict()}
    assert renamed.pop("logit_scale").shape == ()
    assert {name: one.shape for name, one in renamed.items()} == {name: one.shape for name, one in expected.items()}
    assert {name for name in renamed if part_of(name) == "image"} == set(image.state_dict())
    config = image.config
    assert (config.image_size, config.num_hidden_layers, config.hidden_size, config.projection_dim) == (
        224,
        32,
        1280,
        1024,
    )
    assert (config.hidden_act, config.num_attention_heads, config.layer_norm_eps) == ("gelu", 16, 1e-5)
    config = text.config
    assert (config.max_position_embeddings, config.num_hidden_layers, config.hidden_size) == (77, 24, 1024)
    assert (config.hidden_act, config.num_attention_heads, config.eos_token_id) == ("gelu", 16, 49407)


# --- tokens


@pytest.fixture(scope="module")
def transformers_tokenizer():
    bpe = clip_text._bpe()
    merges = json.loads(bpe.to_str())["model"]["merges"]
    vocabulary = {**bpe.get_vocab(), "<|startoftext|>": START, "<|endoftext|>": END}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in merges])


@pytest.mark.parametrize(
    "prompt", [prompt for prompt in PROMPTS if "<|" not in prompt], ids=lambda one: ascii(one[:20])
)
def test_tokens_are_those_of_transformers(prompt, transformers_tokenizer):
    assert token_ids([prompt]) == [transformers_tokenizer(prompt, truncation=True, max_length=LENGTH)["input_ids"]]


def test_tokens_by_hand():
    """As OpenAI's notebook has them: `a photo of a cat`."""
    assert token_ids(["a photo of a cat", ""]) == [[START, 320, 1125, 539, 320, 2368, END], [START, END]]


def test_no_prompt_ends_itself():
    (ids,) = token_ids(["<|startoftext|> cat <|endoftext|> dog"])
    assert (ids.count(START), ids.count(END)) == (1, 1)
    assert token_ids(["dog"])[0][1] in ids


def test_long_prompts_lose_words_and_never_their_end():
    (ids,) = token_ids(["x" * 10_000])
    assert (len(ids), ids[0], ids[-1]) == (LENGTH, START, END)


def test_half_a_surrogate_pair_is_a_question_mark():
    assert token_ids(["a \ud83d cat"]) == token_ids(["a ? cat"])


# --- files


def test_every_layout_gives_the_same_vectors(clip_l, tmp_path, generator):
    images = torch.rand(2, 3, 40, 30, generator=generator)
    expected = image_tower(ClipSource(clip_l, CLIP_L)).embed(images)
    raw = weights_of("clip-l")
    save_file(raw, tmp_path / "open_clip_model.safetensors")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": one for name, one in raw.items()}}, tmp_path / "wrapped.pt"
    )
    torch.save(
        {f"model.{name}": one for name, one in raw.items()}, tmp_path / "old.bin", _use_new_zipfile_serialization=False
    )
    (tmp_path / "alone").mkdir()
    save_file(raw, tmp_path / "alone" / "of-any-name.safetensors")
    folders = [tmp_path, tmp_path / "alone"]
    for path in (*folders, clip_l / "model.safetensors", tmp_path / "wrapped.pt", tmp_path / "old.bin"):
        assert torch.equal(image_tower(ClipSource(path, CLIP_L)).embed(images), expected)


def test_the_links_of_the_hubs_cache_are_read(clip_l, tmp_path, generator):
    images = torch.rand(2, 3, 40, 30, generator=generator)
    snapshot = tmp_path / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (tmp_path / "blob").write_bytes((clip_l / "model.safetensors").read_bytes())
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blob")
    expected = image_tower(ClipSource(clip_l, CLIP_L)).embed(images)
    assert torch.equal(image_tower(ClipSource(snapshot, CLIP_L)).embed(images), expected)


def test_float16_files_compute_in_float32_where_that_is_asked_for(tmp_path):
    save_file({name: one.half() for name, one in weights_of("clip-l").items()}, tmp_path / "model.safetensors")
    tower = image_tower(ClipSource(tmp_path, CLIP_L))
    assert {weight.dtype for weight in tower.network.parameters()} == {torch.float32}


def fault_of(path, kind=CLIP_L, error=ArtifactError):
    with pytest.raises(error) as caught:
        text_tower(ClipSource(path, kind))
    return str(caught.value)


def test_what_is_no_clip_is_said_in_a_line(clip_l, tmp_path):
    assert fault_of(tmp_path / "none", error=UsageError) == (
        f"{tmp_path}/none: no such file or folder; name a file of weights or its folder"
    )
    remedy = "it must hold model.safetensors, or one safetensors file"
    assert fault_of(tmp_path) == f"{tmp_path}: 0 files of weights in this folder; {remedy}"
    (tmp_path / "a.safetensors").touch(), (tmp_path / "b.safetensors").touch()
    assert fault_of(tmp_path) == f"{tmp_path}: 2 files of weights in this folder; {remedy}"
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"garbage!" * 10)
    assert fault_of(file).startswith(f"{file}: cannot be read as weights (")
    whole = (clip_l / "model.safetensors").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert fault_of(file).startswith(f"{file}: cannot be read as weights (")
    save_file({"layers.0.weight": torch.zeros(1, 4)}, file)
    assert fault_of(file) == f"{file}: has no logit_scale; name weights of OpenAI's CLIP ViT-L/14"
    weights = load_file(clip_l / "model.safetensors")
    del weights["text_model.final_layer_norm.bias"]
    save_file(weights, file)
    assert "these are no weights of OpenAI's CLIP ViT-L/14 (" in fault_of(file)
    assert 'Missing key(s) in state_dict: "text_model.final_layer_norm.bias"' in fault_of(file)
    save_file(weights_of("clip-l"), file)
    assert fault_of(file) == f"{file}: its vocabulary has 512 tokens, not 49408; name weights of OpenAI's CLIP ViT-L/14"


def test_a_config_that_says_otherwise_is_heard(clip_l, tmp_path):
    assert fault_of(clip_l, CLIP_H) == (
        f"{clip_l}/config.json: vision_config.hidden_act is 'quick_gelu', not 'gelu'; "
        "name weights of open_clip's ViT-H-14"
    )
    assert fault_of(clip_l / "model.safetensors", replace(CLIP_L, text_heads=8)) == (
        f"{clip_l}/config.json: text_config.num_attention_heads is 12, not 8; name weights of OpenAI's CLIP ViT-L/14"
    )
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").touch()
    assert fault_of(tmp_path).startswith(f"{tmp_path}/config.json: cannot be read (")


class Harm:
    """A pickle that would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(zipped, tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": Harm(tmp_path / "harm")}, file, _use_new_zipfile_serialization=zipped)
    assert fault_of(file) == (
        f"{file}: cannot be read as weights (not plain tensors); download it again, or convert it to safetensors"
    )
    assert not (tmp_path / "harm").exists()


# --- once


def test_equal_sources_share_their_towers(clip_l):
    folder, file = ClipSource(clip_l, CLIP_L), ClipSource(clip_l / "model.safetensors", CLIP_L)
    assert image_tower(folder) is image_tower(file)
    assert text_tower(folder) is text_tower(file)
    assert image_tower(folder) is not image_tower(replace(folder, dtype="float16"))


def test_a_request_is_encoded_once_and_anew_when_it_changes(clip_l, generator):
    tower = image_tower(ClipSource(clip_l, CLIP_L))
    calls = Calls(tower.network)
    images = torch.rand(3, 3, 40, 30, generator=generator)
    first = tower.embed(images)
    assert tower.embed(images) is first
    assert calls.sizes == [3]
    assert not torch.equal(tower.embed(images, padded_pixels), first)
    assert torch.equal(tower.embed(images.clone()), first)
    images[0] = 0
    changed = tower.embed(images)
    assert torch.equal(changed[1:], first[1:])
    assert not torch.equal(changed[0], first[0])
    with torch.inference_mode():
        hidden = images.clone()
        tower.embed(hidden)
        hidden[0] = 1
        assert not torch.equal(tower.embed(hidden)[0], changed[0])


def test_each_distinct_prompt_is_encoded_once(clip_l):
    tower = text_tower(ClipSource(clip_l, CLIP_L), str.upper)  # a tower of this test's own
    calls = Calls(tower.network)
    vectors = tower.embed(["cat", "dog", "cat", "cat"])
    assert torch.equal(vectors[0], vectors[3])
    tower.embed(["dog", "owl"])
    assert calls.sizes == [2, 1]


def test_the_oldest_prompts_are_forgotten(clip_l):
    tower = text_tower(ClipSource(clip_l, CLIP_L), str.lower)
    first = tower.embed(["first"])
    many = tower.embed([f"{number}" for number in range(PROMPTS_KEPT)])
    assert len(many) == PROMPTS_KEPT
    calls = Calls(tower.network)
    assert torch.equal(tower.embed([f"{PROMPTS_KEPT - 1}"]), many[-1:])
    assert calls.sizes == []
    torch.testing.assert_close(tower.embed(["first"]), first)
    assert calls.sizes == [1]


def test_company_of_a_longer_prompt_changes_nothing(clip_l):
    alone, together = (text_tower(ClipSource(clip_l, CLIP_L), clean) for clean in (str.strip, str.casefold))
    prompts = ["cat", "a cat on the moon, looking at the earth", ""]
    expected = torch.cat([alone.embed([prompt]) for prompt in prompts])
    torch.testing.assert_close(together.embed(prompts), expected, rtol=0, atol=1e-6)


# --- the reward


def test_the_reward_keeps_the_contract_in_both_dtypes(clip_l):
    for dtype in ("float32", "float16"):
        source = ClipSource(clip_l, CLIP_L, dtype=dtype)
        reward = ClipReward(image_tower(source), text_tower(source))
        check_reward(reward)
        check_reward(reward, prompts=PROMPTS, size=20)


def test_float16_is_near_float32(clip_l, generator):
    request = ScoreRequest(torch.rand(4, 3, 50, 50, generator=generator), ["cat", "dog", "cat", ""])
    scores = []
    for dtype in ("float32", "float16"):
        source = ClipSource(clip_l, CLIP_L, dtype=dtype)
        scores.append(ClipReward(image_tower(source), text_tower(source)).score(request).values)
    assert scores[1].dtype == torch.float32
    assert 0 < (scores[0] - scores[1]).abs().max() < 5e-3


def test_pictures_of_one_pixel(clip_l):
    source = ClipSource(clip_l, CLIP_L)
    reward = ClipReward(image_tower(source), text_tower(source), prepare=clip_pixels)
    small, large = (reward.score(ScoreRequest(torch.full((1, 3, n, n), 0.5), ["gray"])).values for n in (1, 50))
    torch.testing.assert_close(small, large)
