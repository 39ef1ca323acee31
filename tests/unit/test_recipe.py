"""Recipes: what is read, what is overridden, and every fault in its own words."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from sdpo_cli.errors import RecipeError, UsageError
from sdpo_cli.recipe import (
    Choice,
    Recipe,
    RewardChoice,
    dump_recipe,
    read_recipe,
    recipe_faults,
    shipped_recipes,
    sound_part,
)
from sdpo_cli.recipe.shorthand import expand
from sdpo_cli.recipe.text import format_yaml, parse_yaml
from sdpo_cli.registry import load_recipe

ETA_REMEDY = "use an eta above 0, or rollout.transition renoise"
COMMAS = "separate its entries by commas and close it with "
BARE = "model: m\nprompts: p\nreward: r\n"


def written(folder: Path, text: str | bytes, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(folder: Path, text: str, *overrides: str) -> Recipe:
    raw = read_recipe(written(folder, text), overrides)
    recipe, faults = recipe_faults(raw.raw, "x.yaml")
    assert faults == []
    assert recipe is not None
    return recipe


def faults_of(text: str) -> list[str]:
    recipe, faults = recipe_faults(parse_yaml(text, "x.yaml"), "x.yaml")
    assert recipe is None
    return faults


def refusal(source: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read_recipe(source, overrides)
    return str(caught.value).replace(str(source), "x.yaml")


def test_the_bare_recipe_gets_the_documented_defaults(tmp_path: Path) -> None:
    recipe = read(tmp_path, BARE)
    assert recipe.name == "x"
    assert recipe.objective == Choice(name="sdpo")
    assert (recipe.rollout.pairs, recipe.rollout.steps, recipe.rollout.transition, recipe.rollout.eta) == (
        32,
        4,
        "ddim",
        1,
    )
    assert (recipe.train.batch, recipe.train.micro_batch, recipe.train.learning_rate) == ("all", "auto", 3e-4)
    assert recipe.eval.steps == (1, 2, 4, 8)
    assert recipe.reward == (RewardChoice(name="r", weight=1.0),)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"model": "m"}, {"model": {"name": "m"}}),
        ({"prompts": "p"}, {"prompts": {"p": {}}}),
        ({"prompts": {"p": None}}, {"prompts": {"p": {}}}),
        ({"objective": {"o": {"gamma": 0.9}}}, {"objective": {"o": {"gamma": 0.9}}}),
        ({"reward": "a"}, {"reward": {"a": {}}}),
        ({"reward": {"a": {"k": 1}, "b": {"weight": 2}}}, {"reward": {"a": {"k": 1}, "b": {"weight": 2}}}),
        ({"reward": ["a", {"b": {"weight": 2}}]}, {"reward": {"a": {}, "b": {"weight": 2}}}),
        ({"eval": {"rewards": ["a"], "prompts": "p"}}, {"eval": {"rewards": {"a": {}}, "prompts": {"p": {}}}}),
    ],
)
def test_short_forms_have_one_long_form(short: dict[str, Any], long: dict[str, Any]) -> None:
    assert expand(short) == long
    assert expand(long) == long


def test_rewards_carry_weights_apart_from_their_options(tmp_path: Path) -> None:
    recipe = read(tmp_path, "model: m\nprompts: p\nreward: [a, {b: {style: flat, weight: -0.5}}]")
    assert recipe.reward == (
        RewardChoice(name="a"),
        RewardChoice(name="b", options={"style": "flat"}, weight=-0.5),
    )


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("train.epochs=4", lambda recipe: recipe.train.epochs, 4),
        ("train.learning_rate=1e-4", lambda recipe: recipe.train.learning_rate, 1e-4),
        ("prompts=other.txt", lambda recipe: recipe.prompts, Choice(name="other.txt")),
        ("objective.sdpo.gamma=0", lambda recipe: recipe.objective.options, {"gamma": 0}),
        ("reward.a.style=flat", lambda recipe: recipe.reward[0].options, {"style": "flat"}),
        ("reward=b", lambda recipe: recipe.reward, (RewardChoice(name="b"),)),
        ("reward={b: {weight: 2}}", lambda recipe: recipe.reward, (RewardChoice(name="b", weight=2.0),)),
        ("model.lora.rank=2", lambda recipe: (recipe.model.name, recipe.model.lora.rank), ("m", 2)),
        ("model=other", lambda recipe: recipe.model.name, "other"),
        ("name=a=b", lambda recipe: recipe.name, "a=b"),
        ("eval.steps=[2, 3]", lambda recipe: recipe.eval.steps, (2, 3)),
        ("eval.prompts=q", lambda recipe: recipe.eval.prompts, Choice(name="q")),
    ],
)
def test_set_overrides_a_field(tmp_path: Path, override: str, field: Any, value: Any) -> None:
    assert field(read(tmp_path, "model: m\nprompts: p\nreward: a\n", override)) == value


def test_later_overrides_build_on_earlier_ones_and_keys_may_hold_dots(tmp_path: Path) -> None:
    recipe = read(
        tmp_path, BARE, "prompts=my.list.csv", "prompts.my.list.csv.column=caption", "train.epochs=1", "train.epochs=2"
    )
    assert recipe.prompts == Choice(name="my.list.csv", options={"column": "caption"})
    assert recipe.train.epochs == 2


def test_overrides_that_fit_nowhere_are_reported_together(tmp_path: Path) -> None:
    path = written(tmp_path, BARE + "seed: 3")
    assert read_recipe(path, ["train.epochs", "seed.x=3", "train={", "=3"]).faults == [
        "--set train.epochs: no field and value; write --set train.epochs=4",
        "--set seed.x: seed is a value and has no field x; write --set seed=VALUE",
        "--set train: line 1, column 2: a value is missing; write one, or null",
        "--set : no field and value; write --set train.epochs=4",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("1.", 1.0),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("+3", 3),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("12:30:45", "12:30:45"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("True", True),
        ("false", False),
        ("2024-01-31", "2024-01-31"),
        ("~", None),
        ("Null", None),
        ("", None),
        ("3d", "3d"),
        ("'1'", "1"),
        ("=", "="),
        ("<<", "<<"),
        ("e4", "e4"),
        (".", "."),
        ("-", [None]),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read_value = parse_yaml(text, "x")
    assert read_value == value
    assert type(read_value) is type(value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3\n", "3, column 1: key a is written twice; keep one of them"),
        ("a:\n  b: 1\n  b: 2\n", "3, column 3: key b is written twice; keep one of them"),
        ("a: &x [1]\nb: *x\n", "2, column 4: alias *x; write the value out"),
        ("a: &x [*x]\n", "1, column 8: alias *x; write the value out"),
        ("1: 2\n", "1, column 1: key 1 is no text; quote it"),
        ("no: 2\n? [a]\n: 3\n", "2, column 3: key ['a'] is no text; quote it"),
        ("a: !!python/name:os.system x\n", "1, column 4: tag !!python/name:os.system; write the value alone"),
        ("a: 1\nb: !!bool 3\n", "2, column 4: tag !!bool; write the value alone"),
        ("a: !!float no\n", "1, column 4: tag !!float; write the value alone"),
        ("!!map [1]\n", "1, column 1: tag !!map; write the value alone"),
        ("!!seq {a: 1}\n", "1, column 1: tag !!seq; write the value alone"),
        ("a: !!null x\n", "1, column 4: tag !!null; write the value alone"),
        ("!!str a: 1\n", "1, column 1: tag !!str; write the value alone"),
        ("a: !mine x\n", "1, column 4: tag !mine; write the value alone"),
        ("a: [1\n", "2, column 1: a list that begins with [ does not go on like this; " + COMMAS + "]"),
        ("a: {b\n", "2, column 1: a mapping that begins with { does not go on like this; " + COMMAS + "}"),
        ("a: 1\n\tb: 2\n", "2, column 1: a tab before a value; indent with spaces"),
        ("a: @x\n", "1, column 4: no value can begin with this letter; put the text in quotes"),
        ("a: 1\n---\nb: 2\n", "2, column 1: a second document begins; keep one, without lines ---"),
        ("a: 'x", "1, column 6: a quoted text has no end; close its quotes"),
        ("a: 'x\n---\n'", "2, column 1: a quoted text has no end; close its quotes"),
        ("a: b: c", "1, column 5: no field can begin here; indent it like its neighbours, or quote the text"),
        ("a: - b", "1, column 4: no list can begin here; begin it on a line of its own, or write [a, b]"),
        ("a: 1\nbc\nd: 2", "3, column 1: a field without a colon; write `field: value`"),
        ("a: ? b", "1, column 4: no field can begin here; put the text in quotes"),
        (
            "- a\nb: 1",
            "2, column 1: this does not fit what is above it; indent neighbours alike, close quotes and brackets",
        ),
        (
            'a: "\\q"',
            "1, column 6: an unknown escape in a quoted text; write \\\\ for a backslash, or use single quotes",
        ),
        ("a: ]", "1, column 4: a value is missing; write one, or null"),
        ("a: *", "1, column 5: no name follows & or *; put a text that begins with them in quotes"),
        ("a: |x\n b", "1, column 5: an unknown mark after | or >; begin the text on the next line"),
        ("&a &b c", "1, column 4: this belongs to no field; write lines `field: value` alone"),
        ('a: "\\ud800"', "1, column 4: an escape of half a character; write the character itself"),
        (f"a: {'9' * 5000}\n", "1, column 4: a number too long to read; write it with an exponent"),
        ("a: b\nc: d\x07", "2, column 5: control character U+0007; remove it"),
    ],
)
def test_unreadable_yaml_is_one_line_with_its_place_and_remedy(text: str, fault: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "x.yaml")
    assert str(caught.value) == f"x.yaml: line {fault}"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: " + "[" * 5000, "nested too deep to read; a recipe needs a few levels"),
        ('a: "\\U0011FFFF"', "an escape of no character; write the character itself"),
    ],
)
def test_yaml_of_which_no_line_can_be_told(text: str, fault: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_yaml(text, "x.yaml")
    assert str(caught.value) == f"x.yaml: {fault}"


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    st.sampled_from(
        ["1e-4", "no", "0o17", "~", "null", ".inf", "true", "12:30", "2024-01-31", "=", "<<", "- a", "a: b"]
    ),
)


@given(
    st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    )
)
def test_what_is_written_reads_back_the_same(value: Any) -> None:
    assert parse_yaml(format_yaml(value), "x") == value


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "x.yaml: empty; a recipe starts like `model: emoji-turbo`"),
        (b"# only a comment\n", "x.yaml: empty; a recipe starts like `model: emoji-turbo`"),
        (b"- a\n", "x.yaml: not a mapping of fields; a recipe starts like `model: emoji-turbo`"),
        (b"model: caf\xe9\n", "x.yaml: not a text in UTF-8; a recipe is a short YAML text"),
        (b"a" * 1_000_001, "x.yaml: larger than 1 MB; a recipe is a short YAML text"),
        (
            b"PK\x03\x04\x00\x00",
            "x.yaml: line 1, column 3: control character U+0003; remove it",
        ),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, data: bytes, fault: str) -> None:
    assert refusal(written(tmp_path, data)) == fault


def test_a_byte_order_mark_is_no_matter(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, b"\xef\xbb\xbf" + BARE.encode())).raw["model"] == {"name": "m"}


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "x.yaml: not a file; name a recipe file; a run goes on with --resume"


def test_a_missing_recipe_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "quikstart.yaml")
    assert str(caught.value) == f"{tmp_path}/quikstart.yaml: no such recipe; did you mean quickstart?"
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "unlike.yaml")
    assert str(caught.value) == (
        f"{tmp_path}/unlike.yaml: no such recipe; shipped recipes: {', '.join(shipped_recipes())}"
    )


@pytest.mark.parametrize("source", ["published/aesthetic", "recipes/published/aesthetic.yaml"])
def test_shipped_recipes_in_a_folder_are_found_by_folder_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_recipe(source).path == shipped_recipes()["published/aesthetic"]
    assert read_recipe("aesthetic").path == shipped_recipes()["aesthetic"]


@pytest.mark.parametrize("source", ["quickstart", "recipes/quickstart.yaml"])
def test_shipped_recipes_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    read = read_recipe(source)
    assert read.raw["name"] == "quickstart"
    assert read.path == shipped_recipes()["quickstart"]
    assert read.folder == read.path.parent


def test_every_fault_is_told_at_once_each_with_its_place() -> None:
    assert faults_of("""
        name: a/b
        model: {name: m, lora: {rank: 1.5, targets: [a, 3]}, dtyp: float32}
        prompts: {p: 3}
        reward: {r: {weight: heavy}}
        objective: {a: {}, b: {}}
        rollout: {pairs: 8, eta: 0, transition: dimm}
        train: {epohcs: 3, batch: some, micro_batch: 0, learning_rate: yes, max_grad_norm: .inf, device: "CUDA!"}
        eval: {steps: [1, 1.5, 0], prompts: 3}
        seed: -1
        seeed: 1
    """) == [
        "x.yaml: name: 'a/b' should be a folder's name on one line, of at most 100 letters, not "
        "beginning with a dot or space",
        "x.yaml: model.lora.rank: 1.5 should be a whole number",
        "x.yaml: model.lora.targets.1: 3 should be a text",
        "x.yaml: model.dtyp: unknown field; did you mean dtype?",
        "x.yaml: prompts.p: 3 should be {option: value}; a single one is prompts.p.OPTION",
        "x.yaml: reward.r.weight: 'heavy' should be a number",
        "x.yaml: rollout.transition: 'dimm' should be 'ddim', 'renoise', 'cps' or 'sde'",
        "x.yaml: objective: should name one plug-in, not a, b",
        "x.yaml: train.learning_rate: 'yes' should be a number",
        "x.yaml: train.batch: 'some' should be a whole number or 'all'",
        "x.yaml: train.micro_batch: 0 should be at least 1 or 'auto'",
        "x.yaml: train.max_grad_norm: inf should be a finite number",
        "x.yaml: train.device: 'CUDA!' should be auto, or a device such as cpu, cuda or cuda:1",
        "x.yaml: train.epohcs: unknown field; did you mean epochs?",
        "x.yaml: eval.steps.1: 1.5 should be a whole number",
        "x.yaml: eval.steps.2: 0 should be at least 1",
        "x.yaml: eval.prompts: 3 should be NAME or {NAME: {option: value}}",
        "x.yaml: seed: -1 should be at least 0",
        "x.yaml: seeed: unknown field; did you mean seed?",
    ]


@pytest.mark.parametrize(
    ("more", "faults"),
    [
        (
            "rollout: {pairs: 8}\ntrain: {micro_batch: 3}",
            ["train.micro_batch: 3 does not divide rollout.pairs 8; use 1, 2, 4 or 8"],
        ),
        (
            "rollout: {pairs: 8}\ntrain: {batch: 16}",
            ["train.batch: 16 does not divide rollout.pairs 8; use 1, 2, 4 or 8"],
        ),
        (
            "rollout: {pairs: 8}\ntrain: {batch: 4, micro_batch: 8}",
            ["train.micro_batch: 8 does not divide train.batch 4; use 1, 2 or 4"],
        ),
        (
            "rollout: {pairs: 1}\ntrain: {batch: 2}",
            ["train.batch: 2 does not divide rollout.pairs 1; use 1"],
        ),
        (
            "rollout: {eta: 0}",
            ["rollout.eta: 0 leaves ddim without noise, so there is nothing to learn from; " + ETA_REMEDY],
        ),
        (
            "rollout: {eta: 0.0, transition: cps}",
            ["rollout.eta: 0 leaves cps without noise, so there is nothing to learn from; " + ETA_REMEDY],
        ),
        ("eval: {steps: [4, 2, 4]}", ["eval.steps: lists a step count twice; use [2, 4]"]),
        ("eval: {steps: '1, 2'}", ["eval.steps: '1, 2' should be a list; write eval.steps=[1,2]"]),
        ("eval: {steps: 4}", ["eval.steps: 4 should be a list; write eval.steps=[4]"]),
        ("eval: {steps: ''}", ["eval.steps: '' should be a list; put it between [ and ]"]),
        ("eval: {steps: '{1'}", ["eval.steps: '{1' should be a list; put it between [ and ]"]),
        ("eval: {steps: null}", ["eval.steps: null should be a list"]),
        ("eval: {steps: {a: 2}}", ["eval.steps: {'a': 2} should be a list"]),
        (
            "guard: {keep_best: {measure: kl_base, steps: 2}, stop_if: [{measure: kl_base, above: 1, steps: 1}]}",
            [
                "guard.keep_best.steps: 2 should be a list; write guard.keep_best.steps=[2]",
                "guard.stop_if.0.steps: 1 should be a list; write [1]",
            ],
        ),
        ("eval: {steps: []}", ["eval.steps: [] should be a list of at least 1"]),
        (
            "rollout: {eta: 2, steps: 0}",
            ["rollout.steps: 0 should be at least 1", "rollout.eta: 2 should be at most 1"],
        ),
        ("seed: 4294967296", ["seed: 4294967296 should be below 4294967296"]),
        ("seed: true", ["seed: true should be a whole number"]),
        ("train: 3\neval:", ["train: 3 should be a mapping of fields", "eval: null should be a mapping of fields"]),
        ("train: {micro_batch: 3, epochs: x}", ["train.epochs: 'x' should be a whole number"]),
        (
            "train: {micro_batch: 3}\neval: {every: x}",
            [
                "eval.every: 'x' should be a whole number",
                "train.micro_batch: 3 does not divide rollout.pairs 32; use 1, 2, 4, 8, 16 or 32",
            ],
        ),
        (
            "train: {micro_batch: 7}\nrollout: {pairs: 1000000}",
            [
                "train.micro_batch: 7 does not divide rollout.pairs 1000000; use 50000, 62500, "
                "100000, 125000, 200000, 250000, 500000 or 1000000"
            ],
        ),
        (
            "rollout: {pairs: 1000000000000}\neval: {batch: 1000001, steps: [1000001]}",
            [
                "rollout.pairs: 1000000000000 should be at most 1000000",
                "eval.steps.0: 1000001 should be at most 1000000",
                "eval.batch: 1000001 should be at most 1000000",
            ],
        ),
        ("objective:", ["objective: null should be NAME or {NAME: {option: value}}"]),
    ],
)
def test_fields_that_do_not_go_together(more: str, faults: list[str]) -> None:
    assert faults_of(BARE + more) == [f"x.yaml: {fault}" for fault in faults]


def test_words_between_commas_are_meant_as_a_list_and_a_single_one_need_not_be() -> None:
    other = "should be 'attention' or 'linear' or a list"
    for targets, fault in [
        ("'to_q, to_k'", f"'to_q, to_k' {other}; write model.lora.targets=[to_q,to_k]"),
        ("atention", f"'atention' {other}"),
    ]:
        found = faults_of(f"prompts: p\nreward: r\nmodel: {{name: m, lora: {{targets: {targets}}}}}")
        assert found == [f"x.yaml: model.lora.targets: {fault}"]


@pytest.mark.parametrize(
    ("reward", "fault"),
    [
        ("{a: {weight: 0}, b: {weight: 0}}", "reward: every weight is 0; give at least one reward another weight"),
        ("[a, a]", "reward: should list NAME or {NAME: {option: value}}, each name once"),
        ("[a, 3]", "reward: should list NAME or {NAME: {option: value}}, each name once"),
        ("{}", "reward: {} should be a list of at least 1"),
        ("3", "reward: 3 should be NAME, {NAME: {option: value}} or a list of them"),
        ("{a: 3}", "reward.a: 3 should be {option: value}; a single one is reward.a.OPTION"),
        ("{'': {}}", "reward: should name a plug-in"),
    ],
)
def test_rewards_that_cannot_be_meant(reward: str, fault: str) -> None:
    assert faults_of(f"model: m\nprompts: p\nreward: {reward}") == [f"x.yaml: {fault}"]


def test_what_a_recipe_cannot_do_without() -> None:
    assert faults_of("seed: 1") == [
        "x.yaml: model: missing; name a base model, such as emoji-turbo",
        "x.yaml: prompts: missing; name a prompt source or file, such as simple-animals",
        "x.yaml: reward: missing; name one or several rewards, such as emoji-clip",
    ]


def test_eta_0_goes_with_renoise_which_has_noise_whatever_eta(tmp_path: Path) -> None:
    assert read(tmp_path, BARE + "rollout: {eta: 0, transition: renoise}").rollout.eta == 0


def test_sound_sections_are_kept_where_others_are_not() -> None:
    part, unsound = sound_part({"model": "m", "reward": 3, "train": {"epochs": 5}, "rollout": {"pairs": "x"}})
    assert unsound == {"reward", "rollout", "prompts"}
    assert (part.model.name, part.train.epochs) == ("m", 5)


def test_a_dumped_recipe_reads_back_equal(tmp_path: Path) -> None:
    text = """
        model: {name: a/b, dtype: bfloat16, lora: {alpha: 4, targets: [to_q, to_k]}}
        prompts: {my.csv: {column: "1e-4"}}
        reward: {a: {style: 3d, weight: 0.25}, b: {on: "no"}}
        objective: {sdpo: {gamma: 0, lambda: 0.5}}
        rollout: {pairs: 6, eta: 0.5}
        train: {batch: 3, micro_batch: 1, epsilon: 1e-12}
        eval: {rewards: {c: {}}, prompts: held-out, steps: [3]}
    """
    recipe = read(tmp_path, text)
    assert read(tmp_path, dump_recipe(recipe)) == recipe
    assert yaml.safe_load(dump_recipe(recipe))["reward"] == {
        "a": {"style": "3d", "weight": 0.25, "normalise": "raw"},
        "b": {"on": "no", "weight": 1.0, "normalise": "raw"},
    }


def sections(schema: type[BaseModel] = Recipe, place: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, field in schema.model_fields.items():
        found.append((f"{place}{name}", field))
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += sections(kind, f"{place}{name}.")
    return found


def test_every_field_is_documented_in_one_sentence() -> None:
    fields = dict(sections())
    assert len(fields) > 40
    assert [name for name, field in fields.items() if not (field.description or "").endswith(".")] == []


@pytest.mark.parametrize(
    "name", ["a\nb", "a\x07", "\x1b[2J", "a\u2028b", "a\x85", "a\u202eb", "\u2067a", "x" * 101, ".a", "a/b", ""]
)
def test_names_that_no_folder_should_have(name: str) -> None:
    recipe, (fault,) = recipe_faults({"model": "m", "prompts": "p", "reward": "r", "name": name}, "x.yaml")
    assert recipe is None
    assert fault.startswith("x.yaml: name: ")
    wanted = "a folder's name on one line, of at most 100 letters, not beginning with a dot or space"
    assert fault.endswith(f" should be {wanted}")


def test_a_name_may_be_in_any_script_and_100_letters_long(tmp_path: Path) -> None:
    assert read(tmp_path, BARE + f"name: {'犬' * 80} \n").name == "犬" * 80
    assert read(tmp_path, BARE + f"name: {'x' * 100}\n").name == "x" * 100


def test_a_name_that_no_file_system_takes_is_refused() -> None:
    assert faults_of(BARE + f"name: {'犬' * 81}\n") == [
        f"x.yaml: name: '{'犬' * 36}... should be a name of at most 240 bytes in UTF-8"
    ]


def test_the_home_of_nobody_is_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        read_recipe("~no-such-user/r.yaml")
    assert str(caught.value) == "~no-such-user/r.yaml: no home folder ~no-such-user; write the path out"


def test_control_characters_are_shown_not_obeyed() -> None:
    (fault,) = faults_of(BARE + '"\\e[2J\\u202ex": 3\n')
    assert fault.startswith(r"x.yaml: \x1b[2J\u202ex: unknown field; ")


def test_overrides_that_fit_nowhere_are_told_with_the_recipes_own_faults(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, BARE + "seed: -1\n"), ["train.epochs", "train.epochs=0"])
    assert caught.value.faults[0] == "--set train.epochs: no field and value; write --set train.epochs=4"
    assert any("seed: -1 should be at least 0" in fault for fault in caught.value.faults)
    assert any("train.epochs: 0 should be at least 1" in fault for fault in caught.value.faults)
