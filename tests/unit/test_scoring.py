"""Rewards held to their contract, alone and summed."""

import pytest
import torch

from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.engine.rewards.scoring import LoadedReward, checked_score, columns, standardised, weighted_sum
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


def test_columns_are_each_rewards_own_values_and_details():
    rewards = [LoadedReward("light", "1", 2.0, Answers(brightness)), LoadedReward("one", "1", -0.5, Answers(ones))]
    found = columns(rewards, [checked_score(reward.name, reward.reward, REQUEST) for reward in rewards])
    expected = {
        "light": torch.tensor([0.2, 0.6]),
        "light/squared": torch.tensor([0.04, 0.36]),
        "one": torch.tensor([1.0, 1.0]),
    }
    torch.testing.assert_close(found, expected)


NAN = float("nan")
TABLE = torch.tensor([[[1.0, 3.0], [10.0, NAN], [7.0, 7.0]], [[5.0, NAN], [10.0, 40.0], [7.0, 7.0]]])
"""Two rollouts of three prompts, two steps."""


def test_values_are_standardised_over_all_pictures_of_a_prompt():
    found = standardised(TABLE, ["a", "b", "c"])
    # a: 1 3 5, mean 3, std sqrt(8/3); b: 10 10 40, mean 20, std sqrt(200); c: all equal
    a, b = 2 / (8 / 3) ** 0.5, 10 / 200**0.5
    expected = torch.tensor(
        [
            [
                [
                    -a,
                    0,
                ],
                [-b, NAN],
                [0, 0],
            ],
            [[a, NAN], [-b, 2 * b], [0, 0]],
        ]
    )
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_pairs_of_the_same_prompt_are_one_group():
    found = standardised(TABLE[:, :2], ["a", "a"])
    known = torch.tensor([1.0, 3, 10, 5, 10, 40])
    expected = (TABLE[:, :2] - known.mean()) / known.std(correction=0)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_each_reward_is_normalised_as_it_says_and_weighed():
    rewards = [
        LoadedReward("light", "1", 2.0, Answers(ones)),
        LoadedReward("size", "1", -0.5, Answers(ones), normalise="prompt"),
    ]
    values = {"light": torch.tensor([[[0.25]], [[0.75]]]), "size": torch.tensor([[[1000.0]], [[3000.0]]])}
    # size becomes -1 and +1
    torch.testing.assert_close(weighted_sum(rewards, values, ["a"]), torch.tensor([[[1.0]], [[1.0]]]))


def test_pictures_that_do_not_fit_together_are_scored_in_halves():
    sizes = []

    def hungry(request):
        sizes.append(len(request.images))
        if len(request.images) > 1:
            raise torch.OutOfMemoryError("no memory")
        return brightness(request)

    result = checked_score("hungry", Answers(hungry), REQUEST)
    assert sizes == [2, 1, 1]
    torch.testing.assert_close(result.values, torch.tensor([0.2, 0.6]))
    torch.testing.assert_close(result.details["squared"], torch.tensor([0.04, 0.36]))


def test_one_picture_that_does_not_fit_is_told():
    def starved(request):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(PluginError, match=r"^reward hungry: one picture does not fit into memory; free memory, or "):
        checked_score("hungry", Answers(starved), REQUEST)


def test_a_reward_is_asked_without_gradients():
    images = REQUEST.images.clone().requires_grad_()
    assert not checked_score("light", Answers(brightness), ScoreRequest(images, ["", ""])).values.requires_grad


def raises(request):
    raise ValueError("two\nlines")


def leaves(request):
    raise SystemExit(7)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (raises, "raised ValueError: two lines; report it to the plug-in's author"),
        (leaves, "raised SystemExit: 7; report it to the plug-in's author"),
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
        checked_score("odd", Answers(answer), REQUEST)
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
