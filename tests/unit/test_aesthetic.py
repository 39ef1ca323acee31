"""The built-in rewards by CLIP ViT-L/14: the aesthetic head folded, the scales of CLIPScore, from real file layouts."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sdpo_cli.api import LoadContext
from sdpo_cli.api.clip import CLIP_L, ClipSource, image_tower, text_tower
from sdpo_cli.api.tensors import ImageEmbedder, ScoreRequest
from sdpo_cli.builtin.rewards import sdpo_rewards
from sdpo_cli.builtin.rewards.aesthetic import folded
from sdpo_cli.errors import ArtifactError
from sdpo_cli.main import main
from sdpo_cli.testing import check_reward

SPECS = {spec.name: spec for spec in sdpo_rewards()}


def mlp(width: int) -> nn.Module:
    """The head as LAION published it: dropouts between the layers, no activation."""
    torch.manual_seed(0)
    sizes = [1024, 128, 64, 16, 1]
    layers = [nn.Linear(width, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64)]
    layers += [nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1)]
    assert [layer.out_features for layer in layers if isinstance(layer, nn.Linear)] == sizes
    head = nn.Module()
    head.layers = nn.Sequential(*layers)
    return head.eval()


def load(name, **options):
    return SPECS[name].load(SPECS[name].options(**options), LoadContext())


@pytest.fixture
def head(tmp_path):
    """A head for the tiny CLIP, as the original file: an ordered dictionary in a pickle."""
    torch.save(mlp(16).state_dict(), tmp_path / "head.pth")
    return str(tmp_path / "head.pth")


# --- aesthetic


@torch.no_grad()
def test_the_folded_head_is_the_layers(generator):
    head = mlp(768)
    vectors = torch.nn.functional.normalize(torch.randn(50, 768, generator=generator), dim=-1)
    weight, bias = folded(head.state_dict())
    assert weight.shape == (768,)
    torch.testing.assert_close(vectors @ weight + bias, head.layers(vectors)[:, 0], rtol=0, atol=2e-6)


def test_two_layers_by_hand():
    """2 (3 x + 5 y + 1) + 7."""
    layers = {"layers.10.weight": torch.tensor([[2.0]]), "layers.10.bias": torch.tensor([7.0])}
    layers |= {"layers.2.weight": torch.tensor([[3.0, 5.0]]), "layers.2.bias": torch.tensor([1.0])}
    weight, bias = folded(layers)
    assert (weight.tolist(), bias) == ([6.0, 10.0], 9.0)


@torch.no_grad()
def test_the_score_is_the_head_on_the_unit_vector_of_either_file(clip_l, head, tmp_path, generator):
    images = torch.rand(3, 3, 50, 40, generator=generator)
    vectors = image_tower(ClipSource(clip_l, CLIP_L)).embed(images)
    expected = mlp(16).layers(vectors)[:, 0]
    save_file(mlp(16).state_dict(), tmp_path / "model.safetensors")
    for path in (head, str(tmp_path)):
        reward = load("aesthetic", path=str(clip_l), head=path)
        values = reward.score(ScoreRequest(images, [""] * 3)).values
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)
        assert isinstance(reward, ImageEmbedder)


def test_a_head_that_is_none_is_said_in_a_line(clip_l, tmp_path):
    remedy = "name the head of LAION's aesthetic predictor v2"
    file = tmp_path / "head.safetensors"
    for tensors, fault in (
        (mlp(768).state_dict(), "it takes vectors of 768, and CLIP gives 16"),
        ({"model.weight": torch.zeros(1, 16)}, "its tensors are no row of linear layers"),
        ({"layers.0.weight": torch.zeros(1, 16)}, "its tensors are no row of linear layers"),
        (
            {"layers.0.weight": torch.zeros(2, 16), "layers.0.bias": torch.zeros(2)},
            "its tensors are no row of linear layers",
        ),
        ({"other": torch.zeros(1)}, "its tensors are no row of linear layers"),
    ):
        save_file(tensors, file)
        with pytest.raises(ArtifactError) as caught:
            load("aesthetic", path=str(clip_l), head=str(file))
        assert str(caught.value) == f"{file}: {fault}; {remedy}"


# --- clipscore


def test_scales(clip_l, generator):
    images = torch.rand(12, 3, 32, 32, generator=generator)
    request = ScoreRequest(images, [f"prompt {number}" for number in range(12)])
    source = ClipSource(clip_l, CLIP_L)
    cosines = (image_tower(source).embed(images) * text_tower(source).embed(request.prompts)).sum(dim=1)
    assert cosines.min() < 0 < cosines.max()
    expected = {
        "cos": cosines,
        "logit": 20.085537 * cosines,  # the golden network's logit scale is e³
        "paper": 2.5 * cosines.clamp(min=0),
        "percent": 100 * cosines.clamp(min=0),
    }
    for scale, values in expected.items():
        result = load("clipscore", path=str(clip_l), scale=scale).score(request)
        torch.testing.assert_close(result.values, values, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result.details["cos"], cosines)


# --- both


def test_aesthetic_and_clipscore_share_the_tower_and_encode_pictures_once(clip_l, head, generator):
    aesthetic = load("aesthetic", path=str(clip_l), head=head)
    score = load("clipscore", path=str(clip_l), scale="cos")
    assert aesthetic.images is score.images
    passes = []
    aesthetic.images.network.register_forward_hook(lambda *args: passes.append(1))
    request = ScoreRequest(torch.rand(2, 3, 32, 32, generator=generator), ["a", "b"])
    aesthetic.score(request), score.score(request)
    assert passes == [1]


def test_both_keep_the_contract(clip_l, head):
    for dtype in ("float32", "float16"):
        check_reward(load("aesthetic", path=str(clip_l), head=head, dtype=dtype))
        check_reward(load("clipscore", path=str(clip_l), scale="percent", dtype=dtype))


def test_through_the_command(clip_l, head, capsys):
    assert main(["plugins", "check", "aesthetic", "--set", f"path={clip_l}", "--set", f"head={head}"]) == 0
    assert main(["plugins", "check", "clipscore", "--set", f"path={clip_l}"]) == 0
    capsys.readouterr()
    assert main(["plugins", "check", "clipscore", "--set", f"path={clip_l}/none"]) == 3  # the user's to mend
    assert "no such file or folder" in " ".join(capsys.readouterr().out.split())


def test_what_is_downloaded_is_pinned_and_only_what_is_not_given():
    for name, given, files in (
        ("aesthetic", {}, ["openai/clip-vit-large-patch14", "ttj/sac-logos-ava1-l14-linearMSE"]),
        ("aesthetic", {"path": "here"}, ["ttj/sac-logos-ava1-l14-linearMSE"]),
        ("aesthetic", {"head": "here"}, ["openai/clip-vit-large-patch14"]),
        ("clipscore", {}, ["openai/clip-vit-large-patch14"]),
        ("clipscore", {"path": "here"}, []),
    ):
        needs = SPECS[name].needs(SPECS[name].options(**given))
        assert [one.repo for one in needs] == files
        assert all(len(one.revision) == 40 for one in needs)
