"""`sdpo plugins`: tables for people, JSON for programs, checks with an exit code."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from sdpo_cli.api import LoadContext, ObjectiveSpec, Options, RewardSpec
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.main import main
from sdpo_cli.registry import BrokenPlugin, Plugin, Registry, load_registry

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
        monkeypatch.setattr("sdpo_cli.registry.load_registry", lambda: Registry(plugins, broken))

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
        "reward summary version from",
        "fine what fine does 1 ours 2.0",
        "ours:gray what gray does 1 ours 2.0",
        "theirs:gray what gray does 1 theirs 2.0",
        "objective summary version from",
        "sdpo learns 1 ours 1.0",
        "broken entry point reason",
        "bad 0.1 main cannot be imported: ImportError: [x]",
    ]


def test_the_list_fits_80_columns_in_a_pipe_and_keeps_names_whole(capsys: Capture) -> None:
    assert main(["plugins", "list"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert all(plugin.spec.name in shown for plugin in load_registry().plugins)


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
    assert shown[-2:] == ["option type default description", "quality int >= 1 <= 100 95 Pillow's JPEG quality"]


def test_show_names_the_options_of_a_group_by_their_path(capsys: Capture) -> None:
    assert main(["plugins", "show", "sdpo"]) == 0
    shown = lines(capsys)
    assert any(line.startswith("lambda float > 0 <= 1 0.99 ") for line in shown)
    assert any(line.startswith("dense.anchor 'interior' | 'any' \"interior\" ") for line in shown)


def test_show_of_a_plug_in_without_options_says_so(capsys: Capture) -> None:
    assert main(["plugins", "show", "simple-animals"]) == 0
    assert lines(capsys)[-1] == "It has no options."


def test_show_of_an_unknown_name(capsys: Capture, installed: Any) -> None:
    installed([reward("gray", "ours")])
    assert main(["plugins", "show", "grey"]) == 3
    assert capsys.readouterr().err == "error: no plug-in named 'grey'; did you mean gray? installed: gray\n"


def test_check_passes_and_fails_by_distribution_with_exit_code_3(capsys: Capture, installed: Any) -> None:
    bad = reward("bad", "ours", lambda values: values * float("nan"))
    installed([reward("gray", "ours"), bad, reward("bad", "theirs")], [BrokenPlugin("ours", "2.0", "main", "why")])
    assert main(["plugins", "check", "ours"]) == 3
    said = capsys.readouterr()
    rows = [" ".join(line.split()) for line in said.out.splitlines()]
    assert {"main broken why", "reward gray ok"} < set(rows)
    assert "reward bad failed score gives finite numbers: 3 are not" in rows
    assert said.err == "error: ours: 2 of 3 plug-ins failed\n"


def test_check_of_a_shipped_source_that_needs_an_option(capsys: Capture, tmp_path: Any) -> None:
    assert main(["plugins", "check", "file"]) == 0
    assert lines(capsys)[-1] == "prompt source file skipped give --set path=VALUE"
    (tmp_path / "p.txt").write_text("a cat\n")
    assert main(["plugins", "check", "file", "--set", f"path={tmp_path}/p.txt"]) == 0
    assert lines(capsys)[-1] == "prompt source file ok"
    assert main(["plugins", "check", "file", "--set", f"path={tmp_path}/p.txt", "--set", "pth=3"]) == 3
    assert lines(capsys)[-1].startswith("prompt source file failed --set: pth: unknown field; did you mean")


def test_a_plug_in_that_raises_in_its_check_is_told(capsys: Capture, installed: Any) -> None:
    def raises(options: Options, context: LoadContext) -> None:
        raise OSError("no weights")

    installed([Plugin(RewardSpec("lost", "s", "1", "x", Options, raises), "ours", "1")])
    assert main(["plugins", "check", "lost"]) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith("reward lost failed reward ours:lost: cannot be loaded: OSError: no weights")


def test_check_goes_on_after_a_plug_in_without_the_option(capsys: Capture, installed: Any) -> None:
    class Gain(Options):
        gain: int = 1

    spec = RewardSpec("loud", "s", "1", "x", Gain, lambda o, c: Gray(torch.clone))
    installed([reward("gray", "ours"), Plugin(spec, "ours", "2.0")])
    assert main(["plugins", "check", "ours", "--set", "gain=2"]) == 3
    said = capsys.readouterr()
    rows = [" ".join(line.split()) for line in said.out.splitlines()]
    assert "reward gray failed --set: gain: unknown field; there are none" in rows
    assert "reward loud ok" in rows
    assert said.err == "error: ours: 1 of 2 plug-ins failed\n"
