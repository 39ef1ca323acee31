"""The shipped rewards: numbers by hand, laws of the contract, and what the scorer sees in real pictures."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from sdpo_cli.api import LoadContext
from sdpo_cli.api.images import centre_levels
from sdpo_cli.api.tensors import ImageEmbedder, ScoreRequest
from sdpo_cli.builtin.rewards import sdpo_rewards
from sdpo_cli.builtin.rewards.captions import COLORS, PLACES, STYLES, with_color, with_place, with_style
from sdpo_cli.builtin.rewards.emoji import FOLDER, emoji_scorer
from sdpo_cli.maths.images import to_uint8

SPECS = {spec.name: spec for spec in sdpo_rewards()}
NAMES = sorted(name for name, spec in SPECS.items() if not spec.needs(spec.options()))
EMOJI = ("emoji-clip", "emoji-style", "emoji-color", "emoji-place")


def load(name, **options):
    return SPECS[name].load(SPECS[name].options(**options), LoadContext())


def score(name, images, prompts=None, **options):
    request = ScoreRequest(images, prompts if prompts is not None else ["a dog"] * len(images))
    return load(name, **options).score(request).values


def flat(*colors, size=8):
    """Pictures of one colour each, given in levels 0..255."""
    return (torch.tensor(colors, dtype=torch.float32) / 255)[:, :, None, None].expand(-1, 3, size, size).clone()


@pytest.fixture(scope="module")
def drawn():
    """Pictures by the embedded model, and their prompts."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER.parent / "emoji-turbo", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [
        "a 3d pig",
        "a flat owl",
        "a cartoon frog",
        "a red horse",
        "a blue fish",
        "a cat on the moon",
        "a bear in the forest",
    ]
    generator = torch.Generator().manual_seed(0)
    images = pipeline(prompts, num_inference_steps=2, guidance_scale=1.0, generator=generator, output_type="pt").images
    return images.float(), prompts


# --- colourfulness


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (flat((128, 128, 128)), 0.0),
        # rg 255, yb 127.5 everywhere: 0.3 √(255² + 127.5²)
        (flat((255, 0, 0)), 85.5296),
        # blue: rg 0, yb -255: 0.3 · 255
        (flat((0, 0, 255)), 76.5),
        # half red, half green: rg ±255, so σ_rg 255 and μ_rg 0; yb 127.5: 255 + 0.3 · 127.5
        (torch.cat([flat((255, 0, 0)), flat((0, 255, 0))], dim=3), 293.25),
    ],
)
def test_colorfulness_by_hand(image, expected):
    assert score("colorfulness", image).tolist() == pytest.approx([expected], abs=1e-3)


def test_colorfulness_of_one_pixel_is_its_offset():
    assert score("colorfulness", flat((0, 0, 255), size=1)).tolist() == pytest.approx([76.5])


# --- JPEG


def noise(seed=0, size=64):
    levels = np.random.default_rng(seed).integers(0, 256, (1, 3, size, size), dtype=np.uint8)
    return torch.from_numpy(levels).float() / 255


def test_jpeg_size_is_kilobytes_at_quality_95_with_halved_chroma(tmp_path):
    picture = Image.fromarray((noise()[0] * 255).round().byte().permute(1, 2, 0).numpy())
    picture.save(tmp_path / "420.jpg", quality=95, subsampling=2)
    picture.save(tmp_path / "444.jpg", quality=95, subsampling=0)
    (size,) = score("jpeg-incompressibility", noise()).tolist()
    assert size == pytest.approx((tmp_path / "420.jpg").stat().st_size / 1000, abs=1e-6)
    assert size < (tmp_path / "444.jpg").stat().st_size / 1000 - 1


def test_jpeg_rewards_are_opposite_and_prefer_noise_and_flatness():
    images = torch.cat([noise(), flat((10, 200, 30), size=64)])
    detail, flatness = score("jpeg-incompressibility", images), score("jpeg-compressibility", images)
    assert detail[0] > 5 * detail[1] > 0
    assert flatness.tolist() == (-detail).tolist()


def test_lower_quality_makes_smaller_files():
    sizes = [score("jpeg-incompressibility", noise(), quality=quality).item() for quality in (95, 50, 10)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 3


# --- the contract


@pytest.mark.parametrize("name", NAMES)
def test_no_pictures_no_values(name):
    values = score(name, torch.zeros(0, 3, 64, 64), [])
    assert values.shape == (0,)
    assert values.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(64, 64), (40, 96)])
def test_a_picture_scores_the_same_alone_and_in_company(name, shape, generator):
    images = torch.rand(5, 3, *shape, generator=generator)
    prompts = ["a dog", "", "two cats", "a dog", "a red horse at night"]
    together = score(name, images, prompts)
    alone = torch.cat([score(name, images[i : i + 1], prompts[i : i + 1]) for i in range(5)])
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_pictures_count_by_their_eight_bit_levels(name, generator):
    levels = torch.randint(1, 255, (2, 3, 64, 64), generator=generator) / 255
    shaken = levels + (torch.rand(levels.shape, generator=generator) - 0.5) * 0.9 / 255
    assert score(name, levels).tolist() == score(name, shaken).tolist()


def test_values_outside_the_range_are_held_to_it():
    values = torch.tensor([-0.2, 0.0, 0.5, 1.0, 7.0])[:, None, None, None].expand(5, 3, 1, 1)
    assert to_uint8(values)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_hooks_import_no_torch():
    code = (
        "import sys, sdpo_cli.builtin.rewards as r, sdpo_cli.builtin.prompts as p, sdpo_cli.builtin.objectives as o;"
        "r.sdpo_rewards(); p.sdpo_prompt_sources(); o.sdpo_objectives(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the embedded scorer


def test_every_picture_fits_its_own_prompt_best(drawn):
    images, prompts = drawn
    table = torch.stack([score("emoji-clip", images, [prompt] * len(images)) for prompt in prompts])
    assert table.argmax(dim=0).tolist() == list(range(len(prompts)))
    assert table.diagonal().mean() > 0.7


def test_the_attribute_that_was_asked_for_is_the_probable_one(drawn):
    asked = [
        ("emoji-style", {"style": "3d"}, "pig"),
        ("emoji-style", {"style": "flat"}, "owl"),
        ("emoji-style", {"style": "cartoon"}, "frog"),
        ("emoji-color", {"color": "red"}, "horse"),
        ("emoji-color", {"color": "blue"}, "fish"),
        ("emoji-place", {"place": "on the moon"}, "cat"),
        ("emoji-place", {"place": "in the forest"}, "bear"),
    ]
    for image, (name, options, prompt) in zip(drawn[0], asked, strict=True):
        assert score(name, image[None], [prompt], **options).item() > 0.5, (prompt, options)


@pytest.mark.parametrize(
    ("name", "option", "kind"),
    [
        ("emoji-style", "style", STYLES),
        ("emoji-color", "color", COLORS),
        ("emoji-place", "place", PLACES),
    ],
)
def test_probabilities_of_all_attributes_sum_to_one(name, option, kind, drawn):
    images, prompts = drawn
    total = sum(score(name, images, prompts, **{option: value}) for value in kind)
    torch.testing.assert_close(total, torch.ones(len(images)))


def test_probability_uses_the_scorers_scale(drawn):
    """Log odds of two styles = scale times the difference of their captions' cosines."""
    images = drawn[0][:1]
    solid, flat_ = (score("emoji-style", images, ["horse"], style=style) for style in ("3d", "flat"))
    cosines = [score("emoji-clip", images, [f"a {style} horse"]) for style in ("3d", "flat")]
    scale = emoji_scorer("cpu").scale
    torch.testing.assert_close((solid / flat_).log(), scale * (cosines[0] - cosines[1]), rtol=1e-4, atol=1e-4)
    assert scale == pytest.approx(21.72, abs=0.01)


def test_the_detail_of_an_attribute_is_the_alignment(drawn):
    images, prompts = drawn
    detail = load("emoji-style").score(ScoreRequest(images, prompts)).details["alignment"]
    torch.testing.assert_close(detail, score("emoji-clip", images, prompts))


def test_alignment_embeds_pictures_as_unit_vectors(drawn):
    reward = load("emoji-clip")
    assert isinstance(reward, ImageEmbedder)
    assert not isinstance(load("emoji-style"), ImageEmbedder)
    vectors = reward.embed(drawn[0])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))
    assert (vectors @ vectors.T).fill_diagonal_(0).max() < 0.95


def test_long_prompts_lose_their_tail():
    images = flat((200, 30, 40), size=64)
    values = [score("emoji-clip", images, [" ".join(["dog"] * count)]).item() for count in (29, 30, 60)]
    assert values[1] == values[2] != values[0]


def test_all_emoji_rewards_share_one_scorer():
    assert len({id(load(name).scorer) for name in EMOJI}) == 1


@pytest.mark.parametrize("shape", [(100, 80), (97, 131), (33, 64), (64, 65), (512, 512)])
def test_other_sizes_are_resized_and_cropped_as_the_image_processor_does(shape, generator):
    images = torch.rand(2, 3, *shape, generator=generator)
    levels = to_uint8(images)
    processor = AutoImageProcessor.from_pretrained(FOLDER, backend="pil")
    expected = processor([Image.fromarray(one.permute(1, 2, 0).numpy()) for one in levels], return_tensors="pt")
    ours = centre_levels(images, 64).float() / 127.5 - 1
    torch.testing.assert_close(ours, expected["pixel_values"], rtol=0, atol=1e-6)


# --- captions


@pytest.mark.parametrize(
    ("prompt", "style", "color", "place"),
    [
        ("dog", "a 3d dog", "an orange dog", "a dog on the moon"),
        ("A Dog", "a 3d dog", "an orange dog", "a dog on the moon"),
        ("an owl", "a 3d owl", "an orange owl", "an owl on the moon"),
        ("a red horse", "a 3d red horse", "an orange horse", "a red horse on the moon"),
        ("a flat blue fox", "a 3d blue fox", "a flat orange fox", "a flat blue fox on the moon"),
        ("two frogs at night", "two 3d frogs at night", "two orange frogs at night", "two frogs on the moon"),
        ("a cat and a dog", "a 3d cat and a dog", "an orange cat and a dog", "a cat and a dog on the moon"),
        ("a photo of a bee", "a photo of a 3d bee", "a photo of an orange bee", "a photo of a bee on the moon"),
        ("a lion on a yellow background", "a 3d lion on a yellow background",
         "an orange lion on a yellow background", "a lion on the moon"),
        ("", "a 3d", "an orange", "on the moon"),
    ],
)  # fmt: skip
def test_attributes_go_where_the_grammar_has_them(prompt, style, color, place):
    assert with_style(prompt, "3d") == style
    assert with_color(prompt, "orange") == color
    assert with_place(prompt, "on the moon") == place


KINDS = [(with_style, STYLES), (with_color, COLORS), (with_place, PLACES)]


@given(prompt=st.text(max_size=40), put_kind=st.sampled_from(KINDS), number=st.integers(0, 2))
def test_putting_an_attribute_twice_changes_nothing_more(prompt, put_kind, number):
    put, kind = put_kind
    once = put(prompt, kind[number])
    assert kind[number] in once
    assert put(once, kind[number]) == once
