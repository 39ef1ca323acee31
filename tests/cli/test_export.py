"""`sdpo export`: a run's adapter for other programs, with a card that says how to load it; and whole runs to export."""

import re
import shutil

import numpy as np
import pytest
import yaml
from diffusers import DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image

from sdpo_cli.builtin.models import EMOJI_TURBO
from sdpo_cli.engine.training.run_request import check_start
from sdpo_cli.errors import SdpoError
from sdpo_cli.main import main
from sdpo_cli.registry import load_recipe

RUN = ("runs", "small")


@pytest.fixture
def at(trained, tmp_path, monkeypatch):
    """An empty folder to work in, and the path of the finished run."""
    monkeypatch.chdir(tmp_path)
    return trained.joinpath(*RUN)


def modes(folder) -> set[int]:
    """Of all files under a folder."""
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


def drawn(run, folder) -> np.ndarray:
    arguments = ["sample", str(run), "--prompt", "cat", "--steps", "2", "--count", "1", "--seed", "3"]
    assert main([*arguments, "--out", str(folder), "--quiet"]) == 0
    with Image.open(next(folder.glob("0*.png"))) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def run_card(code: str, folder) -> np.ndarray:
    """What the pipeline draws that a card's code makes, its placeholders filled in."""
    import torch

    filled = code.replace("path/to/this/folder", str(folder)).replace("path/to/emoji-turbo", str(EMOJI_TURBO))
    names: dict = {}
    exec(filled.replace('"emoji-turbo"', f'"{EMOJI_TURBO}"'), names)
    pipeline = names["pipe"]
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("cat", num_inference_steps=2, guidance_scale=1.0, generator=torch.Generator().manual_seed(3))
    return np.asarray(picture.images[0]).astype(int)


FORMS = {
    "diffusers": (["--format", "diffusers"], {"README.md", "pytorch_lora_weights.safetensors"}),
    "kohya": (["--format", "kohya"], {"README.md", "small.safetensors"}),
    "merged": (
        ["--format", "merged"],
        {"README.md", "model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"},
    ),
    "denoiser": (
        ["--format", "merged", "--denoiser-only"],
        {"README.md", "config.json", "diffusion_pytorch_model.safetensors"},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_code_of_the_card_draws_what_sdpo_sample_draws(at, tmp_path, capsys, form):
    options, names = FORMS[form]
    assert main(["export", str(at), *options, "--out", "out", "--quiet"]) == 0
    assert capsys.readouterr().out == "out\n"
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert len(modes(tmp_path / "out") | modes(at)) == 1, "safetensors leaves its files to their owner"
    card = (tmp_path / "out" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    difference = np.abs(run_card(code, tmp_path / "out") - drawn(at, tmp_path / "ours"))
    assert difference.max() <= 1
    front = yaml.safe_load(card.split("---\n")[1])
    assert ("lora" in front["tags"]) == (form in ("diffusers", "kohya"))
    assert "| `colorfulness`, steps | before | after |" in card
    assert "reward:" in card
    assert str(at) not in card.replace(str(at.parents[1] / "few.txt"), "")
    assert ("models/loras" in card) == (form == "kohya")


def test_the_default_is_the_latest_run_into_a_folder_of_its_own(trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained / "runs", tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    for number in ("", "-2"):
        assert main(["export", "--quiet"]) == 0
        assert capsys.readouterr().out == f"exports/small-diffusers{number}\n"
    assert main(["export", "--format", "kohya"]) == 0
    out, err = capsys.readouterr()
    assert out == "exports/small-kohya\n"
    assert err.splitlines() == [
        "taking the latest run: runs/small", "save: kohya form of small", "written for ComfyUI and kohya's tools",
    ]  # fmt: skip


def test_an_adapters_folder_is_enough_for_the_lora_forms(at, tmp_path, capsys):
    shutil.copytree(at / "adapter", tmp_path / "mine")
    assert main(["export", "mine", "--format", "kohya", "--quiet"]) == 0
    assert [path.name for path in (tmp_path / "exports" / "mine-kohya").iterdir()] == ["mine.safetensors"]
    pipeline = StableDiffusionPipeline.from_pretrained(EMOJI_TURBO, safety_checker=None)
    pipeline.load_lora_weights(tmp_path / "exports" / "mine-kohya", weight_name="mine.safetensors")
    assert main(["export", str(at / "adapter"), "--out", "run", "--quiet"]) == 0
    assert (tmp_path / "run" / "README.md").is_file()


FULL = """\
model: {name: emoji-turbo, train: full}
prompts: few.txt
reward: colorfulness
rollout: {pairs: 2, steps: 2}
train: {epochs: 1, learning_rate: 1e-4, samples_every: 0}
eval: {steps: [1], images_per_prompt: 1}
"""


def test_a_run_of_all_weights_is_sampled_evaluated_and_exported(workplace, capsys):
    (workplace / "full.yaml").write_text(FULL)
    assert main(["train", "full.yaml", "--out", "run", "--quiet"]) == 0
    assert sorted(path.name for path in (workplace / "run" / "adapter").iterdir()) == [
        "README.md", "config.json", "diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    assert main(["eval", "run", "--out", "evaluation", "--quiet"]) == 0
    ours = drawn(workplace / "run", workplace / "ours")
    card = (workplace / "run" / "adapter" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert np.abs(run_card(code, workplace / "run" / "adapter") - ours).max() <= 1
    for form, kind in (("merged", DiffusionPipeline), ("diffusers", UNet2DConditionModel)):
        assert main(["export", "run", "--format", form, "--out", form, "--quiet"]) == 0
        kind.from_pretrained(workplace / form)
    assert len(modes(workplace / "run") | modes(workplace / "merged")) == 1
    capsys.readouterr()
    assert main(["export", "run", "--format", "kohya", "--quiet"]) == 2
    assert capsys.readouterr().err == (
        "error: run/adapter: this run trained the whole denoiser, so there is no LoRA; "
        "use --format merged or diffusers\n"
    )


def test_a_run_may_start_from_another_runs_lora(at, tmp_path):
    shutil.copy(at.parents[1] / "few.txt", tmp_path)
    recipe = FULL.replace("train: full", f"lora: {{start: {at}}}")
    (tmp_path / "more.yaml").write_text(recipe)
    assert main(["train", "more.yaml", "--out", "more", "--quiet"]) == 0
    written = yaml.safe_load((tmp_path / "more" / "recipe.yaml").read_text())["model"]["lora"]
    assert written == {"rank": None, "alpha": None, "targets": None, "start": str(at)}


def unfinished(folder):
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text(FULL)
    return ["run"], 4, "run: this run has no adapter yet; train it: `sdpo train --out run --resume`"


def nothing(folder):
    return ["none"], 2, "none: no such folder; name a run or an adapter's folder"


def no_runs(folder):
    return [], 2, "sdpo export: no latest run under runs/; name a run or an adapter's folder"


def no_adapter(folder):
    (folder / "empty").mkdir()
    return ["empty"], 2, "empty: neither a run nor an adapter; name a folder that has one"


def taken(folder):
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    return ["RUN", "--out", "full"], 2, "full: is not an empty folder; name another one with --out"


def alone(folder):
    shutil.copytree(folder / "RUN" / "adapter", folder / "mine")
    fault = "mine: the base model to merge with is not known; name the run's folder"
    return ["mine", "--format", "merged"], 2, fault


def misplaced(folder):
    return ["RUN", "--denoiser-only"], 2, "--denoiser-only: is for --format merged; leave it out"


def gone(folder):
    recipe = folder / "RUN" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("name: emoji-turbo", "name: my-model"))
    return ["RUN", "--format", "merged"], 2, r"RUN/recipe.yaml: model: no base model or folder named 'my-model'; .*"


def damaged(folder):
    path = folder / "RUN" / "adapter" / "pytorch_lora_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    return (
        ["RUN"],
        4,
        (
            r"RUN/adapter/pytorch_lora_weights.safetensors: not a readable safetensors file \(Error while "
            r"deserializing header: incomplete metadata, file not fully covered\); save the LoRA anew"
        ),
    )


def damaged_report(folder):
    (folder / "RUN" / "report.json").write_text("{}")
    return ["RUN"], 4, "RUN/report.json: not a report as sdpo writes it; remove it"


@pytest.mark.parametrize(
    "made",
    [unfinished, nothing, no_runs, no_adapter, taken, alone, misplaced, gone, damaged, damaged_report],
    ids=lambda one: one.__name__,
)
def test_refusals_are_one_line_and_write_nothing(at, tmp_path, capsys, made):
    shutil.copytree(at, tmp_path / "RUN", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    arguments, code, message = made(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", *arguments, "--quiet"]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {message}" or re.fullmatch(f"error: {message}", line), line
    assert sorted(tmp_path.rglob("*")) == before


STARTS = {
    "none": ("none", "{folder}/none: no such file or folder; name a run, an adapter's folder or a .safetensors file"),
    "a pickle": (
        "lora.bin",
        "{folder}/lora.bin: not a .safetensors file; pickles are never loaded; save the LoRA anew as safetensors",
    ),
    "a folder": (
        "few",
        "{folder}/few: no pytorch_lora_weights.safetensors in this folder; name a folder that holds a trained adapter",
    ),
}


@pytest.mark.parametrize("case", STARTS)
def test_a_lora_that_cannot_be_started_from(workplace, capsys, case):
    (workplace / "lora.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (workplace / "few").mkdir()
    start, message = STARTS[case]
    (workplace / "more.yaml").write_text(FULL.replace("train: full", f"lora: {{start: {start}}}"))
    with pytest.raises(SdpoError) as fault:  # before torch is loaded
        check_start(load_recipe("more.yaml"), None)
    place = message.format(folder=workplace) if case != "none" else message.removeprefix("{folder}/")
    assert str(fault.value) == place
    assert main(["train", "more.yaml", "--out", "run", "--quiet"]) == (2 if case == "none" else 4)
    assert capsys.readouterr().err == f"error: {place}\n"
    assert not (workplace / "run").exists()
