"""`sdpo plugins`: tables for people, JSON for programs, checks with an exit code."""

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, Optional

import pytest
import torch
from PIL import Image
from pydantic import Field

from sdpo_cli import __version__
from sdpo_cli.api import Example, HubFiles, LoadContext, ObjectiveSpec, Options, RewardSpec, UsageError, UserPath
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.main import main
from sdpo_cli.registry import BrokenPlugin, Plugin, Registry

Capture = pytest.CaptureFixture[str]


class Gray:
    """A reward whose scores may be spoiled."""

    def __init__(self, spoil: Any) -> None:
        self.spoil = spoil

    def score(self, request: ScoreRequest) -> ScoreResult:
        return ScoreResult(self.spoil(request.images.mean(dim=(1, 2, 3))))


def reward(name: str, dist: str, spoil: Any = torch.clone) -> Plugin:
    return Plugin(RewardSpec(name, f"what {name} does", "1", "x", Options, lambda o, c: Gray(spoil)), dist, "2.0")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a test say what is installed."""

    def install(plugins: Sequence[Plugin], broken: Sequence[BrokenPlugin] = ()) -> None:
        for user in ("registry", "testing.examples"):
            monkeypatch.setattr(f"sdpo_cli.{user}.load_registry", lambda: Registry(plugins, broken))

    return install


def lines(capsys: Capture) -> list[str]:
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip(" ─")]


def test_the_list_shows_kinds_names_owners_clashes_and_what_is_broken(capsys: Capture, installed: Any) -> None:
    objective = Plugin(ObjectiveSpec("sdpo", "learns", "1", "x", Options, lambda o, c: None), "ours", "1.0")
    installed(
        [reward("gray", "ours"), reward("gray", "theirs"), reward("fine", "ours"), objective],
        [BrokenPlugin("bad", "0.1", "main", "cannot be imported: ImportError: [x]")],
    )
    assert main(["plugins", "list"]) == 0
    assert lines(capsys) == [
        "rewards",
        "fine what fine does (version 1, ours 2.0)",
        "ours:gray what gray does (version 1, ours 2.0)",
        "theirs:gray what gray does (version 1, theirs 2.0)",
        "objectives",
        "sdpo learns (version 1, ours 1.0)",
        "broken",
        "bad 0.1 main: cannot be imported: ImportError: [x]",
    ]


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("command", [["list"], ["show", "sd-turbo"], ["show", "sdpo"]])
def test_nothing_is_cut_at_any_width(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: list[str], width: int
) -> None:
    def words_at(columns: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["plugins", *command]) == 0
        shown = capsys.readouterr().out
        beyond = [line for line in shown.splitlines() if len(line) > columns]
        assert all("/" in line.split()[-1] and len(line.split()) <= 2 for line in beyond)  # a hub id is left whole
        return shown.split()

    assert words_at(width) == words_at(10_000)
    # A name and the beginning of what is said of it share a line, at 60 columns too.
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["plugins", "list"]) == 0
    assert "\n  colorfulness            colourfulness of the picture: 0 is\n" in capsys.readouterr().out


def test_the_json_list_says_the_same(capsys: Capture, installed: Any) -> None:
    installed([reward("gray", "ours")], [BrokenPlugin("bad", "0.1", "main", "why")])
    assert main(["plugins", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "plugins": [
            {
                "kind": "reward",
                "name": "gray",
                "summary": "what gray does",
                "version": "1",
                "source": "x",
                "distribution": "ours",
                "distribution_version": "2.0",
            }
        ],
        "broken": [{"distribution": "bad", "version": "0.1", "entry_point": "main", "reason": "why"}],
    }


def test_show_tells_options_with_type_bounds_default_and_meaning(capsys: Capture) -> None:
    assert main(["plugins", "show", "jpeg-compressibility"]) == 0
    shown = lines(capsys)
    assert shown[0].startswith("jpeg-compressibility: reward, version 1, from sdpo-cli ")
    assert shown[-3:] == ["Options:", "quality: int >= 1 <= 100, default 95", "Pillow's JPEG quality"]


def test_show_tells_types_as_recipes_know_them(capsys: Capture, installed: Any) -> None:
    class Many(Options):
        file: UserPath = "x"
        path: UserPath | None = None
        worth: dict[str, float] | None = None
        mode: Literal["a", "b"] | None = None
        old: Optional[int] = Field(default=3, ge=1)  # noqa: UP045

    spec = RewardSpec("big", "s", "1", "x", Many, lambda o, c: None)
    installed([Plugin(spec, "ours", "2.0")])
    assert main(["plugins", "show", "big"]) == 0
    assert lines(capsys)[-5:] == [
        'file: path, default "x"',
        "path: path | null, default null",
        "worth: dict[str, float] | null, default null",
        "mode: 'a' | 'b' | null, default null",
        "old: int | null >= 1, default 3",
    ]


def test_show_names_the_options_of_a_group_by_their_path(capsys: Capture) -> None:
    assert main(["plugins", "show", "sdpo"]) == 0
    shown = lines(capsys)
    assert "lambda: float > 0 <= 1, default 0.99" in shown
    assert "dense.anchor: 'middle' | 'interior' | 'any', default \"middle\"" in shown


def test_show_of_a_plug_in_without_options_says_so(capsys: Capture) -> None:
    assert main(["plugins", "show", "simple-animals"]) == 0
    assert lines(capsys)[-1] == "It has no options."


def test_show_of_an_unknown_name(capsys: Capture, installed: Any) -> None:
    installed([reward("gray", "ours")])
    assert main(["plugins", "show", "grey"]) == 2
    assert capsys.readouterr().err == "error: no plug-in named 'grey'; did you mean gray? installed: gray\n"


def test_show_tells_facts_and_what_is_downloaded(capsys: Capture, installed: Any) -> None:
    class Size(Options):
        size: str = "small"

    spec = RewardSpec(
        "big", "s", "1", "x", Size, lambda o, c: None,
        needs=lambda o: [HubFiles(f"me/{o.size}", "abc", ("a.json", "b.safetensors")), HubFiles("me/x", None, ("*",))],
        facts={"licence": "MIT", "scale": "cosine"},
    )  # fmt: skip
    installed([Plugin(spec, "ours", "2.0")])
    assert main(["plugins", "show", "big"]) == 0
    assert lines(capsys)[2:7] == [
        "Source: x",
        "Licence: MIT",
        "Scale: cosine",
        "Downloads: me/small at abc: a.json, b.safetensors",
        "Downloads: me/x at its newest revision: *",
    ]


KEPT = [
    "it loads",
    "scores are finite float32, one a picture",
    "details are finite float32, one a picture",
    "a request is left as it is",
    "scores are repeatable",
    "a picture's score is its own",
    "an empty batch has no scores",
    "pictures of any size are scored",
    "flat pictures are scored",
    "prompts of any text are scored",
    "metadata may be missing",
]
NOT_TRIED = [
    "  skipped  pictures on another device have the same scores: there is no other device here",
    "  skipped  embeddings are unit vectors: it embeds no pictures",
]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is another device here")
def test_check_reports_every_law_and_fails_with_exit_code_3(capsys: Capture, installed: Any) -> None:
    bad = reward("bad", "ours", lambda values: values - values.mean())
    installed([reward("gray", "ours"), bad, reward("bad", "theirs")], [BrokenPlugin("ours", "2.0", "main", "why")])
    assert main(["plugins", "check", "ours"]) == 3
    said = capsys.readouterr()
    kept = [f"  ok       {law}" for law in KEPT]
    own = "  failed   a picture's score is its own: scored alone it differs from scored among others"
    assert said.out.splitlines() == [
        *("main broken: why", "reward gray ok", *kept, *NOT_TRIED),
        *("reward bad failed", *kept[:5], own, *kept[6:], *NOT_TRIED),
    ]
    assert said.err == "error: ours: 2 of 3 plug-ins failed\n"


def test_laws_that_stand_on_a_broken_one_are_skipped(capsys: Capture, installed: Any) -> None:
    installed([reward("bad", "ours", lambda values: values * float("nan"))])
    assert main(["plugins", "check", "bad"]) == 3
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        "reward bad failed",
        "  ok       it loads",
        "  failed   scores are finite float32, one a picture: 3 are not finite",
    ]
    assert all(line.endswith(": rests on a law above") for line in said[3:])


def test_the_json_report_says_the_same(capsys: Capture, installed: Any) -> None:
    broken = BrokenPlugin("ours", "2.0", "main", "why")
    installed([reward("bad", "ours", lambda values: values.double())], [broken])
    assert main(["plugins", "check", "ours", "--json"]) == 3
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["broken"] == [{"distribution": "ours", "version": "2.0", "entry_point": "main", "reason": "why"}]
    (plugin,) = report["plugins"]
    laws = plugin.pop("laws")
    assert plugin == {"kind": "reward", "name": "bad", "distribution": "ours", "result": "failed"}
    assert laws[:2] == [
        {"law": "it loads", "result": "ok", "why": ""},
        {"law": "scores are finite float32, one a picture", "result": "failed", "why": "it gives torch.float64"},
    ]
    assert said.err == "error: ours: 2 of 2 plug-ins failed\n"


def test_check_of_a_shipped_source_that_needs_an_option(capsys: Capture, tmp_path: Any) -> None:
    assert main(["plugins", "check", "file"]) == 0
    assert lines(capsys) == ["prompt source file skipped", "skipped it loads: give --set path=VALUE"]
    (tmp_path / "p.txt").write_text("a cat\n")
    assert main(["plugins", "check", "file", "--set", f"path={tmp_path}/p.txt"]) == 0
    assert lines(capsys)[0] == "prompt source file ok"
    assert main(["plugins", "check", "file", "--set", f"path={tmp_path}/p.txt", "--set", "pth=3"]) == 3
    assert lines(capsys)[1].startswith("failed it loads: --set: pth: unknown field; did you mean")


def test_a_plug_in_that_raises_in_its_check_is_told(capsys: Capture, installed: Any) -> None:
    def raises(options: Options, context: LoadContext) -> None:
        raise OSError("no weights")

    installed([Plugin(RewardSpec("lost", "s", "1", "x", Options, raises), "ours", "1")])
    assert main(["plugins", "check", "lost"]) == 3
    assert lines(capsys) == [
        "reward lost failed",
        "failed it loads: reward ours:lost: cannot be loaded: OSError: no weights",
    ]


def test_a_reward_that_raises_is_told_with_the_law(capsys: Capture, installed: Any) -> None:
    class NeedsPixels(Gray):
        def score(self, request: ScoreRequest) -> ScoreResult:
            if request.images.shape[-1] < 2:
                raise ValueError("too\nsmall")
            return super().score(request)

    spec = RewardSpec("picky", "s", "1", "x", Options, lambda o, c: NeedsPixels(torch.clone))
    installed([Plugin(spec, "ours", "1")])
    assert main(["plugins", "check", "picky"]) == 3
    failed = [line for line in lines(capsys) if line.startswith("failed")]
    assert failed == ["failed pictures of any size are scored: raised ValueError: too small"]


def test_what_the_user_has_to_mend_is_no_failure(capsys: Capture, installed: Any) -> None:
    def raises(options: Options, context: LoadContext) -> None:
        raise UsageError("no key", place="reward keyed", remedy="export KEY=...")

    installed([Plugin(RewardSpec("keyed", "s", "1", "x", Options, raises), "ours", "1")])
    assert main(["plugins", "check", "keyed"]) == 0
    assert lines(capsys) == ["reward keyed skipped", "skipped it loads: reward keyed: no key; export KEY=..."]


def test_an_option_that_does_not_lead_to_loading_is_a_failure(capsys: Capture, tmp_path: Path) -> None:
    assert main(["plugins", "check", "file", "--set", f"path={tmp_path}/gone.txt"]) == 3
    assert lines(capsys)[0] == "prompt source file failed"


def test_check_goes_on_after_a_plug_in_without_the_option(capsys: Capture, installed: Any) -> None:
    class Gain(Options):
        gain: int = 1

    spec = RewardSpec("loud", "s", "1", "x", Gain, lambda o, c: Gray(torch.clone))
    installed([reward("gray", "ours"), Plugin(spec, "ours", "2.0")])
    assert main(["plugins", "check", "ours", "--set", "gain=2"]) == 3
    said = capsys.readouterr()
    assert "  failed   it loads: --set: gain: unknown field; there are none" in said.out.splitlines()
    assert "reward loud ok" in said.out.splitlines()
    assert said.err == "error: ours: 1 of 2 plug-ins failed\n"


class TestOnline:
    """Published scores, the pictures from this machine."""

    @pytest.fixture
    def gray_picture(self, tmp_path: Path) -> Path:
        path = tmp_path / "gray.png"
        Image.new("RGB", (4, 4), (51, 51, 51)).save(path)
        return path

    def install(self, installed: Any, *examples: Example, needs: Sequence[HubFiles] = ()) -> None:
        class Gain(Options):
            gain: float = 1.0

        spec = RewardSpec(
            "gray", "s", "1", "x", Gain, lambda o, c: Gray(lambda values: o.gain * values),
            needs=lambda o: needs, examples=examples,
        )  # fmt: skip
        installed([Plugin(spec, "ours", "2.0")])

    def test_they_are_compared_with_the_options_they_were_published_for(
        self, capsys: Capture, installed: Any, gray_picture: Path
    ) -> None:
        example = Example(str(gray_picture), "a cat", 0.2, 0.001, "a paper")
        far = replace(example, value=0.5, tolerance=0.05, options={"gain": 2.0})
        self.install(installed, example, far, replace(far, value=0.42))
        assert main(["plugins", "check", "gray", "--online"]) == 3
        assert lines(capsys)[:4] == [
            "reward gray failed",
            "ok gray.png scores 0.2000 ± 0.001 as in a paper: it is 0.2000",
            "failed gray.png scores 0.5000 ± 0.05 as in a paper: it is 0.4000",
            "ok gray.png scores 0.4200 ± 0.05 as in a paper: it is 0.4000",
        ]

    def test_a_reward_without_any_says_so(self, capsys: Capture, installed: Any) -> None:
        self.install(installed)
        assert main(["plugins", "check", "gray", "--online"]) == 0
        assert lines(capsys)[1] == "skipped published scores are met: none are known"

    def test_weights_that_cannot_be_had(self, capsys: Capture, installed: Any, gray_picture: Path) -> None:
        example = Example(str(gray_picture), "a cat", 0.2, 0.001, "a paper")
        self.install(installed, example, needs=[HubFiles("me/nowhere", None, ("a.safetensors",))])
        assert main(["plugins", "check", "gray", "--online"]) == 3
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: me/nowhere: not on this machine, and the hub cannot be reached (")
        assert said.err.count("\n") == 1

    def test_a_picture_from_the_web(self, capsys: Capture, installed: Any, gray_picture: Path) -> None:
        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        handler = partial(Quiet, directory=str(gray_picture.parent))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            place = f"http://127.0.0.1:{server.server_address[1]}"
            example = Example(f"{place}/gray.png", "a cat", 0.2, 0.001, "a paper")
            self.install(installed, example)
            assert main(["plugins", "check", "gray", "--online"]) == 0
            assert lines(capsys)[1].startswith("ok gray.png scores 0.2000 ± 0.001 as in a paper")
            self.install(installed, replace(example, picture=f"{place}/none.png"))
            assert main(["plugins", "check", "gray", "--online"]) == 3
            server.shutdown()
        missing = capsys.readouterr().err
        assert missing.startswith(f"error: {place}/none.png: cannot be fetched (Client error '404 File not found'")
        assert missing.endswith("; try with a connection\n")
        assert main(["plugins", "check", "gray", "--online"]) == 3
        assert "none.png: cannot be fetched (" in capsys.readouterr().err


class TestNew:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize("kind", ["reward", "prompt-source"])
    def test_a_package_is_written_whole_and_short(self, capsys: Capture, tmp_path: Path, kind: str) -> None:
        assert main(["plugins", "new", "my-own-2", "--kind", kind, "--out", "deep/er/folder"]) == 0
        package = tmp_path / "deep/er/folder"
        files = {path.relative_to(package).as_posix(): path for path in package.rglob("*") if path.is_file()}
        assert set(files) == {"pyproject.toml", "README.md", "my_own_2.py", "tests/test_my_own_2.py"}
        code = [path.read_text() for name, path in files.items() if name.endswith(".py")]
        assert sum(len(text.splitlines()) for text in code) < 60
        assert "$" not in "".join(path.read_text() for path in files.values())
        assert [path.name for path in package.parent.iterdir()] == ["folder"]
        assert capsys.readouterr().out.splitlines()[1] == "  pip install -e deep/er/folder"

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("My Reward", "'My Reward' is not lower-case words joined by hyphens; try my-reward"),
            ("my_reward", "'my_reward' is not lower-case words joined by hyphens; try my-reward"),
            ("2-warm", "'2-warm' is not lower-case words joined by hyphens; try warm"),
            ("../up", "'../up' is not lower-case words joined by hyphens; try up"),
            ("ß", "'ß' is not lower-case words joined by hyphens; try my-reward"),
            ("json", "a module json exists already; choose another, such as my-json"),
            ("class", "a module class exists already; choose another, such as my-class"),
            ("jpeg-compressibility",
             f"sdpo-cli {__version__} has the reward jpeg-compressibility already; "
             "choose another, such as my-jpeg-compressibility"),
        ],
    )  # fmt: skip
    def test_names_that_will_not_do(self, capsys: Capture, tmp_path: Path, name: str, said: str) -> None:
        assert main(["plugins", "new", name]) == 2
        assert capsys.readouterr().err == f"error: NAME: {said}\n"
        assert not list(tmp_path.iterdir())

    def test_nothing_is_overwritten(self, capsys: Capture, tmp_path: Path) -> None:
        (tmp_path / "my-reward").mkdir()
        assert main(["plugins", "new", "my-reward"]) == 2
        said = "my-reward: exists already; name another folder with --out, or remove it"
        assert capsys.readouterr().err == f"error: {said}\n"
        assert not list((tmp_path / "my-reward").iterdir())

    def test_a_folder_that_cannot_be_made(self, capsys: Capture, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert main(["plugins", "new", "my-reward", "--out", "file/inside"]) == 4
        said = capsys.readouterr().err
        assert said.startswith("error: file/inside: cannot be written (")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
