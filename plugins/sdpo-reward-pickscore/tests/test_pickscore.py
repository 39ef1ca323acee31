"""PickScore on tiny weights in the layout of the authors' repository."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sdpo_reward_pickscore import PickScoreOptions, load, needs
from torch.nn.functional import normalize
from transformers import CLIPConfig

from sdpo_cli.api import LoadContext
from sdpo_cli.api.clip import CLIP_H, text_vectors
from sdpo_cli.api.clip_weights import from_open_clip, image_config, text_config
from sdpo_cli.api.images import clip_pixels
from sdpo_cli.api.tensors import ScoreRequest
from sdpo_cli.errors import ArtifactError
from sdpo_cli.main import main
from sdpo_cli.testing import check_reward

GOLDEN = Path(__file__).parents[3] / "tests" / "golden" / "clip-h.safetensors"


def configuration(weights, **vision):
    image = {**image_config(CLIP_H, weights).to_dict(), **vision}
    text = text_config(CLIP_H, weights).to_dict()
    return CLIPConfig(text_config=text, vision_config=image, projection_dim=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """open_clip's tiny weights under transformers' names, with the whole vocabulary and a `config.json`."""
    path = tmp_path_factory.mktemp("pickscore")
    raw = {name.removeprefix("weights."): one for name, one in load_file(GOLDEN).items() if name.startswith("weights.")}
    raw["token_embedding.weight"] = torch.randn(49408, 32, generator=torch.Generator().manual_seed(0))
    weights = from_open_clip(raw)
    save_file({name: one.contiguous() for name, one in weights.items()}, path / "model.safetensors")
    configuration(weights).save_pretrained(path)
    return path


def loaded(folder, **options):
    return load(PickScoreOptions(path=str(folder), **options), LoadContext())


@pytest.fixture
def request_of_six():
    images = torch.rand(6, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    return ScoreRequest(images, ["a cat", "a dog", "a cat", "", "it’s 😀", "a <|endoftext|> cat"])


def test_pictures_are_embedded_as_open_clip_does(folder):
    golden = load_file(GOLDEN)
    network = loaded(folder).images.network
    images = normalize(network(pixel_values=golden["pixels"]).image_embeds, dim=-1)
    torch.testing.assert_close(images, golden["image"], rtol=0, atol=1e-6)


def test_scores_are_those_of_the_authors_formula(folder, request_of_six):
    """exp(logit_scale) · cos on transformers' own CLIPModel, as their repository has it, with their tokens."""
    from transformers import CLIPModel

    reward = loaded(folder, scale="logit")
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [torch.tensor(one) for one in ([49406, 320, 2368, 49407], [49406, 320, 1929, 49407])]
    with torch.no_grad():
        images = model.get_image_features(pixel_values=clip_pixels(request_of_six.images, 28)).pooler_output
        texts = model.get_text_features(input_ids=torch.stack(ids)).pooler_output
        cosines = (normalize(images[:2], dim=-1) * normalize(texts, dim=-1)).sum(dim=-1)
        expected = model.logit_scale.exp() * cosines
    result = reward.score(request_of_six)
    torch.testing.assert_close(result.values[:2], expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(result.details["cos"][:2], cosines, rtol=0, atol=1e-6)
    torch.testing.assert_close(text_vectors(reward.text.network, torch.stack(ids)), normalize(texts, dim=-1))


def test_scales(folder, request_of_six):
    cos, logit, unit = (loaded(folder, scale=scale).score(request_of_six).values for scale in ("cos", "logit", "unit"))
    torch.testing.assert_close(logit, 20.085537 * cos, rtol=1e-5, atol=1e-5)  # the golden network's scale is e³
    torch.testing.assert_close(unit, logit / 26)


def test_the_contract(folder):
    check_reward(loaded(folder))
    check_reward(loaded(folder, dtype="float16", scale="unit"), size=2)


def test_through_the_command(folder):
    assert main(["plugins", "check", "pickscore", "--set", f"path={folder}", "--set", "scale=logit"]) == 0


def test_weights_of_another_clip_are_refused(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    save_file(weights, tmp_path / "model.safetensors")
    configuration(weights, hidden_act="quick_gelu").save_pretrained(tmp_path)
    with pytest.raises(ArtifactError) as caught:
        loaded(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/config.json: vision_config.hidden_act is 'quick_gelu', not 'gelu'; "
        "name weights of open_clip's ViT-H-14"
    )


def test_only_what_is_not_given_is_downloaded():
    (weights,) = needs(PickScoreOptions())
    assert (weights.repo, len(weights.revision), weights.files) == (
        "yuvalkirstain/PickScore_v1",
        40,
        ("model.safetensors",),
    )
    assert needs(PickScoreOptions(path="here")) == []
