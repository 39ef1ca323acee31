"""What goes out of the program: names of files, pages, and the messages of remote rewards."""

import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch
from hostile_cases import NASTY, as_json, cases, junk, texts
from hypothesis import strategies as st
from pydantic import ValidationError

from sdpo_cli.api.remote import Answer, Info, Limits, first_fault
from sdpo_cli.engine.evaluating.drawing import slug
from sdpo_cli.engine.evaluating.records import Diversity, EvaluationReport, Interval, StepResult
from sdpo_cli.engine.evaluating.report import Picture, ReportPage, render_report
from sdpo_cli.engine.rewards.serving import RefusedError, Service, score_question


@cases("file names", st.text(max_size=60) | st.sampled_from(NASTY).map(lambda text: text * 9))
def test_any_prompt_makes_a_harmless_name(place: Path, prompt: str) -> None:
    name = slug(prompt)
    assert 0 < len(name) <= 40
    assert len(name.encode()) <= 120
    assert Path(name).name == name
    assert name == unicodedata.normalize("NFC", name)
    assert not {unicodedata.category(letter) for letter in name.replace("-", "")} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zs"}
    assert not set(name) & set('<>:"/\\|?*. ')
    assert name == name.strip("-")
    assert (place / f"00000-{name}-seed0.png").parent == place


class Tags(HTMLParser):
    """The tags of a page with their attributes' names, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[Any] = []
        self.said = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attrs]))

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")

    def handle_data(self, data: str) -> None:
        self.said += data


def page(*said: str) -> str:
    """A report in which people's words stand wherever they can."""
    title, model, adapter, transition, reward, measure, caption, recipe, version = said
    mean = Interval(0.5, 0.4, 0.6)
    result = StepResult(1, reward, mean, mean, mean, 0.5, 1)
    diversity = (Diversity(1, measure, 0.1, 0.2),)
    report = EvaluationReport(model, adapter, 1, 1, transition, 1.0, 0, (result,), diversity)
    return render_report(ReportPage(title, report, [], [Picture(b"x", caption)], recipe, [version]))


INJECTED = [
    "<script>alert(1)</script>", '"><img src=x onerror=a()>', "' onload='a()", "</pre><iframe>", "<!--", "]]>", "&lt;",
    "</title><script>", "{{ 7*7 }}", "{% raw %}", "</style><svg/onload=a()>", "javascript:a()", "\x00<b>",
]  # fmt: skip
PLAIN = Tags(page(*["x"] * 9)).tags


@cases("pages", st.lists(st.sampled_from(INJECTED) | texts.map(lambda text: f"x{text}"), min_size=9, max_size=9))
def test_whatever_people_wrote_adds_no_element_and_no_attribute(place: Path, said: list[str]) -> None:
    found = Tags(page(*said))
    assert found.tags == PLAIN
    assert said[7].replace("\r", "\n").strip("\n") in found.said.replace("\r", "\n") or "\x00" in said[7]


class Light:
    """The mean level."""

    def score(self, request: Any) -> Any:
        from sdpo_cli.api.tensors import ScoreResult

        return ScoreResult(request.images.mean((1, 2, 3)))


SERVICE = Service(Info(reward="light", version="1", limits=Limits(max_pixels=64)), Light(), torch.device("cpu"), None)
pictures = st.fixed_dictionaries(
    {
        "encoding": st.sampled_from(["rgb8", "png"]) | junk,
        "height": st.sampled_from([1, 0, -1, 50_000, 2**70]) | junk,
        "width": st.just(1) | junk,
        "data": st.sampled_from(["AAAA", "AA", "iVBORw0KGgo=", "?"]) | junk,
    }
)
questions = st.dictionaries(
    st.sampled_from(["protocol", "images", "prompts", "metadata"]), st.lists(pictures | junk, max_size=2) | junk
)


@cases("questions", (questions | junk).map(as_json) | texts)
def test_any_question_is_scored_or_refused_in_one_line(place: Path, question: str) -> None:
    refused = None
    try:
        score_question(SERVICE, question.encode(errors="replace"))
    except RefusedError as error:
        refused = error
    assert refused is None or (400 <= refused.status < 500 and len(str(refused).splitlines()) == 1)


answers = st.dictionaries(st.sampled_from(["protocol", "reward", "version", "values", "details"]), junk)


@cases("answers", (answers | junk).map(as_json) | texts)
def test_any_answer_is_read_or_told_in_one_line(place: Path, answer: str) -> None:
    from sdpo_cli.builtin.remote.exchange import FailedError

    told = "read"
    try:
        Answer.model_validate_json(answer.encode(errors="replace"))
    except ValidationError as error:
        told = str(FailedError(first_fault(error)))
    assert len(told.splitlines()) == 1
