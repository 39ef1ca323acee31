"""Prompt files, score files, picture lists and pictures out of rubbish: read, or refused in one line."""

import io
import json
from pathlib import Path
from typing import Any

import torch
from hostile_cases import as_json, cases, edited, edits, junk, outcome, texts
from hypothesis import strategies as st
from PIL import Image

from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.builtin.prompts.file import read_prompts
from sdpo_cli.engine.disk.images import read_image, read_png_text
from sdpo_cli.engine.rewards.file_rewards import FileReward
from sdpo_cli.engine.rewards.pictures import find_pictures, with_prompts
from sdpo_cli.engine.rewards.scores import read_scores, refuse_other_versions, score_files
from sdpo_cli.errors import SdpoError


class Light:
    """The mean level."""

    def score(self, request: ScoreRequest) -> ScoreResult:
        return ScoreResult(request.images.mean((1, 2, 3)))


LIGHT = FileReward("light", "mine:light", "1", {}, Light())
ROW = {
    "file": "a.png", "sha256": "0", "prompt": "a dog", "metadata_sha256": "0", "reward": "light",
    "plugin": "mine:light", "version": "1", "options": {}, "value": 0.5,
}  # fmt: skip

objects = st.dictionaries(st.sampled_from(["prompt", "text", "file"]) | texts, junk, max_size=3)
json_lines = st.lists((objects | junk).map(as_json) | texts, max_size=3).map("\n".join)


def read_any(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    found = outcome(lambda: read_prompts(path))
    if isinstance(found, SdpoError):
        assert str(found).startswith(str(path))
    else:
        assert all(prompt.text.strip() for prompt in found)


def encoded(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


@cases("prompts txt", st.binary(max_size=12) | st.lists(texts, max_size=3).map("\n".join).map(encoded))
def test_any_text_file_is_prompts_or_refused(place: Path, data: bytes) -> None:
    read_any(place / "p.txt", data)


@cases("prompts csv", st.lists(st.sampled_from(["prompt", "file", ",", '"', "\r\n", "\n", "\r"]) | texts, max_size=10))
def test_any_csv_file_is_prompts_or_refused(place: Path, parts: list[str]) -> None:
    read_any(place / "p.csv", encoded("".join(parts)))


@cases("prompts jsonl", json_lines)
def test_any_jsonl_file_is_prompts_or_refused(place: Path, text: str) -> None:
    read_any(place / "p.jsonl", encoded(text))


changes = st.dictionaries(st.sampled_from([*ROW, "error", "details"]), junk, max_size=2)


def rows_with(changed: list[dict[str, Any]], cut: list[Any]) -> bytes:
    return edited("".join(as_json(ROW | one) + "\n" for one in changed).encode(), cut)


@cases("scores", st.lists(changes, max_size=2), st.just([]) | edits)
def test_any_score_file_is_read_or_refused(place: Path, changed: list[dict[str, Any]], cut: list[Any]) -> None:
    path = place / "scores.jsonl"
    path.write_bytes(rows_with(changed, cut))
    outcome(lambda: refuse_other_versions(path, read_scores(path), [LIGHT]))


@cases("scored", st.lists(changes, max_size=2), st.just([]) | edits)
def test_any_score_file_is_added_to_or_left_as_it_is(place: Path, changed: list[Any], cut: list[Any]) -> None:
    Image.new("RGB", (1, 1), "white").save(place / "a.png")
    path = place / "scores.jsonl"
    path.write_bytes(before := rows_with(changed, cut))

    def score() -> list[Any]:
        pictures = with_prompts(find_pictures([place / "a.png"]), (), None)
        return list(score_files(pictures, [LIGHT], path, batch=1, overwrite=False, device=torch.device("cpu")))

    if isinstance(outcome(score), SdpoError):
        assert path.read_bytes() == before
    else:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        assert [row["value"] for row in rows if row["file"] == "a.png" and row["plugin"] == "mine:light"][-1] == 1.0
    assert {one.name for one in place.iterdir()} == {"a.png", "scores.jsonl"}


@cases("pictures lists", json_lines)
def test_any_list_of_pictures_is_one_or_refused(place: Path, text: str) -> None:
    path = place / "list.jsonl"
    path.write_bytes(encoded(text))

    def found() -> None:
        pictures = with_prompts(find_pictures([path]), (), None)
        list(score_files(pictures, [LIGHT], place / "out.jsonl", batch=1, overwrite=True, device=torch.device("cpu")))

    outcome(found)


def picture_of(kind: str) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((9, 7), 90).convert("RGB").save(file, kind)
    return file.getvalue()


FILES = [picture_of(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]


@cases("pictures", st.sampled_from(FILES), edits)
def test_any_picture_is_read_or_refused(place: Path, data: bytes, cut: list[Any]) -> None:
    path = place / "a.png"
    path.write_bytes(edited(data, cut))
    found = outcome(lambda: read_image(path))
    outcome(lambda: read_png_text(path))
    assert isinstance(found, SdpoError) or (float(found.min()) >= 0 and float(found.max()) <= 1)
