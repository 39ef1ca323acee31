"""Picture files in every shape people have them, and files that are whole or not at all."""

import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdpo_cli.engine.disk import files
from sdpo_cli.engine.disk.images import picture_grid, read_image, read_png_text, write_png
from sdpo_cli.errors import ArtifactError


def levels(path):
    """The first pixel's levels."""
    return (read_image(path)[:, 0, 0] * 255).round().int().tolist()


def saved(tmp_path, image, name="a.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


# --- reading


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (10, 20, 30), [10, 20, 30]),
        ("L", 100, [100, 100, 100]),
        ("1", 1, [255, 255, 255]),
        ("LA", (100, 255), [100, 100, 100]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),
        ("RGBA", (0, 0, 0, 51), [204, 204, 204]),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, color, expected):
    path = saved(tmp_path, Image.new(mode, (4, 4), color))
    assert levels(path) == expected


def test_sixteen_bit_gray_keeps_its_high_byte(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.full((2, 2), 100 * 256 + 255, dtype=np.uint16)))
    assert levels(path) == [100, 100, 100]


def test_a_palettes_transparent_colour_is_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert levels(saved(tmp_path, image, transparency=1)) == [255, 255, 255]
    assert levels(saved(tmp_path, image, "b.png", transparency=0)) == [0, 0, 255]


def test_cmyk_jpeg(tmp_path):
    assert levels(saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "a.jpg")) == [255, 0, 0]


def test_exif_orientation_turns_the_picture_upright(tmp_path):
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    upright = read_image(saved(tmp_path, image, "a.jpg", exif=exif, quality=95))
    assert upright.shape == (3, 16, 8)
    assert upright[:, :7].max() < 0.1
    assert upright[:, 9:].min() > 0.9


def png(width, height):
    """A PNG of that size without pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def noise_file(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return saved(tmp_path, Image.fromarray(pixels), name).read_bytes()


REPLACE = "remove or replace the file"


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", f"is empty; {REPLACE}"),
        (b"hello", f"is no picture; {REPLACE}"),
        (png(0, 4), f"is no picture; {REPLACE}"),
        (png(8001, 8000), f"has 8001 x 8000 pixels, above 64 million; {REPLACE}"),
        (png(10_000, 10_000), f"has 10000 x 10000 pixels, above 64 million; {REPLACE}"),  # of which Pillow warns
        (png(60_000, 60_000), f"has above 64 million pixels; {REPLACE}"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_no_picture(tmp_path, data, fault):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for read in (read_image, read_png_text):
        with pytest.raises(ArtifactError) as caught:
            read(path)
        assert str(caught.value) == f"{path}: {fault}"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ArtifactError, match=r"a\.png: is no file"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_truncated_picture(tmp_path, name):
    data = noise_file(tmp_path, name)
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ArtifactError, match=rf"{name}: (cannot be read as a picture \(.+\)|is no picture); {REPLACE}$"):
        read_image(tmp_path / name)


def test_no_file_and_a_folder(tmp_path):
    for path, fault in ((tmp_path / "none.png", "no such file; correct the path"),
                        (tmp_path, f"is no file; {REPLACE}")):  # fmt: skip
        with pytest.raises(ArtifactError) as caught:
            read_image(path)
        assert str(caught.value) == f"{path}: {fault}"


# --- writing


def test_a_png_keeps_levels_and_texts(tmp_path):
    image = torch.randint(0, 256, (3, 5, 7), generator=torch.Generator().manual_seed(0)) / 255
    texts = {"prompt": "ein Dächs 犬\nline two", "seed": "7"}
    write_png(tmp_path / "new" / "a.png", image, texts)
    assert torch.equal(read_image(tmp_path / "new" / "a.png"), image)
    assert read_png_text(tmp_path / "new" / "a.png") == texts
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "a.png"]


def test_a_picture_without_texts_has_none(tmp_path):
    assert read_png_text(saved(tmp_path, Image.new("RGB", (2, 2)), "a.jpg")) == {}
    (tmp_path / "b.png").write_text("hello")
    with pytest.raises(ArtifactError, match=r"b\.png: is no picture"):
        read_png_text(tmp_path / "b.png")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError) as caught:
        files.write_text(path, "new")
    assert str(caught.value) == f"{path}: cannot be written (No space left on device); free some space"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.txt"
    with pytest.raises(ArtifactError) as caught:
        files.write_text(path, "x")
    assert str(caught.value) == f"{path}: cannot be written (File exists); check the folder and its permissions"


def test_json_lines_go_there_and_back(tmp_path):
    rows = [{"prompt": "ein Dächs\u2028", "value": 0.1}, {}]
    files.write_json_lines(tmp_path / "a.jsonl", rows)
    assert files.read_json_lines(tmp_path / "a.jsonl") == rows


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json_lines(tmp_path / "a.jsonl", [{"value": float("nan")}])
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b'{"a": 1}\n\n[2]\n', ":3: not a JSON object; remove or mend the line"),
        (b'{"a": 1}\n{"a": ', ":2: not a JSON object; remove or mend the line"),
        (b'{"a": NaN}', ":1: not a JSON object; remove or mend the line"),
        (b'{"a": "\\ud800"}', ":1: not a JSON object; remove or mend the line"),
        (b'{"a": [-Infinity]}', ":1: not a JSON object; remove or mend the line"),
        (b"\xff\xff", ": not UTF-8; is this the right file?"),
        (None, ": cannot be read (No such file or directory); check the path"),
    ],
)
def test_json_lines_that_are_none(tmp_path, data, fault):
    path: Path = tmp_path / "a.jsonl"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        files.read_json_lines(path)
    assert str(caught.value) == f"{path}{fault}"


# --- grids


def colors(*names, size=4):
    return torch.stack([torch.from_numpy(np.array(Image.new("RGB", (size, size), name))) for name in names]).permute(
        0, 3, 1, 2
    ) / 255  # fmt: skip


def test_a_grid_is_filled_row_by_row_with_whole_squares():
    images = colors("red", "lime", "blue")
    images[0, :, 0, 0] = 0
    grid = picture_grid(images, columns=2)
    # 4 px are enlarged 32 times to 128; margins of 8, gaps of 4.
    assert grid.size == (2 * 128 + 4 + 16, 2 * 128 + 4 + 16)
    black, red, white = (0, 0, 0), (255, 0, 0), (255, 255, 255)
    assert [grid.getpixel((x, 8)) for x in (7, 8, 39, 40)] == [white, black, black, red]
    assert grid.getpixel((8 + 132, 8)) == (0, 255, 0)
    assert grid.getpixel((8, 8 + 132)) == (0, 0, 255)
    assert grid.getpixel((8 + 132, 8 + 132)) == white


def test_large_pictures_stay_as_they_are():
    assert picture_grid(colors("red", size=300), columns=1).size == (316, 316)


def test_labels_are_drawn_outside_the_pictures():
    images = colors("red", "red", "red", "red")
    plain = picture_grid(images, columns=2)
    labelled = picture_grid(images, 2, ["1 step", "a label far too long for its column"], ["before", "after"])
    left, top = labelled.width - plain.width, labelled.height - plain.height
    assert left > 30
    assert top > 10
    inside = labelled.crop((left, top, labelled.width, labelled.height))
    assert np.array_equal(np.asarray(inside)[8:-8, 8:-8], np.asarray(plain)[8:-8, 8:-8])
    for box in (
        (left + 8, 0, left + 136, top + 8),
        (left + 140, 0, left + 268, top + 8),
        (0, top + 8, left, top + 136),
    ):
        assert np.asarray(labelled.crop(box)).min() < 128
