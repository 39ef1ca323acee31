"""Names and options: what the registry finds, and a whole recipe resolved or refused at once."""

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from sdpo_cli.api import (
    BaseModelSpec,
    LoadContext,
    ObjectiveSpec,
    Options,
    PromptSourceSpec,
    RewardSpec,
    Spec,
    UserPath,
)
from sdpo_cli.errors import RecipeError, SdpoError, UsageError
from sdpo_cli.recipe import dump_recipe, read_recipe
from sdpo_cli.registry import Plugin, Registry, ResolvedRecipe, load_registry, resolve


class NoOptions(Options):
    """None."""


class Depth(Options):
    """A group of options."""

    mode: Literal["deep", "flat"] = Field("flat", description="How.")


class SomeOptions(Options):
    """Some."""

    gain: float = Field(1.0, gt=0, le=5, description="How much.")
    decay: float = Field(0.5, alias="lambda", description="An option with another name in recipes.")
    words: tuple[str, ...] = Field((), description="Which.")
    depth: Depth = Field(Depth(), description="How deep.")


class PathOptions(Options):
    """A place."""

    path: UserPath = Field(description="Where.")


def loaded(options: Options, context: LoadContext) -> tuple[Options, LoadContext]:
    return options, context


def spec(kind: type[Spec[Any]], name: str, options: type[Options] = NoOptions, **more: Any) -> Plugin:
    return Plugin(kind(name, "s", "1", "x", options, loaded, **more), "ours", "2.0")


REGISTRY = Registry(
    [
        spec(RewardSpec, "sharp", SomeOptions),
        spec(RewardSpec, "bright"),
        spec(ObjectiveSpec, "sdpo", SomeOptions),
        spec(PromptSourceSpec, "animals"),
        spec(PromptSourceSpec, "file", PathOptions),
        spec(BaseModelSpec, "tiny"),
        spec(BaseModelSpec, "stable", PathOptions, families=("StablePipeline",)),
    ],
    [],
)
GOOD = {"model": "tiny", "prompts": "animals", "reward": "bright"}


def refused(raw: dict[str, Any], folder: Path = Path()) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        resolve(raw, "r.yaml", folder, REGISTRY)
    return caught.value.faults


def resolved(raw: dict[str, Any], folder: Path = Path()) -> ResolvedRecipe:
    return resolve(raw, "r.yaml", folder, REGISTRY)


def model_folder(folder: Path, index: str) -> Path:
    folder.mkdir()
    (folder / "model_index.json").write_text(index)
    return folder


def test_a_recipe_is_resolved_with_every_option_written_out() -> None:
    raw = GOOD | {"reward": {"sharp": {"gain": 2, "words": ["a"], "lambda": 0.25, "weight": 3}, "bright": {}}}
    answer = resolved(raw)
    assert [chosen.name for chosen in answer.rewards] == ["sharp", "bright"]
    assert answer.rewards[0].options == SomeOptions(gain=2.0, decay=0.25, words=("a",))
    assert answer.recipe.reward[0].options == {"gain": 2.0, "lambda": 0.25, "words": ["a"], "depth": {"mode": "flat"}}
    assert answer.recipe.reward[0].weight == 3
    assert answer.objective.spec.name == "sdpo"
    assert answer.eval_rewards == ()
    assert answer.eval_prompts is None


def test_a_resolved_recipe_written_down_resolves_to_itself_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("a cat\n")
    model_folder(tmp_path / "checkpoint", '{"_class_name": "StablePipeline"}')
    raw = {
        "name": "n",
        "model": "checkpoint",
        "prompts": "mine.txt",
        "reward": ["bright"],
        "eval": {"rewards": "sharp", "prompts": {"file": {"path": "mine.txt"}}},
    }
    first = resolved(raw, tmp_path)
    elsewhere = tmp_path / "run"
    elsewhere.mkdir()
    (elsewhere / "recipe.yaml").write_text(dump_recipe(first.recipe))
    read = read_recipe(elsewhere / "recipe.yaml")
    assert resolve(read.raw, "r.yaml", read.folder, REGISTRY).recipe == first.recipe
    assert first.recipe.prompts.options == {"path": str(tmp_path / "mine.txt")}
    assert first.recipe.eval.prompts == first.recipe.prompts
    assert (first.recipe.model.name, first.recipe.model.options) == ("stable", {"path": str(tmp_path / "checkpoint")})


@pytest.mark.parametrize("field", ["reward", "eval.rewards"])
def test_one_reward_by_two_names_is_a_fault(field: str) -> None:
    owner = REGISTRY.find(RewardSpec, "bright").distribution
    twice = {"bright": {}, f"{owner}:bright": {}}
    raw = GOOD | ({"reward": twice} if field == "reward" else {"eval": {"rewards": twice}})
    assert refused(raw) == [f"r.yaml: {field}: bright is named twice; name it once"]


def test_faults_of_fields_names_and_options_come_together() -> None:
    assert refused(
        {
            "model": "tinny",
            "prompts": "animal",
            "reward": {"sharp": {"gain": 9, "gian": 1, "words": "a", "wieght": 2, "depth": {"mod": 1}}, "brigt": {}},
            "objective": {"sdpo": {"lamda": 1}},
            "eval": {"rewards": "shrap", "prompts": "gone.txt"},
            "train": {"epohcs": 1},
        }
    ) == [
        "r.yaml: train.epohcs: unknown field; did you mean epochs?",
        "r.yaml: model: no base model or folder named 'tinny'; did you mean tiny? installed: stable, tiny",
        "r.yaml: prompts: no prompt source or file named 'animal'; did you mean animals? installed: animals, file",
        "r.yaml: reward.sharp.gain: 9 should be at most 5",
        "r.yaml: reward.sharp.words: 'a' should be a list; write reward.sharp.words=[a]",
        "r.yaml: reward.sharp.depth.mod: unknown field; did you mean mode?",
        "r.yaml: reward.sharp.gian: unknown field; did you mean gain?",
        "r.yaml: reward.sharp.wieght: unknown field; did you mean weight?",
        "r.yaml: reward: no reward named 'brigt'; did you mean bright? installed: bright, sharp",
        "r.yaml: objective.sdpo.lamda: unknown field; did you mean lambda?",
        "r.yaml: eval.rewards: no reward named 'shrap'; did you mean sharp? installed: bright, sharp",
        "r.yaml: eval.prompts: no prompt source or file named 'gone.txt'; installed: animals, file",
    ]


def test_options_are_checked_even_where_the_recipe_lacks_sections() -> None:
    assert refused({"reward": {"sharp": {"gain": 0}}, "prompts": 3}) == [
        "r.yaml: model: missing; name a base model, such as emoji-turbo",
        "r.yaml: prompts: 3 should be NAME or {NAME: {option: value}}",
        "r.yaml: reward.sharp.gain: 0 should be above 0",
    ]


def test_a_required_option_is_asked_for() -> None:
    assert refused(GOOD | {"prompts": "file"}) == ["r.yaml: prompts.file.path: missing; it has no default"]


def test_prompt_files_are_meant_from_the_recipes_folder_then_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, names in (("recipe", ["both.txt"]), ("work", ["both.txt", "here.txt"])):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text("a cat")
    monkeypatch.chdir(tmp_path / "work")
    for name, folder in (("both.txt", "recipe"), ("here.txt", "work")):
        chosen = resolved(GOOD | {"prompts": name}, tmp_path / "recipe").prompts
        assert chosen.options == PathOptions(path=str(tmp_path / folder / name))


def test_a_plug_in_wins_over_a_file_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "animals").write_text("a cat")
    assert resolved(GOOD | {"prompts": "animals"}, tmp_path).prompts.spec.name == "animals"


def test_a_name_too_long_for_a_file_is_an_unknown_name() -> None:
    (fault,) = refused(GOOD | {"prompts": "x" * 5000})
    assert fault.startswith("r.yaml: prompts: no prompt source or file named 'xxx")


def test_the_home_of_nobody_is_a_fault_among_others() -> None:
    assert refused(GOOD | {"prompts": "~no-such-user/p.txt", "reward": "brigt"}) == [
        "r.yaml: prompts: ~no-such-user/p.txt: no home folder ~no-such-user; write the path out",
        "r.yaml: reward: no reward named 'brigt'; did you mean bright? installed: bright, sharp",
    ]


@pytest.mark.parametrize(
    ("index", "fault"),
    [
        (
            '{"_class_name": "OtherPipeline"}',
            "r.yaml: model: m is a OtherPipeline, which no plug-in adapts; adapted are: StablePipeline",
        ),
        ("{}", "r.yaml: model: {m}: model_index.json names no _class_name; save the pipeline anew"),
        ("[]", "r.yaml: model: {m}: model_index.json names no _class_name; save the pipeline anew"),
        ("not json", "r.yaml: model: {m}: model_index.json names no _class_name; save the pipeline anew"),
    ],
)
def test_folders_that_no_base_model_fits(tmp_path: Path, index: str, fault: str) -> None:
    folder = model_folder(tmp_path / "m", index)
    assert refused(GOOD | {"model": "m"}, tmp_path) == [fault.replace("{m}", str(folder))]


def test_a_folder_without_an_index_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert refused(GOOD | {"model": "m"}, tmp_path) == [
        f"r.yaml: model: {tmp_path}/m is no model: it has no model_index.json; name a folder as diffusers saves it"
    ]


def test_two_adapters_of_a_family_are_an_error_that_says_how_to_choose(tmp_path: Path) -> None:
    model_folder(tmp_path / "m", '{"_class_name": "StablePipeline"}')
    rival = Plugin(
        BaseModelSpec("rival", "s", "1", "x", PathOptions, loaded, families=("StablePipeline",)), "theirs", "1"
    )
    registry = Registry([*REGISTRY.plugins, rival], [])
    with pytest.raises(UsageError) as caught:
        registry.model("m", folder=tmp_path)
    assert str(caught.value) == (
        "m is a StablePipeline, which several adapt; "
        "write {name: ours:stable, options: {path: m}} or {name: theirs:rival, options: {path: m}}"
    )


def test_an_unreachable_hub_is_one_line_with_what_to_run() -> None:
    """Hub access is off in the tests."""
    (fault,) = refused(GOOD | {"model": "someone/some-model"})
    assert fault.startswith(
        "r.yaml: model: someone/some-model: not on this machine, and the hub cannot be reached (Cannot reach "
    )
    assert fault.endswith(
        '); with a connection, run `hf download someone/some-model --include "*" --exclude "*.fp16*" '
        '--exclude "*.non_ema*"`; recipes/quickstart.yaml needs no download'
    )


def test_loading_gets_the_options_and_the_recipes_folder(tmp_path: Path) -> None:
    options, context = resolved(GOOD | {"reward": "sharp"}, tmp_path).rewards[0].load(LoadContext(device="cpu"))
    assert options == SomeOptions()
    assert context == LoadContext(device="cpu", folder=tmp_path)


def test_a_users_fault_in_loading_passes_as_it_is() -> None:
    def complain(options: Options, context: LoadContext) -> None:
        raise UsageError("no such style", place="style")

    registry = Registry([Plugin(RewardSpec("r", "s", "1", "x", NoOptions, complain), "d", "1")], [])
    with pytest.raises(UsageError, match=r"^style: no such style$"):
        registry.reward("r").load(LoadContext())


def test_the_built_ins_come_through_the_entry_points_whole() -> None:
    ours = [plugin for plugin in load_registry().plugins if plugin.distribution == "sdpo-cli"]
    assert {plugin.spec.kind for plugin in ours} == {"reward", "base model", "prompt source", "objective"}
    assert not [plugin for plugin in load_registry().broken if plugin.distribution == "sdpo-cli"]


def test_errors_are_of_the_class_that_has_their_exit_code() -> None:
    with pytest.raises(SdpoError) as unknown:
        REGISTRY.reward("x")
    with pytest.raises(SdpoError) as wrong:
        REGISTRY.reward("sharp", {"gain": 0}, "--reward")
    assert (unknown.value.exit_code, wrong.value.exit_code) == (2, 2)
    assert str(wrong.value) == "--reward: sharp.gain: 0 should be above 0"
