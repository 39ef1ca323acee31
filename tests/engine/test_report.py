"""The report's numbers, page, curves and model card."""

import base64
import io
import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
import yaml
from PIL import Image

from sdpo_cli.engine.evaluating.records import (
    Diversity,
    EvaluationReport,
    Interval,
    StepResult,
    mean_interval,
    paired_difference,
    per_prompt_means,
    student_t,
    to_json,
    win_rate,
)
from sdpo_cli.engine.evaluating.report import (
    DARK,
    ModelCard,
    Picture,
    ReportPage,
    draw_curves,
    render_model_card,
    render_report,
)

METRICS = [{"epoch": n, "images": 64.0 * n, "reward_first": 0.1 * n, "reward_last": 0.2 * n} for n in (1, 2, 3)]
RECIPE = """\
model: {name: emoji-turbo, options: {guidance: null}}
reward: {emoji-style: {style: 3d}}
rollout: {steps: 2}
"""
VERSIONS = ["sdpo-cli 0.1.0", "torch 2.13.0"]


def result(steps: int, reward: str = "emoji-style", change: float = 0.5) -> StepResult:
    base, difference = Interval(0.25, 0.2, 0.3), Interval(change, change - 0.125, change + 0.125)
    return StepResult(steps, reward, base, Interval(0.25 + change, 0.7, 0.8), difference, 0.9375, 90)


REPORT = EvaluationReport(
    model="emoji-turbo",
    adapter="runs/x/adapter",
    prompts=45,
    images=360,
    transition="ddim",
    eta=1.0,
    seed=7,
    results=(result(4), result(1), result(1, "emoji-clip", -0.5), result(4, "emoji-clip", 0.0625)),
    diversity=(Diversity(1, "1 - cosine", 0.2, 0.15), Diversity(4, "1 - cosine", 0.21, None)),
)
ALONE = replace(
    REPORT,
    adapter=None,
    results=(StepResult(1, "emoji-style", Interval(0.25, None, None), None, None, None, 1),),
    diversity=(),
)


def png(size: tuple[int, int] = (3, 2)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


class TestStatistics:
    @pytest.mark.parametrize(
        ("freedom", "table"),
        [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (44, 2.015), (10**6, 1.960)],
    )
    def test_student_t_is_that_of_printed_tables(self, freedom, table):
        assert student_t(freedom) == pytest.approx(table, rel=2e-3)

    def test_interval_by_hand(self):
        # mean 2, standard deviation 1, three values: 2 ± 4.303 / √3
        interval = mean_interval([1.0, 2.0, 3.0])
        half = 4.3027 / math.sqrt(3)
        assert (interval.mean, interval.low, interval.high) == pytest.approx((2, 2 - half, 2 + half), rel=1e-4)

    def test_one_value_has_a_mean_and_no_interval(self):
        assert mean_interval([0.5]) == Interval(0.5, None, None)

    def test_no_value_is_an_error(self):
        with pytest.raises(ValueError, match="at least one"):
            mean_interval([])

    def test_pairing_removes_what_both_sides_share(self):
        # the prompts differ by 10, the change is 1 for each
        difference = paired_difference([11.0, 21.0, 31.0], [10.0, 20.0, 30.0])
        assert difference == Interval(1.0, 1.0, 1.0)
        with pytest.raises(ValueError, match="shorter"):
            paired_difference([1.0, 2.0], [1.0])

    def test_prompts_are_the_unit_however_many_pictures_each_has(self):
        assert per_prompt_means([1.0, 5.0, 3.0, 7.0], ["b", "a", "b", "b"]) == [pytest.approx(11 / 3), 5.0]
        copies = per_prompt_means([1.0, 2.0, 3.0] * 100, ["a", "b", "c"] * 100)
        assert mean_interval(copies) == mean_interval([1.0, 2.0, 3.0])

    def test_an_equal_pair_is_half_a_win(self):
        assert win_rate([2.0, 1.0, 0.0, 3.0], [1.0, 1.0, 1.0, 1.0]) == 0.625


class TestJson:
    def test_it_names_its_format_and_holds_every_field(self):
        written = json.loads(to_json(REPORT))
        assert written["format"] == 1
        assert written == json.loads(json.dumps(asdict(REPORT)))
        assert json.loads(to_json(ALONE))["results"][0]["tuned"] is None


class TestCurves:
    def test_is_a_picture_in_the_colours_of_its_theme(self):
        light, dark = (Image.open(io.BytesIO(draw_curves(METRICS, *theme))).convert("RGB") for theme in ((), (DARK,)))
        assert light.size == dark.size
        assert light.getpixel((0, 0)) == (255, 255, 255)
        assert dark.getpixel((0, 0)) == (0x1A, 0x1E, 0x26)
        assert (0x2F, 0x6F, 0xDE) in set(light.get_flattened_data())

    def test_draws_the_one_line_there_is(self):
        without = [{key: value for key, value in row.items() if key != "reward_first"} for row in METRICS]
        assert draw_curves(without) != draw_curves(METRICS)

    def test_same_numbers_same_bytes(self):
        assert draw_curves(METRICS) == draw_curves(METRICS)


class Page(HTMLParser):
    """The tags of a page and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += [data.strip()] if data.strip() else []

    def attributes(self, tag: str, name: str) -> list[str]:
        return [str(found[name]) for kind, found in self.tags if kind == tag and name in found]


def page(**changes) -> ReportPage:
    whole = ReportPage("quickstart", REPORT, METRICS, (Picture(png(), "before, after"),), RECIPE, VERSIONS)
    return replace(whole, **changes)


class TestPage:
    def test_table_has_a_block_for_each_reward_in_order_of_steps(self):
        words = Page(render_report(page())).words
        block = words[words.index("emoji-style") : words.index("emoji-clip")]
        assert block[6:14] == [
            "1",
            "0.250",
            "0.200 to 0.300",
            "0.750",
            "0.700 to 0.800",
            "+0.500",
            "0.375 to 0.625",
            "94%",
        ]
        assert block[14] == "4"

    def test_a_change_is_coloured_only_where_its_interval_leaves_out_zero(self):
        spans = re.findall(r'<span class="(\w*)">([^<]*)</span>', render_report(page()))
        assert spans == [("up", "+0.500"), ("up", "+0.500"), ("down", "−0.500"), ("", "+0.062")]

    def test_the_guard_s_lines_are_there_only_where_there_are_some(self):
        lines = ("guard, epoch 2: emoji-clip is 0.5, below 0.6; training stops", "Kept: epoch 1 <b>")
        text = render_report(page(guard=lines))
        assert text.index("<h2>Guard</h2>") < text.index(lines[0]) < text.index("Kept: epoch 1 &lt;b&gt;")
        assert "Guard" not in render_report(page())

    def test_loads_nothing_and_runs_nothing(self):
        found = Page(render_report(page()))
        loaded = found.attributes("img", "src") + found.attributes("source", "srcset")
        assert len(loaded) == 3
        for uri in loaded:
            kind, data = uri.split(",")
            assert kind == "data:image/png;base64"
            Image.open(io.BytesIO(base64.b64decode(data))).verify()
        assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
        assert "http" not in re.sub(r"http-equiv", "", render_report(page(pictures=(), metrics=())))

    def test_what_people_typed_is_text_not_markup(self):
        typed = "<script>alert('x')</script> & \"more\""
        text = render_report(page(title=typed, recipe=typed, pictures=(Picture(png(), typed),)))
        found = Page(text)
        assert "script" not in {tag for tag, _ in found.tags}
        assert found.words.count(typed) == 4  # title, heading, caption, recipe
        assert found.attributes("img", "alt")[0] == typed

    def test_the_base_model_alone_has_one_column_and_no_empty_sections(self):
        words = Page(render_report(page(report=ALONE, metrics=(), pictures=()))).words
        at = words.index("emoji-style") + 1
        assert words[at : at + 4] == ["steps", "mean", "1", "0.250"]
        assert not {"before", "after", "change"} & set(words)
        assert not {"Training", "Pictures", "Diversity within a prompt"} & set(words)

    def test_names_recipe_and_versions(self):
        words = Page(render_report(page())).words
        assert RECIPE.strip() in words
        assert "sdpo-cli 0.1.0, torch 2.13.0" in words
        assert "Each epoch draws other prompts, so that its mean may fall while the table above rises." in words


def card(**changes) -> ModelCard:
    return replace(
        ModelCard("quickstart", "sd-turbo", "stabilityai/sd-turbo", "float32", True, RECIPE, VERSIONS, REPORT),
        **changes,
    )


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


class TestModelCard:
    def test_says_what_the_guard_did_where_there_was_one(self):
        text = render_model_card(card(guard=("guard, epoch 1: every rule is kept", "Kept: epoch 1.")))
        assert (
            "\n## Which epoch this is\n\n- guard, epoch 1: every rule is kept\n- Kept: epoch 1.\n\n## Recipe\n" in text
        )
        assert "Which epoch" not in render_model_card(card())

    def test_links_the_base_model_only_where_it_is_on_the_hub(self):
        assert front_matter(render_model_card(card()))["base_model"] == "stabilityai/sd-turbo"
        assert 'from_pretrained("stabilityai/sd-turbo", dtype=torch.float32)' in render_model_card(card())
        assert "base_model" not in front_matter(render_model_card(card(on_hub=False)))

    def test_names_no_folder_of_the_machine_it_was_made_on(self):
        local = render_model_card(card(source='/somewhere/here/"mine"', on_hub=False))
        assert 'from_pretrained("path/to/\\"mine\\"", dtype=torch.float32)' in local
        assert "somewhere" not in local

    def test_the_code_it_shows_is_python(self):
        (code,) = re.findall(r"```python\n(.*?)```", render_model_card(card()), re.DOTALL)
        compile(code, "card", "exec")
        assert 'pipe("a prompt", num_inference_steps=2, guidance_scale=1.0)' in code
        guided = render_model_card(card(recipe=RECIPE.replace("null", "7.5")))
        assert "num_inference_steps=2, guidance_scale=7.5)" in guided
        assert "no guidance" in render_model_card(card())
        assert "no guidance" not in guided

    def test_tables_have_rows_of_as_many_cells_as_their_head(self):
        lines = render_model_card(card()).splitlines()
        tables = [line.count("|") for line in lines if line.startswith("|")]
        assert tables == [6] * 8 + [5] * 4
        assert "| 1 | 0.250 (0.200 to 0.300) | 0.750 (0.700 to 0.800) | +0.500 (0.375 to 0.625) | 94% |" in lines

    def test_without_an_evaluation_it_says_nothing_about_change(self):
        text = render_model_card(card(report=None))
        assert "What it changed" not in text
        assert RECIPE.strip() in text
