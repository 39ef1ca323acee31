"""The reward `vlm` against a real server on this machine that speaks the protocol, well or badly."""

import base64
import io
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

pytest.importorskip("sdpo_reward_vlm", reason="pip install -e plugins/sdpo-reward-vlm")

import numpy as np
from PIL import Image

from sdpo_cli.api import LoadContext, PluginError, UsageError
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.errors import RecipeError
from sdpo_cli.registry import load_registry
from sdpo_cli.testing import check_reward

Reply = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Takes a chat request and answers as the server's next scripted reply, or its lasting one, says."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.request_json = json.loads(body)
        with self.server.lock:
            self.server.seen.append((self.path, dict(self.headers), self.request_json))
            reply = self.server.script.pop(0) if self.server.script else self.server.reply
        reply(self)

    def text(self) -> str:
        return self.request_json["messages"][0]["content"][1]["text"]

    def picture(self) -> Image.Image:
        url = self.request_json["messages"][0]["content"][0]["image_url"]["url"]
        head, _, data = url.partition(",")
        assert head == "data:image/png;base64"
        return Image.open(io.BytesIO(base64.b64decode(data)))

    def give(self, status: int, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Replies with `script`, one after another, then always with `reply`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Reply] = []
        self.reply: Reply = says("3")
        self.seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left early is no news."""


def answer(text: str | None, logprobs: Any = None) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": logprobs}
    return json.dumps({"choices": [choice]}).encode()


def place(token: str, **tops: float) -> dict[str, Any]:
    """A place of the answer: the chosen token, and all candidates with their probabilities."""
    listed = [{"token": one, "logprob": math.log(p)} for one, p in tops.items()]
    chosen = next(one for one in listed if one["token"] == token)
    return {**chosen, "top_logprobs": listed}


def says(text: str | None, *places: dict[str, Any]) -> Reply:
    """A good answer; its log-probabilities are those of a judge that is certain unless told."""
    content = list(places) or [place(text, **{text: 1.0})] if text else []
    return lambda handler: handler.give(200, answer(text, {"content": content}))


def gives(status: int, data: bytes = b"", **headers: str) -> Reply:
    return lambda handler: handler.give(status, data, **headers)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def gray(*levels: int, size: int = 8) -> torch.Tensor:
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, size, size) / 255


def ask(server: Server, images: torch.Tensor, *prompts: str, **options: Any) -> ScoreResult:
    """The scores by a judge that waits for nothing."""
    told = {"model": "judge", "url": server.url, "backoff": 0.0, "timeout": 5.0, **options}
    reward = load_registry().reward("vlm", told).load(LoadContext())
    return reward.score(ScoreRequest(images, prompts or ["a cat"] * len(images)))


def fault(server: Server, **options: Any) -> str:
    with pytest.raises(PluginError) as caught:
        ask(server, gray(0), **options)
    return str(caught.value).replace(f"{server.url}/chat/completions", "URL")


def test_the_expected_rating_is_the_mean_over_the_rating_tokens(server: Server) -> None:
    server.reply = says("4", place("4", **{"4": 0.5, "5": 0.2, " 4": 0.1, "Four": 0.1, "3": 0.1}))
    result = ask(server, gray(0))
    # (4 * 0.6 + 5 * 0.2 + 3 * 0.1) / 0.9 = 3.7 / 0.9; in 0..1: (3.7 / 0.9 - 1) / 4
    assert result.values.tolist() == pytest.approx([(3.7 / 0.9 - 1) / 4], abs=1e-6)
    assert result.values.dtype == torch.float32
    assert {name: value.tolist() for name, value in result.details.items()} == {
        "rating": pytest.approx([3.7 / 0.9]),
        "rating_mass": pytest.approx([0.9]),
        "unreadable": [0.0],
    }


def test_the_raw_scale_leaves_the_rating(server: Server) -> None:
    server.reply = says("4", place("4", **{"4": 0.5, "2": 0.5}))
    assert ask(server, gray(0), scale="raw").values.tolist() == pytest.approx([3.0])


def test_the_rating_is_taken_where_the_judge_first_chose_one(server: Server) -> None:
    before = place("Rating", Rating=0.9, **{"5": 0.1})
    server.reply = says("Rating 2 of 5", before, place("2", **{"2": 1.0}), place("5", **{"5": 1.0}))
    assert ask(server, gray(0), scale="raw").values.tolist() == [2.0]


def test_vqascore_is_the_probability_of_yes_as_it_is(server: Server) -> None:
    server.reply = says("No", place("No", No=0.5, Yes=0.3, YES=0.05, Maybe=0.15))
    result = ask(server, gray(0), 'a "red" cat', preset="vqascore")
    assert result.values.tolist() == pytest.approx([0.35])
    assert result.details["rating_mass"].tolist() == pytest.approx([0.85])
    asked = server.seen[0][2]["messages"][0]["content"][1]["text"]
    assert asked == 'Does this figure show "a "red" cat"? Please answer yes or no.'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Good.\nFinal Score: 4", 4.0),
        ("Final Score: 2 at first; but then\nFinal Score: **4.5**", 4.5),
        ("**Final Score:** 3", 3.0),
    ],
)
def test_a_written_rating_is_the_last_that_the_pattern_finds(server: Server, text: str, value: float) -> None:
    server.reply = gives(200, answer(text))
    result = ask(server, gray(0), preset="unifiedreward", scale="raw")
    assert result.values.tolist() == [value]
    assert "logprobs" not in server.seen[0][2]


def test_own_tokens_and_template(server: Server) -> None:
    server.reply = says("Good", place("Good", Good=0.75, bad=0.25))
    result = ask(server, gray(0), "{x} {prompt}", template="{{is}} {prompt} ok?", tokens={"good": 2, "BAD": -2})
    assert result.values.tolist() == pytest.approx([0.75])
    assert result.details["rating"].tolist() == pytest.approx([1.0])
    assert server.seen[0][2]["messages"][0]["content"][1]["text"] == "{{is}} {x} {prompt} ok?"


def test_the_request_says_what_the_protocol_wants(server: Server) -> None:
    prompt = 'a "cat" {0} \\ \n <|endoftext|> 🐈 \x07'
    ask(server, gray(200, size=40), prompt, max_side=16, seed=7)
    path, headers, body = server.seen[0]
    content = body["messages"][0].pop("content")
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body == {
        "model": "judge",
        "messages": [{"role": "user"}],
        "temperature": 0,
        "seed": 7,
        "max_tokens": 8,
        "logprobs": True,
        "top_logprobs": 20,
    }
    assert f"\n---\n{prompt}\n---\n" in content[1]["text"]


def test_pictures_are_sent_losslessly_and_only_ever_made_smaller(server: Server) -> None:
    pictures: list[Image.Image] = []

    def keep(handler: Handler) -> None:
        pictures.append(handler.picture().copy())
        says("3")(handler)

    server.reply = keep
    image = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    ask(server, image, max_side=64)
    ask(server, image, max_side=16)
    assert np.array_equal(np.asarray(pictures[0]), (image[0] * 255).round().permute(1, 2, 0).numpy().astype(np.uint8))
    assert pictures[1].size == (16, 11)


def test_many_questions_at_a_time_keep_their_order(server: Server) -> None:
    together = threading.Barrier(4, timeout=10)

    def by_brightness(handler: Handler) -> None:
        together.wait()  # passes only if four are asked at a time
        level = handler.picture().getpixel((0, 0))[0]
        time.sleep((5 - level) * 0.02)  # the first asked answers last
        says(str(level))(handler)

    server.reply = by_brightness
    levels = [1, 4, 2, 5, 3, 1, 5, 2]
    assert ask(server, gray(*levels), concurrency=4, scale="raw").values.tolist() == levels


def test_it_keeps_the_contract(server: Server) -> None:
    def by_brightness(handler: Handler) -> None:
        p = np.asarray(handler.picture()).mean() / 256 + 0.001
        says("5", place("5", **{"5": p, "1": 1 - p}))(handler)

    server.reply = by_brightness
    check_reward(load_registry().reward("vlm", {"model": "m", "url": server.url}).load(LoadContext()))


class TestUnreadable:
    @pytest.mark.parametrize(
        "reply",
        [
            says("I cannot tell"),
            says(None),
            says("4", {"token": "4", "logprob": "high", "top_logprobs": None}),
            says("4", {"token": "4", "logprob": float("nan")}),
            says("4", {"token": "4", "logprob": 5}),
            says("4", {"token": "4", "logprob": 1e6}),
            says("4", {"token": "4"}),
            says("4", {}),
        ],
        ids=["no rating", "no text", "text for a number", "nan", "a probability of 148", "overflow", "none", "empty"],
    )
    def test_log_probabilities(self, server: Server, reply: Reply) -> None:
        server.reply = reply
        result = ask(server, gray(0), on_unreadable="min", scale="raw")
        assert result.values.tolist() == [1.0]
        assert result.details["unreadable"].tolist() == [1.0]
        assert result.details["rating_mass"].tolist() == [0.0]

    @pytest.mark.parametrize("text", ["", "4", "Final Score: none", "Final Score: 6", "Final Score: 0.9"])
    def test_text(self, server: Server, text: str) -> None:
        server.reply = gives(200, answer(text))
        result = ask(server, gray(0), preset="unifiedreward", on_unreadable="min")
        assert (result.values.tolist(), result.details["unreadable"].tolist()) == ([0.0], [1.0])

    def test_by_default_it_stops_and_says_what_was_answered(self, server: Server) -> None:
        server.script = [says("3"), says("I'd rather\nnot.")]
        with pytest.raises(PluginError) as caught:
            ask(server, gray(0, 0), concurrency=1)
        assert str(caught.value) == (
            'reward vlm: no rating can be read from the answer about picture 1: "I\'d rather not."; '
            "ask in another way (template, pattern, tokens), or set on_unreadable to min"
        )


NO_COMPLETION = "the server's answer is no chat completion"


class TestBadServers:
    @pytest.mark.parametrize("status", [408, 429, 500, 503])
    def test_a_busy_one_is_asked_again(self, server: Server, status: int) -> None:
        server.script = [gives(status, b"busy"), gives(status, b"busy", Retry_After="0.01")]
        assert ask(server, gray(0), scale="raw").values.tolist() == [3.0]
        assert len(server.seen) == 3

    def test_one_that_stays_busy(self, server: Server) -> None:
        server.reply = gives(503, b"loading\nthe model", Retry_After="Sun, 01 Jan 2090 00:00:00 GMT")
        assert fault(server, retries=2) == (
            "reward vlm: URL: status 503: loading the model, in 3 tries; is the server up and not too busy?"
        )
        assert len(server.seen) == 3

    def test_one_that_refuses_is_not_asked_again(self, server: Server) -> None:
        server.reply = gives(404, b'{"error": "no model judge"}')
        assert fault(server) == (
            'reward vlm: URL: status 404: {"error": "no model judge"}; check model, url and the key'
        )
        assert len(server.seen) == 1

    def test_one_that_is_slow(self, server: Server) -> None:
        server.reply = lambda handler: time.sleep(1)
        assert fault(server, timeout=0.2, retries=1) == (
            "reward vlm: URL: no answer within 0.2 s, in 2 tries; is the server up and not too busy?"
        )

    def test_one_that_drips(self, server: Server) -> None:
        def drip(handler: Handler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            for _ in range(100):
                handler.wfile.write(b" ")
                time.sleep(0.05)

        server.reply = drip
        assert fault(server, timeout=0.3, retries=0) == (
            "reward vlm: URL: no whole answer within 0.3 s, in 1 try; is the server up and not too busy?"
        )

    def test_one_that_closes_early_is_asked_again(self, server: Server) -> None:
        def close(handler: Handler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices":')
            handler.close_connection = True

        server.script = [close]
        assert ask(server, gray(0), scale="raw").values.tolist() == [3.0]
        server.reply = close
        assert "peer closed connection" in fault(server, retries=0)

    def test_one_that_is_not_there(self, server: Server) -> None:
        server.server_close()
        said = fault(server, retries=1)
        assert said.startswith("reward vlm: URL: ConnectError: ")
        assert said.endswith(", in 2 tries; is the server up and not too busy?")

    def test_one_that_says_too_much(self, server: Server) -> None:
        server.reply = gives(200, b" " * 4_000_001)
        assert fault(server) == ("reward vlm: URL: the answer is above 4000000 bytes; is it the right server?")

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"<html>\xff", "URL: the answer is no JSON: <html>\ufffd"),
            (b"[" * 100_000, f"URL: the answer is no JSON: {'[' * 200}"),
            (b"[]", NO_COMPLETION),
            (b"{}", NO_COMPLETION),
            (b'{"choices": []}', NO_COMPLETION),
            (b'{"choices": [{"message": null}]}', NO_COMPLETION),
            (b'{"choices": [{"message": {"content": ["4"]}}]}', NO_COMPLETION),
            (b'{"choices": [{"message": {"content": "4"}, "logprobs": 4}]}', NO_COMPLETION),
        ],
        ids=["bytes", "depth", "list", "object", "no choice", "no message", "parts", "odd logprobs"],
    )  # fmt: skip
    def test_one_that_speaks_otherwise(self, server: Server, data: bytes, said: str) -> None:
        server.reply = gives(200, data)
        assert fault(server) == f"reward vlm: {said}; is url that of an OpenAI-compatible API?"

    def test_one_without_log_probabilities(self, server: Server) -> None:
        server.reply = gives(200, answer("4"))
        assert fault(server, on_unreadable="min") == (
            "reward vlm: the server's answer has no log-probabilities; allow them there, or set mode to text"
        )
        assert ask(server, gray(0), mode="text", scale="raw").values.tolist() == [4.0]

    def test_a_redirect_is_not_followed(self, server: Server) -> None:
        server.reply = gives(307, location="https://elsewhere.example/v1")
        assert fault(server) == (
            "reward vlm: URL: it redirects to https://elsewhere.example/v1, which is not followed; "
            "set url to where the server is"
        )


def test_after_a_fault_no_more_is_asked(server: Server) -> None:
    """The first picture's server refuses while the second one's is busy: the second is not tried again."""
    busy = threading.Event()

    def by_picture(handler: Handler) -> None:
        if handler.picture().getpixel((0, 0))[0]:
            gives(503, b"busy")(handler)
            busy.set()
        else:
            busy.wait(10)
            gives(404)(handler)

    server.reply = by_picture
    before = set(threading.enumerate())
    with pytest.raises(PluginError, match="status 404"):
        ask(server, gray(0, 255), backoff=60.0)  # at least 30 s, were it not ended
    asking = [one for one in set(threading.enumerate()) - before if one.name.startswith("ThreadPoolExecutor")]
    for one in asking:
        one.join(20)
    assert not any(one.is_alive() for one in asking)
    assert len(server.seen) == 2


class TestKey:
    def test_it_is_sent_and_never_told(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("JUDGE_KEY", " s3cret ")
        server.script = [says("3")]
        server.reply = lambda handler: handler.give(401, f"bad key: {handler.headers['authorization']}".encode())
        ask(server, gray(0), api_key_variable="JUDGE_KEY")
        assert server.seen[0][1]["Authorization"] == "Bearer s3cret"
        assert fault(server, api_key_variable="JUDGE_KEY") == (
            "reward vlm: URL: status 401: bad key: Bearer [key]; check model, url and the key"
        )
        chosen = load_registry().reward("vlm", {"model": "m", "api_key_variable": "JUDGE_KEY"})
        assert "s3cret" not in json.dumps(chosen.all_options())

    @pytest.mark.parametrize(("value", "said"), [("", "holds no key"), ("a\nb", "holds what is no key")])
    def test_one_that_is_none(self, server: Server, monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
        monkeypatch.setenv("JUDGE_KEY", value)
        with pytest.raises(UsageError) as caught:
            ask(server, gray(0), api_key_variable="JUDGE_KEY")
        assert str(caught.value) == f"reward vlm: the environment variable JUDGE_KEY {said}; export JUDGE_KEY=..."


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "unifiedreward", "mode": "logprobs"},
         "reward vlm: mode logprobs needs rating tokens; set tokens, as in {good: 1, bad: 0}"),
        ({"low": 5.0}, "reward vlm: low 5 is not below high 5; set low and high"),
        ({"high": 4.0}, "reward vlm: token '5' is worth more or less than low..high; mend one"),
        ({"tokens": {"ok": 1}}, "reward vlm: low 1 is not below high 1; set low and high"),
        ({"mode": "text", "pattern": "("},
         "reward vlm: pattern is no regular expression (missing ), unterminated subpattern at position 0); mend it"),
        ({"mode": "text", "pattern": r"\d"},
         r"reward vlm: pattern has no group; put the rating in brackets, as in Score: (\d+)"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_registry().reward("vlm", {"model": "m", **options}).load(LoadContext())
    assert str(caught.value) == said


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x/v1", "http://user:pass@host/v1", "http://", "http://a b/"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(RecipeError, match="url"):
        load_registry().reward("vlm", {"model": "m", "url": url})


def test_a_judge_has_to_be_named() -> None:
    with pytest.raises(RecipeError) as caught:
        load_registry().reward("vlm")
    assert str(caught.value) == "vlm: model: missing; it has no default"
