"""`sdpo score` from the command line to the scores file."""

import json
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from sdpo_cli.api.tensors import ScoreResult
from sdpo_cli.engine.disk.images import write_png
from sdpo_cli.engine.events import Note
from sdpo_cli.engine.rewards.file_rewards import GIVE_UP, FileReward
from sdpo_cli.engine.rewards.pictures import find_pictures, with_prompts
from sdpo_cli.engine.rewards.scores import score_files
from sdpo_cli.errors import ArtifactError, PluginError, UsageError
from sdpo_cli.main import main


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three flat pictures: red with a prompt of its own, blue with a sidecar, gray with nothing, one folder down."""
    monkeypatch.chdir(tmp_path)
    write_png(Path("pics/a.png"), flat("red"), {"prompt": "a red dog"})
    write_png(Path("pics/b.png"), flat("blue"), {})
    Path("pics/b.txt").write_text("a blue dog\n")
    write_png(Path("pics/deep/c.png"), flat("gray"), {})
    return tmp_path / "pics"


def flat(color, size=16):
    levels = torch.tensor(Image.new("RGB", (1, 1), color).getpixel((0, 0))) / 255
    return levels[:, None, None].expand(3, size, size)


def rows(path="pics/scores.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def run(capsys, *argv):
    code = main(["score", *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_folder_is_scored_into_a_file_and_a_table(folder, capsys):
    code, out, err = run(capsys, "pics", "--reward", "colorfulness")
    assert code == 0
    assert [(row["file"], row["prompt"]) for row in rows()] == [
        ("a.png", "a red dog"),
        ("b.png", "a blue dog"),
        ("deep/c.png", ""),
    ]
    assert [row["value"] for row in rows()] == pytest.approx([85.5296, 76.5, 0.0], abs=1e-3)
    assert set(rows()[0]) == {
        "file", "sha256", "prompt", "metadata_sha256", "reward", "plugin", "version", "options", "value",
    }  # fmt: skip
    said = {"reward": "colorfulness", "plugin": "sdpo-cli:colorfulness", "version": "1", "options": {}}
    assert rows()[0] | said == rows()[0]
    # (85.5296 + 76.5 + 0) / 3 and its sample deviation
    assert out.split()[-6:] == ["colorfulness", "3", "54.0099", "46.9913", "0.0000", "85.5296"]
    assert "scores: pics/scores.jsonl" in err


def test_rewards_are_named_as_in_a_recipe(folder, capsys):
    code, out, _ = run(
        capsys, "pics", "--reward", "emoji-clip", "--reward", "{emoji-style: {style: flat, weight: 2.0}}", "--json"
    )
    assert code == 0
    report = json.loads(out)
    assert [(one["reward"], one["options"], one["count"]) for one in report["summaries"]] == [
        ("emoji-clip", {}, 3),
        ("emoji-style", {"style": "flat"}, 3),
    ]
    assert {row["reward"]: row["options"] for row in rows()} == {"emoji-clip": {}, "emoji-style": {"style": "flat"}}
    assert "alignment" in rows()[-1]["details"]


def test_what_is_there_is_not_scored_again(folder, capsys):
    run(capsys, "pics", "--reward", "colorfulness")
    first = rows()
    marked = [row | {"value": 7.0} for row in first]
    Path("pics/scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marked))
    code, out, _ = run(capsys, "pics", "--reward", "colorfulness", "--reward", "jpeg-compressibility", "--json")
    assert code == 0
    assert rows()[:3] == marked
    assert [row["reward"] for row in rows()[3:]] == ["jpeg-compressibility"] * 3
    assert json.loads(out)["summaries"][0]["mean"] == 7.0
    run(capsys, "pics", "--reward", "colorfulness", "--overwrite")
    assert [row for row in rows() if row["reward"] == "colorfulness"] == first
    assert len(rows()) == 6


def test_another_picture_or_prompt_under_the_same_name_is_scored_anew(folder, capsys):
    run(capsys, "pics", "--reward", "colorfulness")
    write_png(Path("pics/a.png"), flat("blue"), {"prompt": "a red dog"})
    Path("pics/b.txt").write_text("a cat")
    run(capsys, "pics", "--reward", "colorfulness")
    assert [(row["file"], row["prompt"], round(row["value"], 1)) for row in rows()] == [
        ("a.png", "a red dog", 76.5),
        ("b.png", "a cat", 76.5),
        ("deep/c.png", "", 0.0),
    ]


def test_versions_of_a_reward_are_never_mixed(folder, capsys):
    run(capsys, "pics", "--reward", "colorfulness")
    before = [row | {"version": "0"} for row in rows()]
    Path("pics/scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in before))
    code, out, err = run(capsys, "pics/a.png", "--out", "pics/scores.jsonl", "--reward", "colorfulness")
    assert code == 4
    assert out == ""
    assert err.splitlines()[-1] == (
        "error: pics/scores.jsonl: holds colorfulness version 0, installed is 1; "
        "score again with --overwrite, or name another --out"
    )
    assert rows() == before
    assert run(capsys, "pics", "--reward", "colorfulness", "--overwrite")[0] == 0
    assert [row["version"] for row in rows()] == ["1", "1", "1"]


def test_unreadable_pictures_become_failed_rows_and_the_others_are_scored(folder, capsys):
    Path("pics/b.png").write_bytes(b"")
    code, out, err = run(capsys, "pics", "--reward", "colorfulness", "--json")
    assert code == 3
    assert err.splitlines()[-1] == (
        "error: 1 of 3 pictures could not be scored, the first: pics/b.png: is empty; remove or replace the file"
    )
    assert json.loads(out)["summaries"][0]["count"] == 2
    assert [row.get("error") for row in rows()] == [None, "pics/b.png: is empty; remove or replace the file", None]
    write_png(Path("pics/b.png"), flat("blue"), {})
    assert run(capsys, "pics", "--reward", "colorfulness")[0] == 0
    assert sorted((row["file"], "value" in row) for row in rows()) == [
        ("a.png", True),
        ("b.png", True),
        ("deep/c.png", True),
    ]


def test_a_list_gives_files_and_prompts(folder, capsys):
    Path("pics/samples.jsonl").write_text('{"file": "deep/c.png", "prompt": "a gray dog", "seed": 3}\n')
    assert run(capsys, "pics/samples.jsonl", "--reward", "colorfulness")[0] == 0
    assert [(row["file"], row["prompt"]) for row in rows()] == [("deep/c.png", "a gray dog")]
    Path("pics/scores.jsonl").unlink()
    assert run(capsys, "pics", "--reward", "colorfulness")[0] == 0
    assert [row["file"] for row in rows()] == ["deep/c.png"]


def test_metadata_that_changed_makes_a_score_stale(folder, capsys):
    listing = Path("pics/samples.jsonl")
    listing.write_text('{"file": "a.png", "prompt": "x", "seed": 3}\n{"file": "b.png", "prompt": "x", "seed": 3}\n')
    run(capsys, "pics", "--reward", "colorfulness")
    Path("pics/scores.jsonl").write_text("".join(json.dumps(row | {"value": 7.0}) + "\n" for row in rows()))
    listing.write_text(listing.read_text().replace("3", "4", 1))
    run(capsys, "pics", "--reward", "colorfulness")
    assert [row["value"] == 7.0 for row in rows()] == [False, True]


def test_a_picture_too_large_to_open_is_one_of_the_unreadable(folder, capsys):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    Path("pics/b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    code, _, err = run(capsys, "pics", "--reward", "colorfulness")
    assert code == 3
    assert err.splitlines()[-1] == (
        "error: 1 of 3 pictures could not be scored, the first: "
        "pics/b.png: has above 64 million pixels; remove or replace the file"
    )
    assert [row["file"] for row in rows() if "value" in row] == ["a.png", "deep/c.png"]


@pytest.mark.parametrize(
    "change",
    [{"file": 3}, {"version": 1}, {"plugin": None}, {"prompt": ["x"]}, {"options": []}, {"value": "0.5"},
     {"value": None}, {"value": True}, {"value": 10**400}],
)  # fmt: skip
def test_a_row_that_is_no_score_is_told_with_its_line(folder, capsys, change):
    run(capsys, "pics", "--reward", "colorfulness")
    first, second, third = rows()
    text = f"{json.dumps(first)}\n\n{json.dumps(second | change)}\n{json.dumps(third)}\n"
    Path("pics/scores.jsonl").write_text(text)
    code, _, err = run(capsys, "pics", "--reward", "colorfulness")
    assert code == 4
    assert err.splitlines()[-1] == "error: pics/scores.jsonl:3: is no score; name another file with --out"
    assert Path("pics/scores.jsonl").read_text() == text


def test_files_are_scored_into_the_working_folder(folder, capsys):
    assert run(capsys, "pics/b.png", "pics/a.png", "pics/b.png", "--reward", "colorfulness")[0] == 0
    assert [row["file"] for row in rows("scores.jsonl")] == ["pics/b.png", "pics/a.png"]


@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("p.txt", "one\ntwo\nthree\n", ["one", "two", "three"]),
        ("p.csv", 'file,prompt\npics/deep/c.png,"three, four"\npics/a.png,one\n', ["one", "a blue dog", "three, four"]),
        ("p.jsonl", '{"file": "b.png", "prompt": "two"}\n', ["a red dog", "two", ""]),
    ],
)
def test_prompts_from_a_file_come_first(folder, capsys, name, text, prompts):
    Path(name).write_text(text)
    assert run(capsys, "pics", "--reward", "colorfulness", "--prompts", name)[0] == 0
    assert [row["prompt"] for row in rows()] == prompts


def test_without_any_prompt_a_note_says_so(folder, capsys):
    code, _, err = run(capsys, "pics/deep", "--reward", "emoji-clip")
    assert code == 0
    assert "1 of 1 pictures have no prompt; rewards get an empty one for them" in err


@pytest.mark.parametrize(
    ("argv", "code", "line"),
    [
        (["none", "--reward", "emoji-clip"], 2, "none: no such file or folder; correct the path"),
        (["empty", "--reward", "emoji-clip"], 2, "empty: no pictures in it; looked for .png .jpg .jpeg .webp"),
        (["pics", "--reward", "emoji-clap"], 2, "--reward: no reward named 'emoji-clap'; did you mean emoji-clip? "),
        (["pics", "--reward", "{emoji-style: {stile: 3d}}"], 2,
         "--reward: emoji-style.stile: unknown field; did you mean style?"),
        (["pics", "--reward", "{emoji-style: "], 2,
         "--reward: line 1, column 15: a value is missing; write one, or null"),
        (["pics", "--reward", ""], 2, "--reward: '' should be NAME, {NAME: {option: value}} or a list of them"),
        (["pics", "--reward", "emoji-clip", "--prompts", "short.txt"], 2,
         "short.txt: has 1 prompts for 3 pictures; give one a picture, or a CSV with columns file,prompt"),
        (["pics", "--reward", "emoji-clip", "--prompts", "other.csv"], 2,
         "other.csv: names none of the pictures; write paths relative to this file"),
        (["pics", "--reward", "emoji-clip", "--out", "other.jsonl"], 4,
         "other.jsonl:1: is no score; name another file with --out"),
        (["other.jsonl", "--reward", "emoji-clip"], 4,
         'other.jsonl: row 1 names no file; rows are like {"file": "a.png", "prompt": "a dog"}'),
        (["pics", "--reward", "colorfulness", "--out", "empty"], 4, "empty: is no file; name another file with --out"),
        (["marked", "--reward", "colorfulness"], 4, "marked/a.txt: not UTF-8; is this the right file?"),
        (["pics", "--reward", "colorfulness", "--prompts", "~no-such-user/p.csv"], 2,
         "--prompts: file.path: ~no-such-user/p.csv: no home folder ~no-such-user; write the path out"),
        (["pics", "--reward", "colorfulness", "--out", "short.txt/scores.jsonl"], 4,
         "short.txt/scores.jsonl: cannot be written (File exists); check the folder and its permissions"),
        (["pics", "--reward", "emoji-clip", "--device", "cuda:99"], 2,
         "device cuda:99: this machine has no such device; use auto or cpu"),
    ],
)  # fmt: skip
def test_faults_are_one_line_and_leave_nothing_behind(folder, capsys, argv, code, line):
    Path("empty").mkdir()
    Path("short.txt").write_text("one\n")
    Path("other.csv").write_text("file,prompt\nx.png,one\n")
    Path("other.jsonl").write_text('{"x": 1}\n')
    write_png(Path("marked/a.png"), flat("red"), {})
    Path("marked/a.txt").write_bytes(b"caf\xe9")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    got, out, err = run(capsys, *argv)
    assert (got, out) == (code, "")
    assert err.splitlines()[-1].startswith(f"error: {line}")
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


# --- the engine under it, with rewards that fail


class Brightness:
    """Mean level; refuses pictures as `refuses` says."""

    def __init__(self, refuses):
        self.refuses = refuses

    def score(self, request):
        values = request.images.mean(dim=(1, 2, 3))
        refused = self.refuses(request.images)
        if isinstance(refused, Exception):
            raise refused
        if refused:
            values = values * torch.nan
        return ScoreResult(values)


def scored(folder, refuses, batch=8, *, dist="ours", overwrite=False, out="scores.jsonl"):
    pictures = with_prompts(find_pictures([folder]), (), None)
    reward = FileReward("brightness", f"{dist}:brightness", "1", {}, Brightness(refuses))
    work = score_files(pictures, [reward], folder / out, batch=batch, overwrite=overwrite, device=torch.device("cpu"))
    return list(work)


def never(images):
    return False


def is_blue(images):
    return bool((images.mean(dim=(2, 3))[:, 2] == 1).any())


@pytest.mark.parametrize("batch", [1, 8])
def test_a_picture_that_a_reward_fails_on_gets_a_failed_row_and_the_others_go_on(folder, batch):
    events = scored(folder, is_blue, batch=batch)
    fault = (
        f"{folder}/b.png: reward brightness: values are not finite: nan for picture 0, 1 of 1 in all; "
        "a reward must give finite numbers"
    )
    assert [(row["file"], row.get("error")) for row in rows()] == [
        ("a.png", None),
        ("b.png", fault),
        ("deep/c.png", None),
    ]
    assert Note(fault) in events
    scored(folder, never)
    assert sorted((row["file"], "value" in row) for row in rows()) == [
        ("a.png", True),
        ("b.png", True),
        ("deep/c.png", True),
    ]


@pytest.mark.parametrize("kind", [UsageError, ArtifactError, PluginError])
def test_a_fault_that_a_reward_tells_itself_is_that_picture_s(folder, kind):
    scored(folder, lambda images: is_blue(images) and kind("is too blue", place="reward brightness"))
    assert [row.get("error") for row in rows()] == [None, f"{folder}/b.png: reward brightness: is too blue", None]


def test_a_reward_that_fails_on_every_picture_is_not_asked_for_ever(folder):
    asked = []
    for number in range(20):
        write_png(folder / f"many/{number:02}.png", flat("blue"), {})
    scored(folder / "many", lambda images: asked.append(len(images)) or True, batch=16)
    found = [row["error"].split(": ", 1)[1] for row in rows("pics/many/scores.jsonl")]
    assert asked == [16, *[1] * GIVE_UP]
    assert all(error.startswith("reward brightness: values are not finite") for error in found[:GIVE_UP])
    assert set(found[GIVE_UP:]) == {"not scored: reward brightness failed on 8 pictures in a row"}
    assert len(found) == 20


def test_a_batch_that_fails_is_tried_picture_by_picture(folder):
    scored(folder, lambda images: len(images) > 1)
    assert [row["value"] for row in rows()] == pytest.approx([1 / 3, 1 / 3, 128 / 255])


def test_pictures_of_several_sizes_are_scored_in_order(folder):
    write_png(folder / "aa.png", flat("white", size=9), {})
    scored(folder, never)
    assert [(row["file"], round(row["value"], 3)) for row in rows()] == [
        ("a.png", 0.333),
        ("aa.png", 1.0),
        ("b.png", 0.333),
        ("deep/c.png", 0.502),
    ]


def interrupt(images):
    raise KeyboardInterrupt


def test_scoring_anew_loses_no_row_when_it_is_stopped(folder):
    scored(folder, never)
    marked = [row | {"value": 7.0, "version": "0"} for row in rows()]
    Path("pics/scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in marked))
    with pytest.raises(KeyboardInterrupt):
        scored(folder, lambda images: is_blue(images) and interrupt(images), batch=1, overwrite=True)
    assert [(row["file"], row["value"] != 7.0) for row in rows()] == [
        ("a.png", True),
        ("b.png", False),
        ("deep/c.png", False),
    ]


def test_scoring_anew_leaves_no_row_of_pictures_that_are_gone(folder):
    scored(folder, never)
    (folder / "b.png").unlink()
    scored(folder, never, overwrite=True)
    assert [row["file"] for row in rows()] == ["a.png", "deep/c.png"]


def test_rewards_of_one_name_from_two_distributions_stay_apart(folder):
    scored(folder, never)
    scored(folder, never, dist="theirs")
    scored(folder, never, dist="theirs", overwrite=True)
    assert [row["plugin"] for row in rows()] == ["ours:brightness"] * 3 + ["theirs:brightness"] * 3


def test_a_file_that_cannot_be_written_is_found_out_before_scoring(folder):
    (folder / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"file/scores\.jsonl: cannot be written"):
        scored(folder, interrupt, out="file/scores.jsonl")


def test_where_nothing_was_scored_nothing_is_left(folder):
    with pytest.raises(KeyboardInterrupt):
        scored(folder, interrupt)
    assert not (folder / "scores.jsonl").exists()
