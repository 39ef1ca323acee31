"""Resizing equals Pillow's to the bit, and torch's antialiased one in floats; preprocessing equals the upstream's."""

from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import interpolate
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sdpo_cli.api.images import clip_pixels, clip_pixels_smooth, normalise, padded_pixels, resize, to_uint8
from sdpo_cli.maths.resize import (
    Axis,
    bands,
    centre,
    cubic,
    longest_side,
    resize_floats,
    resize_levels,
    shortest_side,
)

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "clip-pictures.safetensors")
GREY = 255.0
PAIRS = [
    ((512, 512), (224, 224)),
    ((640, 427), (335, 224)),
    ((128, 128), (224, 224)),
    ((97, 131), (31, 17)),
    ((1, 1), (224, 224)),
    ((3, 5), (7, 2)),
    ((1024, 768), (224, 224)),
    ((33, 1), (224, 224)),
    ((224, 224), (224, 224)),
    ((257, 255), (223, 225)),
    ((2, 2), (1, 1)),
    ((300, 300), (300, 100)),
    ((7, 1000), (448, 3)),
    ((61, 20), (20, 20)),
    ((300, 60), (40, 90)),
    ((2000, 100), (20, 10)),
]
"""Of the last three Pillow 13 would take the vertical pass first."""


def levels_of(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Two pictures: noise, and black and white noise, which overshoots most."""
    noise = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return torch.stack([noise, (noise > 127) * torch.tensor(255, dtype=torch.uint8)])


def by_pillow(levels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    pictures = [Image.fromarray(one.permute(1, 2, 0).contiguous().numpy()) for one in levels]
    # one side after the other: both at once, the order of the passes is up to Pillow's release
    wide = [picture.resize((width, picture.height), Image.Resampling.BICUBIC) for picture in pictures]
    resized = [np.array(picture.resize((width, height), Image.Resampling.BICUBIC)) for picture in wide]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


# --- levels


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_not_one_level_differs_from_pillow(before, after):
    levels = levels_of(*before)
    assert torch.equal(resize(levels, *after), by_pillow(levels, *after))


@pytest.mark.parametrize(("before", "after"), [*PAIRS, ((60, 30), (20, 10)), ((61, 30), (20, 10)), ((9, 5), (3, 2))])
def test_pillow_itself_differs_only_where_the_docstring_says_it(before, after):
    levels = levels_of(*before)
    theirs = [Image.fromarray(one.permute(1, 2, 0).contiguous().numpy()) for one in levels]
    resized = [np.array(one.resize(after[::-1], Image.Resampling.BICUBIC)) for one in theirs]
    same = torch.equal(resize(levels, *after), torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2))
    (height, width), (new_height, new_width) = before, after
    vertical_first = new_height < height and height - new_height > 2 * (width - new_width)
    one_pass = height == new_height or width == new_width
    assert same or (int(PIL.__version__.partition(".")[0]) >= 13 and vertical_first and not one_pass)


@pytest.mark.parametrize(("before", "after"), [((97, 131), (31, 40)), ((20, 30), (64, 50))])
def test_a_window_is_that_part_of_the_whole(before, after):
    levels = levels_of(*before)
    window = resize_levels(levels, Axis(before[0], after[0], 7, 19), Axis(before[1], after[1], 3, 33))
    assert torch.equal(window, by_pillow(levels, *after)[:, :, 7:26, 3:36])


def test_weights_by_hand():
    assert cubic(torch.tensor([0.0, 0.5, -0.5, 1.0, 1.5, 2.0, 9.0])).tolist() == [1, 0.5625, 0.5625, 0, -0.0625, 0, 0]
    # one output of two inputs sees both at ±¼ of its stretch: their mean; of three pixels the middle one counts most
    assert bands(Axis.whole(2, 1))[0].weights.tolist() == [[0.5, 0.5]]
    (three,) = bands(Axis.whole(3, 1))
    side, middle = cubic(torch.tensor([1 / 3, 0.0], dtype=torch.float64)).tolist()
    expected = torch.tensor([side, middle, side]) / (2 * side + middle)
    torch.testing.assert_close(three.weights[0].float(), expected)


def test_the_middle_of_a_strip_costs_no_more_than_itself():
    strip = torch.zeros(1, 3, 1, 100_001)
    strip[..., 50_000 - 1 : 50_000 + 2] = 1
    for picture in (strip, strip.mT):
        pixels = clip_pixels(picture, 64)
        assert torch.equal(pixels, normalise(torch.ones(1, 3, 64, 64)))


def test_a_picture_of_8000_by_8000(generator):
    tile = torch.rand(1, 3, 8, 8, generator=generator)
    picture = tile.repeat_interleave(1000, dim=2).repeat_interleave(1000, dim=3)
    inside = clip_pixels(picture, 224)[:, :, 14::28, 14::28]
    assert torch.equal(inside, normalise(to_uint8(tile).float() / 255))


# --- floats


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_floats_are_resized_as_torch_does_it(before, after):
    images = levels_of(*before).float() / 255
    ours = resize_floats(images, Axis.whole(before[0], after[0]), Axis.whole(before[1], after[1]))
    theirs = interpolate(images, size=after, mode="bicubic", antialias=True)
    assert (ours - theirs).abs().max() < 5e-5  # its weights are float32


def test_gradients_pass_the_float_path():
    images = torch.rand(1, 1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    window = Axis(5, 3, 0, 3), Axis(4, 6, 1, 4)
    assert torch.autograd.gradcheck(lambda one: resize_floats(one, *window), (images,))
    pictures = torch.rand(1, 3, 12, 9, requires_grad=True)
    with torch.inference_mode():
        clip_pixels_smooth(pictures, 8)  # what is kept from here is no hindrance
    clip_pixels_smooth(pictures, 8).sum().backward()
    assert (pictures.grad != 0).any()


@pytest.mark.parametrize(("side", "mean", "most"), [(512, 0.4, 15), (128, 0.4, 28)])
def test_how_far_the_smooth_pixels_are_from_the_exact_ones(side, mean, most, generator):
    """On pictures as smooth as photographs: the figures of the docstring."""
    picture = interpolate(torch.rand(4, 3, 16, 16, generator=generator), size=(side, side), mode="bicubic").clamp(0, 1)
    scale = GREY * torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    apart = ((clip_pixels(picture) - clip_pixels_smooth(picture)) * scale).abs()
    assert 0.1 < apart.mean() < mean
    assert apart.max() < most


# --- sides and crops


def test_sides_and_centres_by_hand():
    assert shortest_side(640, 427, 224) == (335, 224)  # 224 · 640 / 427 = 335.7
    assert shortest_side(1, 100, 224) == (224, 22400)
    assert longest_side(640, 427, 224) == (224, 149)  # 427 · 224 / 640 = 149.45
    assert longest_side(1, 10_000, 224) == (1, 224)
    # a rest of 111 halves to 55 by flooring; 55.5 rounds to the even 56
    assert centre(Axis.whole(427, 335), 224, rounded=False).first == 55
    assert centre(Axis.whole(427, 335), 224, rounded=True).first == 56


@pytest.mark.parametrize("shape", [(64, 64), (100, 80), (97, 131), (33, 64), (20, 13), (1, 1), (1, 7)])
def test_clip_pixels_are_those_of_transformers_with_pillow(shape):
    levels = levels_of(*shape)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    pictures = [Image.fromarray(one.permute(1, 2, 0).contiguous().numpy()) for one in levels]
    theirs = processor(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(clip_pixels(levels.float() / 255, 28), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", range(7))
def test_pixels_are_those_of_the_upstream_packages(number):
    images = GOLDEN[f"{number}.levels"][None].float() / 255
    openai, hps = GOLDEN[f"{number}.openai"][None], GOLDEN[f"{number}.hps"][None]
    torch.testing.assert_close(clip_pixels(images, 28, crop="round"), openai, rtol=0, atol=1e-6)
    torch.testing.assert_close(padded_pixels(images, 28), hps, rtol=0, atol=1e-5)


def test_no_pictures_no_pixels():
    for make in (clip_pixels, clip_pixels_smooth, padded_pixels):
        assert make(torch.zeros(0, 3, 50, 40), 28).shape == (0, 3, 28, 28)
