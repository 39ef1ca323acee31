"""The distribution: sdist and wheel build, hold what they should, and the quick-start runs from the wheel alone."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
MEGABYTE = 1_000_000

pytestmark = pytest.mark.wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the sdist, which is built from the repository."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT], check=True)
    (built,) = out.glob("*.whl")
    return built


def files_under(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_holds_the_package_its_assets_recipes_and_licences_and_nothing_else(wheel):
    names = set(ZipFile(wheel).namelist())
    package = {name for name in files_under(ROOT / "sdpo_cli") if "__pycache__" not in name}
    recipes = {f"recipes/{name}" for name in files_under(ROOT / "recipes")}
    assert "assets/emoji-turbo/unet/diffusion_pytorch_model.safetensors" in package
    assert "recipes/quickstart.yaml" in recipes
    inside = {name.removeprefix("sdpo_cli/") for name in names if name.startswith("sdpo_cli/")}
    assert inside == package | recipes
    others = {name.split("/", 1)[1] for name in names if not name.startswith("sdpo_cli/")}
    assert others == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "licenses/NOTICE"}
    assert wheel.stat().st_size < 40 * MEGABYTE


def requirements(name: str) -> list[Requirement]:
    """What a distribution needs here without any extra."""
    found = [Requirement(text) for text in metadata.requires(name) or ()]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]


def needed(name: str) -> set[str]:
    """Everything a distribution needs, directly or not."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = {canonicalize_name(one.name) for one in requirements(waiting.pop())} - found
        found |= new
        waiting += new
    return found


def link(name: str, folder: Path) -> None:
    """Make a distribution of this environment importable from another site-packages folder."""
    distribution = metadata.distribution(name)
    for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
        if not (folder / top).exists():
            (folder / top).symlink_to(distribution.locate_file(top))


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory) -> Path:
    """The `bin` folder of an environment with our wheel and what its metadata asks for, and no more.

    The wheel is really installed; what it needs is linked from this environment, to spare a second download.
    """
    home = tmp_path_factory.mktemp("clean")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    subprocess.run([home / "bin/pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    for name in sorted(needed("sdpo-cli")):
        link(name, site)
    return home / "bin"


def test_every_requirement_is_met(clean):
    result = subprocess.run([clean / "python", "-m", "pip", "check"], capture_output=True, text=True)
    assert result.stdout == "No broken requirements found.\n", result.stderr


def test_quick_start_and_sampling_run_from_an_empty_folder(clean, tmp_path):
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"HF_HUB_OFFLINE": "1"}
    small = ("train.epochs=1", "rollout.pairs=8", "eval.steps=[1]")
    train = [clean / "sdpo", "train", "quickstart", *(word for value in small for word in ("--set", value))]
    subprocess.run(train, cwd=tmp_path, env=env, check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert (tmp_path / "runs/latest/adapter/pytorch_lora_weights.safetensors").is_file()
    sample = [clean / "sdpo", "sample", "--prompt", "a cat", "--count", "2", "--out", "pictures"]
    subprocess.run(sample, cwd=tmp_path, env=env, check=True)
    assert (tmp_path / "pictures/samples.jsonl").read_text().count("\n") == 2
