from pathlib import Path

import pytest

from sdpo_cli.main import main

RECIPE = """\
model: emoji-turbo
prompts: simple-animals
reward: {colorfulness: {}, emoji-clip: {weight: 100}}
rollout: {pairs: 2, steps: 2}
train: {epochs: 2, learning_rate: 1e-2, samples_every: 2}
eval: {steps: [1, 2], images_per_prompt: 2, prompts: few.txt}
"""


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """A folder to run commands in, with the smallest recipe and a prompt file in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(RECIPE)
    (tmp_path / "few.txt").write_text("cat\ntwo dogs\n")
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished run of the smallest recipe, `runs/small` under this folder; read it, change nothing."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "few.txt").write_text("cat\ntwo dogs\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "small.yaml", "--quiet"]) == 0
    return folder
