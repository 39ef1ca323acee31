"""What the base model drew, kept for other runs: the same when read, under a name that says what it comes from."""

from dataclasses import replace

import pytest
import tiny
import torch

from sdpo_cli.api import Prompt
from sdpo_cli.engine.evaluating.evaluate import Drawn
from sdpo_cli.engine.rewards.scoring import LoadedReward
from sdpo_cli.engine.training.base_evaluation import base_path, read_base, write_base
from sdpo_cli.maths.images import to_uint8

SIDE = {
    4: Drawn({"brightness": [0.1, 1 / 3]}, None, torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))),
    1: Drawn({"brightness": [0.3, 1e-9]}, 0.25, torch.full((2, 4, 4, 3), 1.5).movedim(-1, 1)),
}


@pytest.fixture(scope="module")
def setup(checkpoint):
    return tiny.setup(checkpoint)


def test_what_is_read_shows_and_says_the_same(tmp_path):
    path = tmp_path / "new" / "base.safetensors"
    assert read_base(path) is None
    write_base(path, SIDE)
    found = read_base(path)
    assert list(found) == [4, 1]
    for steps, drawn in SIDE.items():
        assert (found[steps].values, found[steps].diversity) == (drawn.values, drawn.diversity)
        assert torch.equal(to_uint8(found[steps].pictures), to_uint8(drawn.pictures))


def test_what_cannot_be_read_is_drawn_anew(tmp_path):
    path = tmp_path / "base.safetensors"
    write_base(path, SIDE)
    path.write_bytes(path.read_bytes()[:-1])
    assert read_base(path) is None
    path.write_bytes(b"")
    assert read_base(path) is None


def test_only_what_evaluates_the_same_base_model_alike_shares_a_file(tmp_path, setup):
    def changed(section, **fields):
        recipe = setup.recipe
        return replace(
            setup, recipe=recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=fields)})
        )

    same = [setup, changed("train", epochs=9), changed("rollout", steps=9), changed("eval", every=3)]
    newer = LoadedReward("brightness", "2", 1.0, tiny.Brightness())
    others = [
        changed("eval", steps=(1,)),
        changed("eval", images_per_prompt=3),
        changed("eval", batch=3),
        changed("model", dtype="bfloat16"),
        replace(setup, recipe=setup.recipe.model_copy(update={"seed": 1})),
        replace(setup, rewards=(newer,)),
        replace(setup, eval_rewards=(newer,)),
        replace(setup, eval_prompts=setup.eval_prompts[1:]),
        replace(setup, eval_prompts=(Prompt("cat", {"style": "flat"}), *setup.eval_prompts[1:])),
        replace(setup, versions={"base model": "another 2"}),
    ]
    assert len({base_path(tmp_path, one) for one in same}) == 1
    assert len({base_path(tmp_path, one) for one in [setup, *others]}) == 1 + len(others)
