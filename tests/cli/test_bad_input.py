"""`sdpo score` on every kind of picture and prompt that people have: bad ones fail alone, with exit code 3."""

import io
import json
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdpo_cli.main import main

SIZE = (16, 12)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes) -> bytes:
    """A gray PNG file that says what it is told."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def good() -> dict[str, Image.Image]:
    """Pictures that must be scored, of every mode."""
    deep = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0])
    return {
        "one.png": Image.new("RGB", (1, 1), "red"),
        "gray.png": Image.new("L", SIZE, 128),
        "black-and-white.png": Image.new("1", SIZE, 1),
        "palette.png": Image.new("P", SIZE, 3),
        "clear.png": Image.new("RGBA", SIZE, (255, 0, 0, 0)),
        "gray-clear.png": Image.new("LA", SIZE, (128, 7)),
        "print.jpg": Image.new("CMYK", SIZE, (0, 255, 255, 0)),
        "deep.png": Image.fromarray(deep.astype(np.uint16)),
        "narrow.png": Image.new("RGB", (300, 1), "blue"),
    }


def noisy_png() -> bytes:
    """A PNG file that packing makes no smaller."""
    file = io.BytesIO()
    Image.frombytes("RGB", SIZE, random.Random(0).randbytes(SIZE[0] * SIZE[1] * 3)).save(file, "PNG")
    return file.getvalue()


BAD = {
    "bomb.png": (png(60_000, 60_000, b""), "has above 64 million pixels"),
    "cut.png": (noisy_png()[:300], "cannot be read as a picture ("),
    "damaged.png": (noisy_png().replace(b"IDAT", b"IDAT\x00", 1), "cannot be read as a picture ("),
    "empty.png": (b"", "is empty"),
    "pickle.png": (b"\x80\x04\x95", "is no picture"),
    "text-bomb.png": (
        noisy_png()[:33] + chunk(b"zTXt", b"prompt\x00\x00" + zlib.compress(bytes(90_000_000))) + noisy_png()[33:],
        "cannot be read as a picture (",
    ),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder with all of them."""
    folder = tmp_path_factory.mktemp("bad") / "pics"
    folder.mkdir()
    for name, picture in good().items():
        picture.save(folder / name)
    for name, (content, _) in BAD.items():
        (folder / name).write_bytes(content)
    return folder


def test_bad_pictures_become_failed_rows_and_all_others_are_scored(pictures, capsys):
    code = main(["score", str(pictures), "--reward", "colorfulness", "--device", "cpu"])
    captured = capsys.readouterr()
    assert code == 3
    rows = {row["file"]: row for row in map(json.loads, (pictures / "scores.jsonl").read_text().splitlines())}
    assert rows.keys() == BAD.keys() | good().keys()
    assert {name for name, row in rows.items() if "value" in row} == set(good())
    for name, (_, fault) in BAD.items():
        assert rows[name]["error"].startswith(f"{pictures}/{name}: {fault}"), rows[name]
        assert "\n" not in rows[name]["error"]
    # colourfulness of red: |rg| = 255, |yb| = 127.5, no spread: 0.3 * sqrt(255² + 127.5²)
    assert rows["one.png"]["value"] == pytest.approx(85.5296, abs=1e-3)
    # CMYK red, by JPEG; transparent red lies on white; gray has no colour
    assert rows["print.jpg"]["value"] == pytest.approx(85.5, abs=2)
    assert [rows[name]["value"] for name in ("clear.png", "gray.png", "gray-clear.png")] == pytest.approx([0, 0, 0])
    assert captured.err.splitlines()[-1].startswith(
        f"error: 6 of 15 pictures could not be scored, the first: {pictures}/bomb.png: has above 64 million pixels; "
    )
    assert "Traceback" not in captured.err


def test_a_picture_of_8000_by_8000_pixels_is_scored_beside_a_small_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "def score(images, prompts, metadata): return [float(images[0, 1, -1, -1])] * len(images)\n"
    Path("corner_level.py").write_text(code)
    Image.new("RGB", (8000, 8000), (0, 51, 0)).save("huge.png")
    Image.new("RGB", (1, 1), (0, 255, 0)).save("one.png")
    assert main(["score", "huge.png", "one.png", "--reward", "corner_level:score", "--device", "cpu"]) == 0
    values = [json.loads(line)["value"] for line in Path("scores.jsonl").read_text().splitlines()]
    assert values == pytest.approx([0.2, 1.0])


PROMPTS = [
    "a dog 🐕‍🦺👩🏽‍🚀 on the moon",
    "a dog\x00\x01\x1b[31m\u202e\u2028red",
    "x" * 10_000,
    "dog " * 2_500,
    "<|endoftext|>",
    "<|startoftext|><|endoftext|> a cat",
    "狗",
    "\\n${HOME} $(id) {{7*7}} %s",
]


def test_prompts_of_every_kind_are_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = []
    for number, prompt in enumerate(PROMPTS):
        Image.new("RGB", (64, 64), "red").save(f"{number}.png")
        rows.append({"file": f"{number}.png", "prompt": prompt})
    Path("list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = main(["score", "list.jsonl", "--reward", "emoji-clip", "--reward", "emoji-style", "--device", "cpu"])
    assert code == 0, capsys.readouterr().err
    found = [json.loads(line) for line in Path("scores.jsonl").read_text().split("\n") if line]
    assert sorted(row["prompt"] for row in found) == sorted(PROMPTS * 2)
    assert all(-1 <= row["value"] <= 1 for row in found)


def test_names_that_no_file_can_have_and_names_that_are_not_utf_8(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4), "red").save("a.png")
    Path("list.jsonl").write_text('{"file": "a\\u0000.png"}\n')
    Path("half.jsonl").write_text('{"file": "a.png", "prompt": "\\ud800"}\n')
    Path("p.jsonl").write_text('{"file": "a\\u0000.png", "prompt": "x"}\n')
    for argv, line in [
        (["list.jsonl"], 'list.jsonl: row 1 names no file; rows are like {"file": "a.png", "prompt": "a dog"}'),
        (["half.jsonl"], "half.jsonl:1: not a JSON object; remove or mend the line"),
        (["a.png", "--prompts", "p.jsonl"], "p.jsonl: 'a\\x00.png' is no file's name; correct the entry `file`"),
    ]:
        assert main(["score", *argv, "--reward", "colorfulness", "--device", "cpu"]) in (2, 4)
        assert capsys.readouterr().err == f"error: {line}\n"
    Path("a.png").rename(os.fsdecode(b"b\xff.png"))
    assert main(["score", os.fsdecode(b"b\xff.png"), "--reward", "colorfulness", "--device", "cpu"]) == 0
    assert json.loads(Path("scores.jsonl").read_text())["file"] == "b\\udcff.png"
