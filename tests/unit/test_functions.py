"""`module:function` as a reward: found, checked, asked, and never mixed with another version of itself."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from sdpo_cli.api import LoadContext, RewardSpec
from sdpo_cli.api.tensors import ScoreRequest
from sdpo_cli.engine.rewards.scoring import checked_score
from sdpo_cli.errors import PluginError, RecipeError, UsageError
from sdpo_cli.main import main
from sdpo_cli.registry import Plugin, Registry, load_recipe, load_registry

REQUEST = ScoreRequest(torch.tensor([0.2, 0.6])[:, None, None, None].expand(2, 3, 4, 4), ["a dog", "a cat"])


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """What a test imports from its folder is gone afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("mine"):
            del sys.modules[name]


def write(folder: Path, code: str, name: str = "mine.py") -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(textwrap.dedent(code))
    return folder


def chosen(folder: Path, name: str = "mine:score", **options):
    return load_registry().reward(name, options, "x.yaml: reward", folder)


def scored(folder: Path, name: str = "mine:score", request: ScoreRequest = REQUEST):
    return checked_score(name, chosen(folder, name).load(LoadContext()), request).values.tolist()


@pytest.mark.parametrize(
    "answer",
    [
        "images.mean((1, 2, 3))",
        "[float(image.mean()) for image in images]",
        "[image.mean() for image in images]",
        "images.mean((1, 2, 3)).double().numpy()",
        "tuple(images.mean((1, 2, 3)).tolist())",
    ],
)
def test_lists_arrays_and_tensors_are_answers(tmp_path, answer):
    write(tmp_path, f"def score(images, prompts, metadata):\n    return {answer}\n")
    assert scored(tmp_path) == pytest.approx([0.2, 0.6])


def test_it_is_called_with_pictures_prompts_and_metadata_of_its_own(tmp_path):
    write(
        tmp_path,
        """
        def score(pictures, texts, about):
            pictures.zero_()
            assert type(texts) is list and all(type(one) is dict for one in about)
            return [len(text) + one.get("more", 0) for text, one in zip(texts, about, strict=True)]
        """,
    )
    assert scored(tmp_path) == [5, 5]
    asked = ScoreRequest(REQUEST.images.clone(), ["a", "bb"], [{"more": 1}, {}])
    assert scored(tmp_path, request=asked) == [2, 2]
    assert float(asked.images.min()) == pytest.approx(0.2)


def test_methods_and_objects_of_packages_are_found(tmp_path):
    write(
        tmp_path,
        """
        from mine_too.parts import bonus

        class Scorer:
            def score(self, images, prompts, metadata):
                from mine_too.later import more  # found after the import as well
                return [bonus + more] * len(images)
            __call__ = score

        scorer = Scorer()
        """,
        "mine_too/__init__.py",
    )
    write(tmp_path, "bonus = 1.5", "mine_too/parts.py")
    write(tmp_path, "more = 1", "mine_too/later.py")
    assert scored(tmp_path, "mine_too:scorer.score") == [2.5, 2.5]
    assert scored(tmp_path, "mine_too:scorer") == [2.5, 2.5]


@pytest.mark.parametrize("way", ["sub/../sub", "link"])
def test_a_folder_is_recorded_whichever_way_it_was_named(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "sub", "def score(images, prompts, metadata): return images.mean((1, 2, 3))")
    (tmp_path / "link").symlink_to("sub")
    folder = chosen(tmp_path / way).all_options()["folder"]
    assert Path(folder).resolve() == tmp_path / "sub"


def test_the_recipes_folder_comes_before_the_working_folder_and_is_recorded(tmp_path, monkeypatch):
    code = "def score(images, prompts, metadata): return [{}.0] * len(images)\n"
    recipes, working = write(tmp_path / "recipes", code.format(1)), write(tmp_path / "working", code.format(2))
    write(working, code.format(3), "mine_beside.py")
    monkeypatch.chdir(working)
    assert scored(recipes) == [1, 1]
    assert scored(recipes, "mine_beside:score") == [3, 3]
    assert chosen(recipes).all_options() == {"folder": str(recipes)}
    (recipes / "r.yaml").write_text("model: emoji-turbo\nprompts: simple-animals\nreward: mine:score\n")
    resolved = load_recipe(recipes / "r.yaml")
    assert resolved.recipe.reward[0].model_dump() == {
        "name": "mine:score", "options": {"folder": str(recipes)}, "weight": 1.0, "normalise": "raw",
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    again = load_registry().reward("mine:score", {"folder": str(recipes)}, "x.yaml: reward", tmp_path / "runs")
    assert again.all_options() == {"folder": str(recipes)}


def test_the_version_is_that_of_the_source(tmp_path):
    write(tmp_path, "from mine_parts import score\n")
    write(tmp_path, "def score(images, prompts, metadata): return [1] * len(images)\n", "mine_parts.py")
    first = chosen(tmp_path)
    assert first.spec.version == chosen(tmp_path).spec.version
    assert (first.plugin.full_name, first.name) == ("mine:score", "mine:score")
    write(tmp_path, "def score(images, prompts, metadata): return [2] * len(images)\n", "mine_parts.py")
    assert first.spec.version != chosen(tmp_path).spec.version


def test_an_installed_distribution_of_that_name_wins(tmp_path):
    write(tmp_path, "def score(images, prompts, metadata): return [1] * len(images)\n")
    installed = load_registry().find(RewardSpec, "colorfulness")
    registry = Registry([Plugin(installed.spec, "mine", "1.0")], [])
    assert registry.reward("mine:colorfulness", folder=tmp_path).plugin.version == "1.0"
    with pytest.raises(UsageError, match=r"^no reward named 'mine:score'; "):
        registry.reward("mine:score", folder=tmp_path)


@pytest.mark.parametrize(
    ("code", "name", "line"),
    [
        ("", "mine_not:score",
         "no module mine_not; looked in {folder}, {cwd} and the Python path; correct the name, or move the file there"),
        ("import mine_less", "mine:score", "cannot be imported: ModuleNotFoundError: No module named 'mine_less'"),
        ("x = 1\n1 / 0", "mine:score", "cannot be imported: ZeroDivisionError: division by zero at mine.py:2"),
        ("raise SystemExit(3)", "mine:score", "cannot be imported: SystemExit: 3 at mine.py:1"),
        ("def scores(images): ...", "mine:score", "{folder}/mine.py has no score; did you mean scores?"),
        ("", "mine:score", "{folder}/mine.py has no score; define score(images, prompts, metadata) there"),
        ("score = 3", "mine:score", "is no function (int); name a function of (images, prompts, metadata)"),
        ("class score: ...", "mine:score", "is no function (class); name a function of (images, prompts, metadata)"),
        ("def score(images, prompts): ...", "mine:score",
         "takes (images, prompts); let it take (images, prompts, metadata)"),
        ("def score(a, b, c, *, d): ...", "mine:score",
         "takes (a, b, c, *, d); let it take (images, prompts, metadata)"),
    ],
)  # fmt: skip
def test_what_is_no_reward_is_told_with_place_and_remedy(tmp_path, code, name, line):
    write(tmp_path, code)
    absent = line.startswith("no module") or " has no " in line
    with pytest.raises(UsageError if absent else PluginError) as fault:
        chosen(tmp_path, name)
    expected = line.replace("{folder}", str(tmp_path)).replace("{cwd}", str(Path.cwd()))
    assert str(fault.value) == f"x.yaml: reward.{name}: {expected}"


def test_other_options_are_refused(tmp_path):
    write(tmp_path, "def score(images, prompts, metadata): ...\n")
    with pytest.raises(
        RecipeError, match=r"^x.yaml: reward.mine:score.bonus: unknown field; known: folder, weight, normalise$"
    ):
        chosen(tmp_path, bonus=3)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("raise KeyError('x')", "raised KeyError: 'x' at mine.py:2; mend the function"),
        ("torch.zeros(2) @ images", "raised RuntimeError: "),
        ("import sys; sys.exit(4)", "raised SystemExit: 4 at mine.py:2; mend the function"),
        ("return None", "gave NoneType; return one number a picture, as a list, an array or a tensor"),
        ("return ['a', 'b']", "gave list; return one number a picture, as a list, an array or a tensor"),
        ("return [1]", "values have shape [1] for 2 pictures; must be [2]"),
        ("return images.mean((2, 3))", "values have shape [2, 3] for 2 pictures; must be [2]"),
        ("return 1.0", "values have shape [] for 2 pictures; must be [2]"),
        ("return [1, float('inf')]", "values are not finite: inf for picture 1, 1 of 2 in all; a reward must give "),
    ],
)
def test_what_goes_wrong_inside_is_told_with_its_line(tmp_path, body, line):
    write(tmp_path, f"def score(images, prompts, metadata):\n    {body}\nimport torch\n")
    with pytest.raises(PluginError) as fault:
        scored(tmp_path)
    assert str(fault.value).startswith(f"reward mine:score: {line}")


def test_stored_scores_of_another_version_are_never_mixed(tmp_path, monkeypatch, capsys):
    from sdpo_cli.engine.disk.images import write_png

    monkeypatch.chdir(tmp_path)
    write_png(Path("a.png"), torch.zeros(3, 4, 4), {"prompt": "a dog"})
    write(tmp_path, "def score(images, prompts, metadata): return [1.5] * len(images)\n")
    assert main(["score", "a.png", "--reward", "mine:score", "--quiet"]) == 0
    (row,) = map(json.loads, Path("scores.jsonl").read_text().splitlines())
    assert (row["reward"], row["plugin"], row["value"]) == ("mine:score", "mine:score", 1.5)
    write(tmp_path, "def score(images, prompts, metadata): return [2.5] * len(images)\n")
    capsys.readouterr()
    assert main(["score", "a.png", "--reward", "mine:score", "--quiet"]) == 4
    assert capsys.readouterr().err.startswith("error: scores.jsonl: holds mine:score version sha256 ")


SMALL = """\
model: emoji-turbo
prompts: simple-animals
reward: mine_taste:score
rollout: {pairs: 2, steps: 2}
train: {epochs: 1, samples_every: 0}
eval: {steps: [1], images_per_prompt: 1, prompts: few.txt}
"""


def test_a_run_goes_on_from_anywhere_but_not_with_another_source(tmp_path, monkeypatch, capsys):
    code = "def score(images, prompts, metadata): return images.mean((1, 2, 3))\n"
    recipes = write(tmp_path / "recipes", code, "mine_taste.py")
    (recipes / "small.yaml").write_text(SMALL)
    (recipes / "few.txt").write_text("cat\n")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "recipes/small.yaml", "--quiet"]) == 0
    monkeypatch.chdir(tmp_path / "runs")
    resume = ["train", "--resume", "--out", "small", "--quiet", "--set"]
    assert main([*resume, "train.epochs=2"]) == 0
    write(recipes, f"# changed\n{code}", "mine_taste.py")
    capsys.readouterr()
    assert main([*resume, "train.epochs=3"]) == 4
    assert re.search(
        r"made with another version of reward mine_taste:score \(.*\); "
        r"resume with what it was made with, or add --override reward\n$",
        capsys.readouterr().err,
    )


HANGING = """\
import time
from concurrent.futures import ThreadPoolExecutor

calls = []

def score(images, prompts, metadata):
    calls.append(len(images))
    if len(calls) > 2:
        list(ThreadPoolExecutor().map(time.sleep, [600]))
    return images.mean((1, 2, 3))
"""
RECIPE = """\
model: emoji-turbo
prompts: simple-animals
reward: mine:score
rollout: {pairs: 2, steps: 2}
train: {epochs: 9, samples_every: 0, checkpoint_every: 9, micro_batch: 2, reward_timeout: 0.5}
"""


def test_a_hanging_reward_stops_the_process_with_name_sample_and_timeout_after_a_checkpoint(tmp_path):
    write(tmp_path, HANGING)
    (tmp_path / "hang.yaml").write_text(RECIPE)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sdpo_cli", "train", "hang.yaml", "--quiet"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 3, result.stderr
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: reward mine:score: no answer in 0.5 s (")
    on = "then continue with `sdpo train --out runs/hang --resume --override reward`"
    assert line.endswith(f"); raise train.reward_timeout, or mend the reward; {on}")
    run = tmp_path / "runs/hang"
    whole = len((run / "metrics.jsonl").read_text().splitlines())
    assert whole >= 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"epoch-{whole:05d}"]
