"""Files of the model hub: from the cache, from a local server that answers as the hub does, or one line."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from sdpo_cli.api import HubFiles
from sdpo_cli.api.hub import absent, download_command
from sdpo_cli.api.pipelines import (
    PipelineOptions,
    components_of,
    denoiser_files,
    hub_file,
    pipeline_files,
    pipeline_needs,
)
from sdpo_cli.errors import UsageError

SHA = "0123456789012345678901234567890123456789"
FILES = {
    "config.json": b"{}",
    "unet/model.safetensors": b"weights",
    "unet/model.fp16.safetensors": b"half",
    "unet/model.bin": b"pickle",
}
GATED, UNKNOWN = "some/gated", "some/unknown"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that a download needs, for one repository; `asked` lists what was fetched."""

    asked: list[str]

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if GATED in path:
            return self.answer(403, b"{}", X_Error_Code="GatedRepo")
        if "some/model" not in path:
            return self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        if "/resolve/" in path:
            name = path.partition(f"/resolve/{SHA}/")[2]
            if self.command == "GET":
                type(self).asked.append(name)
            return self.answer(200, FILES[name], ETag=f'"{name.replace("/", "-")}"', X_Repo_Commit=SHA)
        if "/tree/" in path:
            rows = [{"type": "file", "path": name, "size": len(data), "oid": SHA} for name, data in FILES.items()]
            return self.answer(200, json.dumps(rows).encode(), Content_Type="application/json")
        if "/revision/" in path and path.rpartition("/")[2] not in ("main", SHA):
            return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        about = {"id": "some/model", "sha": SHA, "siblings": [{"rfilename": name} for name in FILES]}
        return self.answer(200, json.dumps(about).encode(), Content_Type="application/json")

    do_HEAD = do_GET  # noqa: N815 (http.server's name)


@pytest.fixture(scope="module")
def server():
    """A running hub; its address and what it was asked for."""
    kind = type("Asked", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", kind.asked
    server.shutdown()
    server.server_close()


def outcome(code: str, home: Path, endpoint: str) -> str:
    """What a process of its own prints for `code`, or the fault that it raises, with that hub and an own cache."""
    program = f"""
from sdpo_cli.api import HubFiles
from sdpo_cli.api.hub import check_downloads, fetch
from sdpo_cli.errors import UsageError
try:
    print({code})
except UsageError as error:
    print(error)
"""
    wanted = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | wanted, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


class TestFetching:
    def test_safetensors_are_fetched_once_and_nothing_else(self, server, tmp_path):
        endpoint, asked = server
        asked.clear()
        code = "fetch(HubFiles('some/model', None, ('config.json', 'unet/*')))"
        folder = Path(outcome(code, tmp_path, endpoint))
        assert sorted(asked) == ["config.json", "unet/model.safetensors"]
        assert (folder / "unet" / "model.safetensors").read_bytes() == b"weights"
        assert Path(outcome(code, tmp_path, "http://127.0.0.1:9")) == folder
        assert len(asked) == 2

    def test_a_file_named_without_a_star_is_fetched_whatever_its_name(self, server, tmp_path):
        endpoint, _ = server
        code = f"fetch(HubFiles('some/model', '{SHA}', ('unet/model.fp16.safetensors',)))"
        assert (Path(outcome(code, tmp_path, endpoint)) / "unet" / "model.fp16.safetensors").read_bytes() == b"half"

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ("'some/model', None, ('vae/*.safetensors',)",
             "some/model: has no vae/*.safetensors; "
             "pickled weights are never loaded: choose a repository with safetensors"),
            ("'some/model', 'old', ('config.json',)",
             "some/model: the hub does not have this revision; name another revision"),
            (f"'{UNKNOWN}', None, ('config.json',)",
             f"{UNKNOWN}: the hub has no such repository; check the name, or `hf auth login`"),
            (f"'{GATED}', None, ('config.json',)",
             f"{GATED}: is gated; accept its licence at https://huggingface.co/{GATED}, then run `hf auth login`"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_had(self, server, tmp_path, files, said):
        assert outcome(f"fetch(HubFiles({files}))", tmp_path, server[0]) == said

    def test_everything_missing_is_named_at_once_where_there_is_no_connection(self, tmp_path):
        needs = "[HubFiles('some/model', None, ('unet/*.safetensors',)), HubFiles('some/other', 'v1', ('a.json',))]"
        line = outcome(f"check_downloads({needs})", tmp_path, "http://127.0.0.1:9")
        assert line.startswith("some/model, some/other: not on this machine, and the hub cannot be reached (")
        assert line.endswith(
            '; with a connection, run `hf download some/model --include "unet/*.safetensors" --exclude "*.fp16*" '
            '--exclude "*.non_ema*"` and `hf download some/other --revision v1 a.json`; '
            "recipes/quickstart.yaml needs no download"
        )


def test_a_pattern_is_absent_where_nothing_matches_it(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "a.safetensors").touch()
    files = HubFiles("some/model", None, ("unet/*.safetensors", "unet/*.json", "b.json"))
    assert absent(files, tmp_path) == ["unet/*.json", "b.json"]


def test_another_copy_of_the_weights_does_not_stand_for_them(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "a.fp16.safetensors").touch()
    assert absent(HubFiles("some/model", None, ("unet/*.safetensors",)), tmp_path) == ["unet/*.safetensors"]
    assert absent(HubFiles("some/model", None, ("unet/a.fp16.safetensors",)), tmp_path) == []


def test_weights_in_parts_are_absent_until_all_parts_are_there(tmp_path):
    files = HubFiles("some/model", None, ("unet/*.json", "unet/*.safetensors"))
    (tmp_path / "unet").mkdir()
    parts = {"one": "w-1-of-2.safetensors", "two": "w-2-of-2.safetensors"}
    (tmp_path / "unet" / "w.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    (tmp_path / "unet" / "w-1-of-2.safetensors").touch()
    assert absent(files, tmp_path) == ["unet/w-2-of-2.safetensors"]
    assert absent(HubFiles("some/model", None, ("unet/*.json",)), tmp_path) == []  # its weights come from elsewhere
    (tmp_path / "unet" / "w-2-of-2.safetensors").touch()
    assert absent(files, tmp_path) == []


def test_the_command_that_fetches_named_files_excludes_nothing():
    assert download_command(HubFiles("a/b", "v1", ("x.json", "y.safetensors"))) == (
        "hf download a/b --revision v1 x.json y.safetensors"
    )


class TestNeeds:
    COMPONENTS = ("vae", "tokenizer", "unet", "scheduler")

    def needs(self, **options: object) -> list[HubFiles]:
        return pipeline_needs(PipelineOptions(**options), self.COMPONENTS)

    def test_a_pipeline_needs_settings_vocabularies_and_weights(self):
        assert self.needs(path="a/b", revision="v1") == [
            HubFiles(
                "a/b",
                "v1",
                (
                    "model_index.json",
                    "vae/*.json",
                    "unet/*.json",
                    "scheduler/*.json",
                    "tokenizer/*",
                    "vae/*.safetensors",
                    "unet/*.safetensors",
                ),
            )
        ]

    def test_what_is_on_disk_needs_nothing(self, tmp_path):
        (tmp_path / "one.safetensors").touch()
        file = str(tmp_path / "one.safetensors")
        assert self.needs(path=str(tmp_path), denoiser=file, base_lora=file, tiny_vae=str(tmp_path)) == []
        (tmp_path / "odd@name").mkdir()
        assert self.needs(path=file, config=str(tmp_path / "odd@name")) == []

    def test_another_denoiser_stands_for_the_pipelines_weights(self):
        pipeline, denoiser, lora, tiny = self.needs(
            path="a/b", denoiser="c/d/sub/unet.safetensors", base_lora="e/f/lora.safetensors", tiny_vae="g/h"
        )
        assert "unet/*.json" in pipeline.files
        assert "unet/*.safetensors" not in pipeline.files
        assert denoiser == HubFiles("c/d", None, ("sub/unet.safetensors",))
        assert lora == HubFiles("e/f", None, ("lora.safetensors",))
        assert tiny == HubFiles("g/h", None, ("config.json", "diffusion_pytorch_model.safetensors"))

    def test_a_denoiser_may_be_a_whole_repository(self):
        assert self.needs(path="a/b", denoiser="c/d")[1] == HubFiles("c/d", None, ("*.json", "*.safetensors"))

    def test_weights_may_be_pinned(self):
        _, denoiser, lora, tiny = self.needs(
            path="a/b", denoiser="c/d@v1", base_lora="e/f@v2/sub/lora.safetensors", tiny_vae="g/h@v3"
        )
        assert denoiser == HubFiles("c/d", "v1", ("*.json", "*.safetensors"))
        assert lora == HubFiles("e/f", "v2", ("sub/lora.safetensors",))
        assert tiny == HubFiles("g/h", "v3", ("config.json", "diffusion_pytorch_model.safetensors"))

    def test_a_single_file_needs_settings_alone(self, tmp_path):
        pipeline, file = self.needs(path="a/b/model.safetensors", config="c/d", revision="v1")
        assert pipeline == pipeline_files("c/d", None, self.COMPONENTS, self.COMPONENTS)
        assert not any(name.endswith(".safetensors") for name in pipeline.files)
        assert file == HubFiles("a/b", None, ("model.safetensors",))
        pipeline, _ = self.needs(path="a/b@v1/model.safetensors", config="c/d@v2")
        assert (pipeline.repo, pipeline.revision) == ("c/d", "v2")

    @pytest.mark.parametrize(
        ("read", "path"),
        [
            (hub_file, "lora.pt"),
            (hub_file, "a/b"),
            (hub_file, "a/b/c.bin"),
            (denoiser_files, "folder/unet.safetensors"),
        ],
    )
    def test_a_file_on_the_hub_is_safetensors(self, read, path):
        with pytest.raises(UsageError) as fault:
            read(path)
        assert str(fault.value) == (
            f"{path}: no such file; name a .safetensors file, or OWNER/NAME/FILE.safetensors on the hub"
        )


def test_components_are_those_that_drawing_needs(tmp_path):
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "image_encoder": [None, None],
        "requires_safety_checker": True,
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert components_of(tmp_path) == {"unet": "UNet2DConditionModel"}
