"""A tiny VAE decodes what is rewarded in training; what it costs in truth is logged."""

import dataclasses

import pytest
import tiny
import torch
from diffusers import AutoencoderTiny

from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.events import EpochDone
from sdpo_cli.engine.learning.preview import rewarded_decoder
from sdpo_cli.engine.training.trainer import train


@pytest.fixture
def setup(checkpoint):
    """One epoch of four pairs, rewarded on the pictures of a tiny VAE."""
    made = tiny.setup(checkpoint, epochs=1)
    torch.manual_seed(3)
    made.model.tiny_vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return made


def metrics(setup, folder):
    (done,) = [event for event in train(setup, RunFolder(folder), resume=None) if isinstance(event, EpochDone)]
    return done.metrics


def test_the_gap_is_what_the_reward_gives_previews_beyond_pictures(setup, tmp_path):
    model, seen = setup.model, []

    class Seen:
        def score(self, request):
            seen.append(request.images)
            return tiny.Brightness().score(request)

    rewards = (dataclasses.replace(setup.rewards[0], reward=Seen()),)
    row = metrics(dataclasses.replace(setup, rewards=rewards), tmp_path / "run")
    *rewarded, preview, picture = seen
    assert len(preview) == len(picture) == 4
    assert row["preview_gap/pictures"] == pytest.approx(255 * float((preview - picture).abs().mean()))
    assert row["preview_gap/brightness"] == pytest.approx(float(preview.mean() - picture.mean()), abs=1e-6)
    assert row["queries"] == sum(map(len, rewarded)), "comparing is no reward query"
    x0 = torch.randn(2, *model.latent_shape)
    assert torch.equal(rewarded_decoder(model)(x0), model.decode_preview(x0))
    assert not torch.equal(model.decode_preview(x0), model.decode(x0))


def test_without_a_tiny_vae_nothing_is_compared(checkpoint, tmp_path):
    setup = tiny.setup(checkpoint, epochs=1)
    assert not [name for name in metrics(setup, tmp_path / "run") if name.startswith("preview")]
    assert rewarded_decoder(setup.model) == setup.model.decode
