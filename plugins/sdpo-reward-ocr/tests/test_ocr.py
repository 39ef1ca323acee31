"""The reward `ocr`: the formula by hand, the wanted text, and real weights on rendered words."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("sdpo_reward_ocr", reason="pip install -e plugins/sdpo-reward-ocr")

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from sdpo_reward_ocr import OcrOptions
from sdpo_reward_ocr.reward import Ocr
from sdpo_reward_ocr.text import accuracy, cleaned, edit_distance, wanted

from sdpo_cli.api import LoadContext, UsageError
from sdpo_cli.api.tensors import ScoreRequest
from sdpo_cli.registry import load_registry
from sdpo_cli.testing import check_reward

TEXT = st.text("abc", max_size=5)


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("", "", 0),
        ("abc", "", 3),
        ("", "ab", 2),
        ("kitten", "sitting", 3),  # k>s, e>i, +g
        ("flaw", "lawn", 2),  # -f, +n
        ("sale", "SALE", 4),
        ("open", "opne", 2),  # a swap is two replacements
        ("日本", "日木", 1),
    ],
)
def test_edit_distance_worked_out_by_hand(one: str, other: str, distance: int) -> None:
    assert edit_distance(one, other) == distance


def slow_distance(one: str, other: str) -> int:
    """The textbook recursion."""
    if not one or not other:
        return len(one) + len(other)
    if one[0] == other[0]:
        return slow_distance(one[1:], other[1:])
    return 1 + min(slow_distance(one[1:], other), slow_distance(one, other[1:]), slow_distance(one[1:], other[1:]))


@given(TEXT, TEXT)
def test_edit_distance_equals_its_definition(one: str, other: str) -> None:
    assert edit_distance(one, other) == slow_distance(one, other)


@pytest.mark.parametrize(
    ("target", "read", "contained", "value"),
    [
        ("sale", "sale", True, 1.0),
        ("sale", "bigsaletoday", True, 1.0),
        ("sale", "bigsaletoday", False, 0.0),  # 8 insertions, capped at 4
        ("sale", "sole", True, 0.75),
        ("sale", "", True, 0.0),
        ("a", "xyz", True, 0.0),
        ("hello", "helo!", False, 0.6),  # d = 2: o for the second l, ! for o
    ],
)
def test_accuracy_worked_out_by_hand(target: str, read: str, contained: bool, value: float) -> None:
    assert accuracy(target, read, contained=contained) == pytest.approx(value)


@pytest.mark.parametrize(
    ("prompt", "metadata", "target", "text"),
    [
        ('a sign that says "Open now", and "more"', {}, "", "Open now"),
        ("a sign “Offen”", {}, "", "Offen"),
        ('a sign "Open"', {"text": "Closed"}, "", "Closed"),
        ('a sign "Open"', {"text": "Closed"}, "Fixed", "Fixed"),
        ('a sign "Open"', {"text": 3}, "", "Open"),
        ("a sign that says Open", {}, "", ""),
        ('an empty sign ""', {}, "", ""),
        ('5" of snow', {}, "", ""),
        ("", {}, "", ""),
    ],
)
def test_which_text_is_wanted(prompt: str, metadata: dict[str, object], target: str, text: str) -> None:
    assert wanted(OcrOptions(target=target), prompt, metadata) == text


@pytest.mark.parametrize(
    ("switched", "text"),
    [
        ({}, "joe'sbar,1st!"),
        ({"fold_width": False}, "joe'sbar,１st!"),
        ({"ignore_case": False}, "Joe'sBar,1st!"),
        ({"ignore_spaces": False}, "joe's\tbar, 1st!"),
        ({"ignore_punctuation": True}, "joesbar1st"),
    ],
)
def test_what_is_compared(switched: dict[str, bool], text: str) -> None:
    assert cleaned(OcrOptions(**switched), "Joe's\tBar, １st!") == text


def picture(*lines: str, color: str = "black", size: tuple[int, int] = (256, 160)) -> Tensor:
    """Lines of text on white."""
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for row, line in enumerate(lines):
        pen.text((20, 30 + 60 * row), line, fill=color, font=ImageFont.load_default(36))
    return torch.from_numpy(np.array(page)).permute(2, 0, 1) / 255


@pytest.fixture(scope="module")
def ocr() -> Ocr:
    return Ocr(OcrOptions(threads=1))


def scores(reward: Ocr, pictures: list[Tensor], prompts: list[str]) -> list[float]:
    return reward.score(ScoreRequest(torch.stack(pictures), prompts)).values.tolist()


def test_real_weights_read_rendered_words(ocr: Ocr) -> None:
    pictures = [picture("Hello"), picture("Hello"), picture("Open", "now", color="red"), picture()]
    prompts = ['a card "Hello"', 'a card "Help"', 'a door with "open now"', 'nothing but "air"']
    # "help" against "hello": p > l, + o: d = 2 of 4
    assert scores(ocr, pictures, prompts) == [1.0, 0.5, 1.0, 0.0]


def test_what_was_read_is_counted(ocr: Ocr) -> None:
    result = ocr.score(ScoreRequest(torch.stack([picture("Hello"), picture()]), ['"hello"', '"hello"']))
    assert result.details["characters_read"].tolist() == [5.0, 0.0]


def test_a_prompt_that_wants_no_text_stops_or_scores_zero(ocr: Ocr) -> None:
    request = ScoreRequest(torch.stack([picture("Hello")] * 2), ['"Hello"', "a red cat, " * 9])
    with pytest.raises(UsageError) as caught:
        ocr.score(request)
    assert str(caught.value) == (
        "reward ocr: picture 1 has no wanted text: 'a red cat, a red cat, a red cat, a red cat, a red cat, a re…' has "
        "none in double quotes; quote it in the prompt, set the option target, or set no_target to zero"
    )
    zero = Ocr(OcrOptions(threads=1, no_target="zero"))
    assert zero.score(request).values.tolist() == [1.0, 0.0]


def test_a_target_of_which_nothing_is_left_to_compare_is_none(ocr: Ocr) -> None:
    with pytest.raises(UsageError, match="picture 0 has no wanted text"):
        ocr.score(ScoreRequest(picture()[None], ['only "  "']))


def test_lines_below_the_confidence_are_left_out() -> None:
    sure = Ocr(OcrOptions(threads=1, min_confidence=1.0, target="hello"))
    assert scores(sure, [picture("Hello")], [""]) == [0.0]


def test_it_keeps_the_contract() -> None:
    chosen = load_registry().reward("ocr", {"target": "a", "threads": 1})
    check_reward(chosen.load(LoadContext()), prompts=("a sign", ""))
