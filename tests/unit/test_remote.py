"""The reward `http` against real local sockets that misbehave in every way known."""

import base64
import gzip
import json
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest
import torch
from pydantic import ValidationError

from sdpo_cli.api import LoadContext
from sdpo_cli.api.remote import Question
from sdpo_cli.api.tensors import ScoreRequest
from sdpo_cli.engine.rewards.scoring import checked_score
from sdpo_cli.errors import PluginError, UsageError
from sdpo_cli.registry import load_registry

INFO = {"protocol": 1, "reward": "light", "version": "1"}


def request(count: int = 2) -> ScoreRequest:
    return ScoreRequest(torch.arange(count)[:, None, None, None].expand(count, 3, 2, 2) / 255, ["a dog"] * count)


def means(question: dict) -> dict:
    """The right answer: the first byte of each picture."""
    return INFO | {"values": [base64.b64decode(image["data"])[0] for image in question["images"]]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(content)), **said}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.send(200, json.dumps(self.server.info).encode())

    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(question)
        with suppress(OSError):  # the client has left
            self.server.misbehave(self, question)


@contextmanager
def server(misbehave, info=INFO):
    """A server whose POST does what `misbehave(handler, question)` says; `asked` has the questions."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.misbehave, running.info, running.asked = misbehave, info, []
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        running.daemon_threads = True
        running.block_on_close = False
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def http(*urls: str, **options):
    patience = {"retries": 0, "backoff": 0.0, "timeout": 0.5}
    return load_registry().reward("http", {"urls": list(urls), **patience, **options}).load(LoadContext())


def fault_of(misbehave, **options) -> str:
    """What `checked_score` says of a server, its URL as URL."""
    with server(misbehave) as running:
        reward = http(running.url, **options)
        with pytest.raises(PluginError) as fault:
            checked_score("http", reward, request())
        return str(fault.value).replace(running.url, "URL")


def sends(content: object, status: int = 200, **headers: str):
    return lambda handler, question: handler.send(status, json.dumps(content).encode(), **headers)


def closes(handler, question):
    handler.connection.shutdown(socket.SHUT_RDWR)


def closes_early(handler, question):
    handler.send(200, b'{"protocol": 1', Content_Length="9999")
    handler.connection.shutdown(socket.SHUT_RDWR)


def sleeps(handler, question):
    handler.server.gate.wait(5)


def trickles(handler, question):
    handler.send(200, b"", Content_Length="100000")
    while not handler.server.gate.wait(0.1):
        handler.wfile.write(b" ")


def floods(handler, question):
    handler.send(200, b"", Content_Length=str(10**9))
    for _ in range(1000):
        handler.wfile.write(b" " * 10**6)


def packs(handler, question):
    handler.send(200, gzip.compress(b" " * 10**7), Content_Encoding="gzip")


ELSE = "URL answers something else than protocol 1"
ASK = "; ask a server that `sdpo serve-reward` or docs/remote-rewards.md describes"
LOG = "; look at the server's log"


@pytest.mark.parametrize(
    ("misbehave", "line"),
    [
        (lambda handler, question: handler.send(200, b"<html>\x80</html>"), f"{ELSE} (Invalid JSON: "),
        (sends([1, 2]), f"{ELSE} (Input should be an object){ASK}"),
        (sends({"values": [1, 2]}), f"{ELSE} (reward: Field required){ASK}"),
        (sends(INFO | {"values": [1, 2], "protocol": 2}), f"{ELSE} (protocol: Input should be 1){ASK}"),
        (sends(INFO | {"values": ["1", 2]}), f"{ELSE} (values.0: Input should be a valid number){ASK}"),
        (sends(INFO | {"values": [1, float("nan")]}), f"{ELSE} (values.1: Input should be a finite number){ASK}"),
        (sends(INFO | {"values": [1, 1e39]}), "values are not finite: inf for picture 1, 1 of 2 in all; a reward "),
        (sends(INFO | {"values": [1]}), "URL gave 1 values for 2 pictures; mend the served reward"),
        (sends(INFO | {"values": [1, 2], "details": {"x": [1]}}), "URL gave 1 details['x'] for 2 pictures; mend the"),
        (sends(INFO | {"values": [1, 2], "version": "2"}),
         "URL serves light 2 now and served light 1 before; serve one version to the end"),
        (closes, "URL broke off (Server disconnected without sending a response.)" + LOG),
        (closes_early, "URL broke off (peer closed connection without sending complete message body "),
        (floods, "URL answers with more than 8 MB" + LOG),
        (packs, "URL compresses its answer unasked" + LOG),
        (sends({}, 302, Location="http://elsewhere.example/score"),
         "URL redirects to http://elsewhere.example/score; name that address in urls if you trust it"),
        (sends({"protocol": 1, "error": "no\nway"}, 400), "URL refuses: no way" + LOG),
        (sends({"error": 3}, 404), "URL refuses: status 404" + LOG),
        (sends({"protocol": 1, "error": "who?"}, 403),
         "URL refuses: who?; put its token into the variable that token_env names"),
    ],
)  # fmt: skip
def test_a_server_that_misbehaves_is_told_with_its_address_and_a_remedy(misbehave, line):
    assert fault_of(misbehave).startswith(f"reward http: {line}")


@pytest.mark.parametrize("misbehave", [sleeps, trickles])
def test_a_server_that_does_not_come_to_an_end_is_left(misbehave):
    with server(misbehave) as running:
        running.gate = threading.Event()
        reward = http(running.url, timeout=0.3, retries=1)
        with pytest.raises(PluginError) as fault:
            reward.score(request())
        running.gate.set()
    assert str(fault.value) == (
        f"reward http: {running.url} (2 tries) gave no answer in 0.3 s; raise timeout, or look at the server"
    )
    assert len(running.asked) == 2


def test_a_server_that_is_not_there_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(PluginError) as fault:
        http(url, retries=2)
    assert str(fault.value) == (
        f"reward http: {url} (3 tries) cannot be reached (All connection attempts failed); "
        "start it with `sdpo serve-reward NAME`, or correct urls"
    )


def test_a_server_that_recovers_is_asked_again_and_one_that_refuses_for_good_is_not():
    def busy(handler, question):
        if len(handler.server.asked) < 3:
            return handler.send(503, b"busy")
        return handler.send(200, json.dumps(means(question)).encode())

    with server(busy) as running:
        assert http(running.url, retries=2).score(request()).values.tolist() == [0, 1]
        assert len(running.asked) == 3
    with server(sends({}, 404)) as running, pytest.raises(PluginError):
        http(running.url, retries=5).score(request())
    assert len(running.asked) == 1


def works(handler, question):
    handler.send(200, json.dumps(means(question) | {"details": {"n": [7] * len(question["images"])}}).encode())


def test_several_servers_share_the_work_in_order_and_one_that_fails_is_passed_over():
    def refuses(handler, question):
        handler.send(500, b"")

    with server(works) as first, server(works) as second, server(refuses) as third:
        result = http(first.url, second.url, third.url, batch=2, retries=2).score(request(13))
    assert result.values.tolist() == list(range(13))
    assert result.details["n"].tolist() == [7] * 13
    assert [len(one.asked) for one in (first, second, third)] == [5, 2, 2]


def test_servers_that_serve_different_things_are_refused():
    other = INFO | {"version": "2", "options": {"b": 1}}
    with server(works) as first, server(works, other) as second, pytest.raises(PluginError) as fault:
        http(first.url, second.url)
    assert str(fault.value) == (
        f"reward http: {second.url} serves light 2 (b=1), {first.url} light 1; let all servers serve the same"
    )


def test_what_a_server_is_asked_is_what_the_protocol_says():
    with server(works) as running:
        http(running.url).score(ScoreRequest(request(1).images, ["a 🐕\x00"], [{"tags": ["x"]}]))
    assert running.asked == [
        {
            "protocol": 1,
            "images": [{"encoding": "rgb8", "height": 2, "width": 2, "data": "AAAAAAAAAAAAAAAA"}],
            "prompts": ["a 🐕\x00"],
            "metadata": [{"tags": ["x"]}],
        }
    ]


@pytest.mark.parametrize(
    ("urls", "fault"),
    [
        ([], "http.urls: [] should be a list of at least 1"),
        (3, "http.urls: 3 should be a list; write reward.http.urls=[3]"),
        ("ftp://a", "'ftp://a' should be a URL such as http://127.0.0.1:8765"),
        ("http://", "'http://' should be a URL such as http://127.0.0.1:8765"),
        ("http://a:99999", "'http://a:99999' should be a URL such as http://127.0.0.1:8765"),
        ("http://me:secret@a", "should hold no user, password, query or fragment; a token comes from token_env"),
        ("http://a/?token=secret", "should hold no user, password, query or fragment; a token comes from token_env"),
    ],
)
def test_addresses_are_checked_before_anything_is_asked(urls, fault):
    with pytest.raises(Exception, match="http") as caught:
        load_registry().reward("http", {"urls": urls}, "x.yaml: reward")
    assert fault in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", ["sec\nret", "sécret", "sec ret"])
def test_what_is_no_token_is_told_without_it(token, monkeypatch):
    monkeypatch.setenv("SDPO_REWARD_TOKEN", token)
    with pytest.raises(UsageError) as fault:
        http("http://127.0.0.1:9")
    assert str(fault.value) == (
        "reward http: the environment variable SDPO_REWARD_TOKEN holds other than printable ASCII letters; "
        "give it the servers' token, without a line break"
    )


def test_many_faults_of_a_question_are_one_error():
    with pytest.raises(ValidationError) as fault:
        Question.model_validate_json('{"images": [' + "{}," * 1000 + "{}]}")
    assert {error["loc"][:2] for error in fault.value.errors()} == {("images", 0)}


DOCS = Path(__file__).parents[2] / "docs" / "remote-rewards.md"


def test_the_server_of_the_documentation_speaks_the_protocol(tmp_path, monkeypatch):
    code = next(block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "HTTP" in block)
    (tmp_path / "server.py").write_text(code)
    monkeypatch.setenv("SDPO_REWARD_TOKEN", "secret")
    command = [sys.executable, "server.py", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=PIPE, stderr=DEVNULL, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            reward = http(url, batch=2, timeout=5.0)
            values = reward.score(request(5)).values
            monkeypatch.setenv("SDPO_REWARD_TOKEN", "wrong")
            with pytest.raises(PluginError, match="refuses: the token is missing or wrong"):
                http(url)
        finally:
            process.kill()
    assert reward.identity == "brightness 1"
    torch.testing.assert_close(values, torch.arange(5) / 255)


def test_the_function_of_the_documentation_is_a_reward():
    from sdpo_cli.registry.functions import FunctionReward

    module: dict = {}
    code = next(block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if "taste" in block)
    exec(code, module)
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 2, 2)
    result = checked_score("taste", FunctionReward("taste:score", module["score"], ()), ScoreRequest(red, ["a dog"]))
    assert result.values.tolist() == [1.0]
