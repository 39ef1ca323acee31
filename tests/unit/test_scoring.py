"""Rewards held to their contract, alone and summed."""

import pytest
import torch

from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.engine.scoring import LoadedReward, checked_score, score_all
from sdpo_cli.errors import ArtifactError, PluginError

REQUEST = ScoreRequest(torch.tensor([0.2, 0.6])[:, None, None, None].expand(2, 3, 4, 4), ["a dog", "a cat"])


class Answers:
    """A reward that answers with whatever its function makes of the request."""

    def __init__(self, function):
        self.score = function


def brightness(request):
    values = request.images.mean(dim=(1, 2, 3))
    return ScoreResult(values, {"squared": values**2})


def ones(request):
    return ScoreResult(torch.ones(len(request.images)))


def test_rewards_are_weighed_and_summed():
    rewards = [LoadedReward("light", "1", 2.0, Answers(brightness)), LoadedReward("one", "1", -0.5, Answers(ones))]
    scored = score_all(rewards, REQUEST)
    torch.testing.assert_close(scored.total, torch.tensor([-0.1, 0.7]))
    torch.testing.assert_close(scored.values["light"], torch.tensor([0.2, 0.6]))
    assert scored.values["one"].tolist() == [1, 1]
    torch.testing.assert_close(dict(scored.details), {"light/squared": torch.tensor([0.04, 0.36])})


def test_a_reward_is_asked_without_gradients():
    images = REQUEST.images.clone().requires_grad_()
    assert not checked_score("light", Answers(brightness), ScoreRequest(images, ["", ""])).values.requires_grad


def raises(request):
    raise ValueError("two\nlines")


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (raises, "raised ValueError: two lines; report it to the plug-in's author"),
        (lambda request: torch.ones(2), "gave Tensor; a reward must give a ScoreResult"),
        (lambda request: ScoreResult([1.0, 2.0]), "values are list; a reward must give float32 tensors"),
        (lambda request: ScoreResult(torch.ones(2).double()),
         "values are torch.float64; a reward must give float32 tensors"),
        (lambda request: ScoreResult(torch.ones(3)), "values have shape [3] for 2 pictures; must be [2]"),
        (lambda request: ScoreResult(torch.ones(2, 1)), "values have shape [2, 1] for 2 pictures; must be [2]"),
        (lambda request: ScoreResult(torch.tensor(1.0)), "values have shape [] for 2 pictures; must be [2]"),
        (
            lambda request: ScoreResult(torch.tensor([1.0, torch.nan])),
            "values are not finite: nan for picture 1, 1 of 2 in all; a reward must give finite numbers",
        ),
        (
            lambda request: ScoreResult(torch.tensor([-torch.inf, torch.inf])),
            "values are not finite: -inf for picture 0, 2 of 2 in all; a reward must give finite numbers",
        ),
        (
            lambda request: ScoreResult(torch.ones(2), {"x": torch.ones(1)}),
            "details['x'] have shape [1] for 2 pictures; must be [2]",
        ),
    ],
)  # fmt: skip
def test_a_broken_reward_is_named_in_one_line(answer, line):
    with pytest.raises(PluginError) as caught:
        score_all(
            [LoadedReward("fine", "1", 1.0, Answers(ones)), LoadedReward("odd", "1", 1.0, Answers(answer))], REQUEST
        )
    assert str(caught.value) == f"reward odd: {line}"


def test_the_original_error_is_kept_for_debugging():
    with pytest.raises(PluginError) as caught:
        checked_score("odd", Answers(raises), REQUEST)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_fault_that_the_reward_explains_itself_passes_through():
    def explains(request):
        raise ArtifactError("no weights", place="w.safetensors")

    with pytest.raises(ArtifactError, match=r"^w\.safetensors: no weights$"):
        checked_score("odd", Answers(explains), REQUEST)
