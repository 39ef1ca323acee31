"""HPS v2 on tiny weights in the layout of the authors' files; tokens and pixels are those of the upstream packages."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sdpo_reward_hpsv2 import HpsOptions, clean, load, needs
from torch.nn.functional import normalize

from sdpo_cli.api import LoadContext
from sdpo_cli.api.clip_text import token_ids
from sdpo_cli.api.tensors import ScoreRequest
from sdpo_cli.main import main
from sdpo_cli.testing import check_reward

FOLDER = Path(__file__).parents[3] / "tests" / "golden"
GOLDEN = load_file(FOLDER / "clip-h.safetensors")
PICTURES = load_file(FOLDER / "clip-pictures.safetensors")
ROWS = json.loads((FOLDER / "clip-tokens.json").read_text())


@pytest.fixture(scope="module")
def raw():
    """open_clip's tiny weights with the whole vocabulary."""
    weights = {name.removeprefix("weights."): one for name, one in GOLDEN.items() if name.startswith("weights.")}
    weights["token_embedding.weight"] = torch.randn(49408, 32, generator=torch.Generator().manual_seed(0))
    return weights


@pytest.fixture(scope="module")
def folder(raw, tmp_path_factory):
    """The authors' two files, which differ."""
    path = tmp_path_factory.mktemp("hps")
    torch.save({"epoch": 1, "name": "x", "state_dict": raw}, path / "HPS_v2.1_compressed.pt")
    turned = {**raw, "visual.proj": raw["visual.proj"].flip(1)}
    torch.save({"epoch": 1, "name": "x", "state_dict": turned}, path / "HPS_v2_compressed.pt")
    return path


def loaded(path, **options):
    return load(HpsOptions(path=str(path), **options), LoadContext())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: ascii(row["prompt"][:20]))
def test_tokens_are_those_of_open_clip(row):
    assert token_ids([row["prompt"]], clean) == [row["tokens"]]


def test_there_are_twenty_tricky_prompts_and_more():
    assert len(ROWS) >= 20


@pytest.mark.parametrize("number", range(7))
def test_pictures_are_embedded_as_upstream(folder, number):
    """hpsv2's pixels through the tiny open_clip network, against the reward on the same levels."""
    reward = loaded(folder)
    with torch.no_grad():
        upstream = reward.images.network(pixel_values=PICTURES[f"{number}.hps"][None]).image_embeds
    ours = reward.embed(PICTURES[f"{number}.levels"][None].float() / 255)
    torch.testing.assert_close(ours, normalize(upstream, dim=-1), rtol=0, atol=1e-5)


def test_the_network_is_open_clips(folder):
    images = loaded(folder).images.network(pixel_values=GOLDEN["pixels"]).image_embeds
    torch.testing.assert_close(normalize(images, dim=-1), GOLDEN["image"], rtol=0, atol=1e-6)


def test_preprocessings_agree_on_the_networks_own_size_and_differ_on_others(folder):
    official, clip = loaded(folder), loaded(folder, preprocessing="clip")
    assert official.images is clip.images
    for size, same in (((28, 28), True), ((28, 60), False)):
        images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
        request = ScoreRequest(images, ["a cat", "a dog"])
        values, others = official.score(request).values, clip.score(request).values
        assert torch.allclose(values, others, rtol=0, atol=1e-6) == same


def test_scales(folder):
    request = ScoreRequest(torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)), ["a cat", "a dog"])
    cos, logit = (loaded(folder, scale=scale).score(request) for scale in ("cos", "logit"))
    torch.testing.assert_close(logit.values, 20.085537 * cos.values, rtol=1e-5, atol=1e-5)  # the golden scale is e³
    assert torch.equal(logit.details["cos"], cos.values)


def test_the_version_picks_the_file(folder, raw, tmp_path):
    request = ScoreRequest(torch.rand(2, 3, 30, 30, generator=torch.Generator().manual_seed(0)), ["a cat", "a dog"])
    new, old = (loaded(folder, version=version).score(request).values for version in ("v2.1", "v2.0"))
    assert (new - old).abs().min() > 1e-3
    save_file({f"model.{name}": one for name, one in raw.items()}, tmp_path / "model.safetensors")
    assert torch.equal(loaded(tmp_path).score(request).values, new)
    assert [one.files for version in ("v2.0", "v2.1") for one in needs(HpsOptions(version=version))] == [
        ("HPS_v2_compressed.pt",),
        ("HPS_v2.1_compressed.pt",),
    ]
    assert needs(HpsOptions(path="here")) == []


def test_prompts_are_mended_first(folder):
    images = torch.rand(1, 3, 28, 28, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
    curly, straight, ended = (
        loaded(folder).score(ScoreRequest(images, ["IT’S &amp;", "it's &", "it's <|endoftext|> &"])).values
    )
    assert curly == straight
    assert (ended - straight).abs() > 1e-4


def test_the_contract(folder):
    check_reward(loaded(folder))
    check_reward(loaded(folder, dtype="float16", preprocessing="clip"), prompts=[row["prompt"] for row in ROWS], size=2)


def test_through_the_command(folder):
    assert main(["plugins", "check", "hpsv2", "--set", f"path={folder}", "--set", "version=v2.0"]) == 0
