"""`sdpo sample`: pictures that say how to draw them again, and that diffusers draws too."""

import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from sdpo_cli.builtin.models import EMOJI_TURBO
from sdpo_cli.engine.disk.locking import locked
from sdpo_cli.main import main


def levels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_pictures_carry_what_it_takes_to_draw_them_again(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = trained / "runs" / "small"
    arguments = ["sample", str(run), "--prompt", "cat", "--prompt", "Two dogs!", "--steps", "2", "--count", "2"]
    assert main([*arguments, "--seed", "5", "--quiet"]) == 0
    names = ["00000-cat-seed5.png", "00001-cat-seed6.png", "00002-two-dogs-seed5.png", "00003-two-dogs-seed6.png"]
    folder = tmp_path / "samples" / "small"
    assert capsys.readouterr().out.split() == [f"samples/small/{name}" for name in names]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "grid.png", "samples.jsonl"]
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [(row["file"], row["prompt"], row["seed"]) for row in rows] == [
        (names[0], "cat", 5), (names[1], "cat", 6), (names[2], "Two dogs!", 5), (names[3], "Two dogs!", 6),
    ]  # fmt: skip
    with Image.open(folder / names[3]) as picture:
        assert picture.text["prompt"] == "Two dogs!"
        assert (picture.text["seed"], picture.text["steps"]) == ("6", "2")
        assert picture.text["adapter"] == str(run / "adapter")


@pytest.mark.parametrize("eta", ["0", "1"])
def test_the_adapter_draws_the_same_pictures_in_diffusers(trained, tmp_path, eta):
    run = trained / "runs" / "small"
    arguments = ["sample", str(run), "--prompt", "cat", "--steps", "4", "--count", "2", "--seed", "7", "--eta", eta]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    pipeline = StableDiffusionPipeline.from_pretrained(EMOJI_TURBO, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(run / "adapter")
    for number, path in enumerate(sorted((tmp_path / "out").glob("0*.png"))):
        theirs = pipeline(
            "cat",
            num_inference_steps=4,
            guidance_scale=1.0,
            eta=float(eta),
            generator=torch.Generator().manual_seed(7 + number),
        ).images[0]
        difference = np.abs(levels(path) - np.asarray(theirs).astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


def test_same_seed_same_picture_whatever_the_batch(workplace):
    for batch in ("1", "3"):
        arguments = ["sample", "emoji-turbo", "--prompt", "fox", "--count", "3", "--batch", batch, "--out", batch]
        assert main([*arguments, "--quiet"]) == 0
    for path in (workplace / "1").glob("0*.png"):
        assert np.abs(levels(path) - levels(workplace / "3" / path.name)).max() <= 1


def test_a_recipe_draws_with_its_base_model_and_prompts_come_from_a_file(workplace, capsys):
    arguments = ["sample", "small.yaml", "--prompts", "few.txt", "--count", "1", "--steps", "1", "--out", "out"]
    assert main(arguments) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "2 pictures, drawn in 1 step, on one sheet: out/grid.png"
    rows = [json.loads(line) for line in (workplace / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["adapter"]) for row in rows] == [("cat", ""), ("two dogs", "")]


def test_what_is_taken_is_said_where_it_was_not_named(trained, workplace, capsys):
    def said(command, *source):
        asks = ["--prompt", "cat", "--steps", "1", "--count", "1"] if command == "sample" else []
        out = f"out{len(list(workplace.iterdir()))}"
        assert main([command, *source, *asks, "--out", out]) == 0
        return capsys.readouterr().err.splitlines()[0]

    base = "taking the base model of the recipe small, without a LoRA"
    assert said("sample", "emoji-turbo") == "taking the base model emoji-turbo, without a LoRA"
    assert said("sample", "small.yaml") == base
    assert said("sample") == "no latest run under runs/: taking the base model of the recipe quickstart"
    shutil.copytree(trained / "runs", workplace / "runs", symlinks=True)
    assert said("sample", "small.yaml") == f"{base}; for the run of this name: `sdpo sample runs/small`"
    assert said("eval", "small.yaml") == f"{base}; for the run of this name: `sdpo eval runs/small`"
    assert said("sample") == "taking the latest run: runs/small"
    assert not said("sample", "runs/small").startswith("taking")
    recipe = workplace / "runs/small/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("epochs: 2,", "epochs: 5,"))
    assert said("sample") == said("export") == "taking the latest run: runs/small, stopped after epoch 2 of 5"
    with locked(workplace / "runs/small"):
        assert said("eval") == "taking the latest run: runs/small, still training, after epoch 2 of 5"
    shutil.copytree(workplace / "runs/small", workplace / "runs/small-10")
    assert said("sample", "small.yaml").endswith("`sdpo sample runs/small-10`")


def test_file_names_from_hostile_prompts_stay_in_the_folder(workplace):
    prompts = [
        "../../etc/passwd",
        "\u202egnp.exe",
        "x" * 300,
        "CON",
        "Собака на луне",
        "狗" * 300,
        "🐕‍🦺👩🏽‍🚀!",
    ]
    arguments = [part for prompt in prompts for part in ("--prompt", prompt)]
    assert main(["sample", "emoji-turbo", *arguments, "--count", "1", "--steps", "1", "--out", "out", "--quiet"]) == 0
    names = sorted(path.name for path in (workplace / "out").glob("0*.png"))
    assert names == [
        "00000-etc-passwd-seed0.png",
        "00001-gnp-exe-seed0.png",
        f"00002-{'x' * 40}-seed0.png",
        "00003-con-seed0.png",
        "00004-собака-на-луне-seed0.png",
        f"00005-{'狗' * 40}-seed0.png",
        "00006-🐕🦺👩🚀-seed0.png",
    ]


REFUSED = {
    "nothing to draw": (
        ["sample", "emoji-turbo"], 2, "sdpo sample: nothing to draw; add --prompt 'a dog', or --prompts FILE",
    ),
    "empty prompt": (["sample", "emoji-turbo", "--prompt", " "], 2, "--prompt: empty prompt; say what to draw"),
    "unknown model": (
        ["sample", "emojiturbo", "--prompt", "cat"], 2,
        r"no run, recipe, model or folder named 'emojiturbo'; did you mean emoji-turbo\? `sdpo plugins list` has all",
    ),
    "unknown recipe": (
        ["sample", "quikstart", "--prompt", "cat"], 2,
        r"no run, recipe, model or folder named 'quikstart'; did you mean quickstart\?",
    ),
    "no such run": (
        ["sample", "runs/nosuch", "--prompt", "cat"], 2,
        "runs/nosuch: no such run, recipe or folder; correct the path",
    ),
    "full folder": (
        ["sample", "emoji-turbo", "--prompt", "cat", "--out", "."], 2,
        ".: is not an empty folder; name another one with --out",
    ),
    "too many steps": (
        ["sample", "emoji-turbo", "--prompt", "cat", "--steps", "1001"], 2,
        r"--steps, \S*emoji-turbo: 1001 steps cannot be sampled; use 1 to 1000 steps",
    ),
}  # fmt: skip


def test_a_name_that_nothing_has_is_told_with_the_runs_there_are(trained, workplace, capsys):
    def fault(*arguments):
        assert main([*arguments]) == 2
        return capsys.readouterr().err.removeprefix("error: ").rstrip()

    nothing, draw = "no run, recipe, model or folder named", ("--prompt", "cat")
    assert fault("sample", "zzz", *draw) == f"{nothing} 'zzz'; `sdpo plugins list` has all"
    shutil.copytree(trained / "runs", workplace / "runs", symlinks=True)
    assert fault("sample", "zzz", *draw) == f"{nothing} 'zzz'; `sdpo plugins list` has all; runs: runs/small"
    assert fault("eval", "smal") == f"{nothing} 'smal'; did you mean runs/small?"
    for number in range(2, 8):
        shutil.copytree(trained / "runs" / "small", workplace / "runs" / f"small-{number}")
        os.utime(workplace / "runs" / f"small-{number}", (number, number))
    runs = "runs/small, runs/small-7, runs/small-6, runs/small-5, runs/small-4, ..."
    for command in (("sample", "runs", *draw), ("eval", "runs"), ("export", "runs")):
        assert fault(*command) == f"runs: holds runs, and is none itself; name one of its runs: {runs}"


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_line_and_write_nothing(workplace, capsys, case):
    arguments, code, message = REFUSED[case]
    before = sorted(workplace.rglob("*"))
    assert main([*arguments, "--quiet"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {message}" or re.fullmatch(f"error: {message}", line), line
    assert sorted(workplace.rglob("*")) == before
