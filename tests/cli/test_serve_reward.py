"""`sdpo serve-reward` as a real process, asked by hand and by the reward `http`."""

import base64
import io
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import ScoreRequest
from sdpo_cli.errors import PluginError
from sdpo_cli.main import main
from sdpo_cli.registry import load_registry

MODULE = '''\
"""Mean level of a picture; the prompt tells it to misbehave."""
import time


def score(images, prompts, metadata):
    """Mean level."""
    if "slow" in prompts:
        time.sleep(1.2)
    if "boom" in prompts:
        raise ValueError("no\\nluck")
    bonus = [one.get("bonus", 0.0) for one in metadata]
    values = [float(image.mean()) + more for image, more in zip(images, bonus)]
    return [float("nan") if prompt == "nan" else value for prompt, value in zip(prompts, values)]
'''
TOKEN = "a-secret-token"


class Server:
    """A `sdpo serve-reward` process on a free port."""

    def __init__(self, folder: Path, *argv: str, token: str = TOKEN):
        env = {**os.environ, "SDPO_REWARD_TOKEN": token, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "sdpo_cli", "serve-reward", *argv, "--port", "0", "--device", "cpu"]
        self.process = subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True)
        self.said = self.process.stderr.readline()
        self.url = self.said.partition(" at ")[2].partition(";")[0]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal; gives its exit code."""
        self.process.send_signal(number)
        self.rest = self.process.stderr.read()
        return self.process.wait(30)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the module."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "served_light.py").write_text(MODULE)
    return folder


@pytest.fixture(scope="module")
def server(place):
    """A server with narrow limits."""
    limits = ("--max-images", "4", "--max-pixels", "2000", "--max-bytes", "20000", "--timeout", "0.8")
    running = Server(place, "served_light:score", *limits)
    yield running
    running.stop()


def rgb8(level: int, height: int = 2, width: int = 3) -> dict:
    data = base64.b64encode(bytes([level]) * height * width * 3).decode()
    return {"encoding": "rgb8", "height": height, "width": width, "data": data}


def png(picture: Image.Image, **claimed: int) -> dict:
    file = io.BytesIO()
    picture.save(file, "PNG")
    size = {"height": picture.height, "width": picture.width}
    return {"encoding": "png", **size, **claimed, "data": base64.b64encode(file.getvalue()).decode()}


def ask(server: Server, question: object, **more) -> tuple[int, dict]:
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"} | more.pop("headers", {})
    content = more.pop("content", None) or json.dumps(question).encode()
    answer = httpx2.post(f"{server.url}/score", content=content, headers=headers, trust_env=False)
    return answer.status_code, answer.json()


def test_it_says_what_it_serves_to_those_who_know_the_token(server, place):
    get = lambda path, **headers: httpx2.get(server.url + path, headers=headers, trust_env=False)  # noqa: E731
    assert server.said == f"serving served_light:score at {server.url}; Ctrl-C ends it\n"
    assert get("/health").json() == {"status": "ok"}
    nowhere = {"protocol": 1, "error": "there are GET /health, GET /info and POST /score"}
    assert [(one.status_code, one.json()) for one in (get("/"), get("/score"))] == [(404, nowhere), (405, nowhere)]
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
        assert get("/info", **headers).status_code == 401
        assert get("/info", **headers).json() == {"protocol": 1, "error": "the token is missing or wrong"}
        assert ask(server, {"images": []}, headers={"authorization": "", **headers})[0] == 401
    info = get("/info", authorization=f"Bearer {TOKEN}").json()
    assert info.pop("version").startswith("sha256 ")
    assert info == {
        "protocol": 1,
        "reward": "served_light:score",
        "summary": "Mean level.",
        "source": "served_light.py",
        "options": {},
        "limits": {"max_images": 4, "max_pixels": 2000, "max_bytes": 20000, "timeout": 0.8},
    }


def test_raw_and_png_pictures_of_any_mode_are_scored(server):
    deep = Image.fromarray(np.full((2, 3), 128 << 8, np.uint16))
    clear = Image.new("RGBA", (3, 2), (0, 0, 0, 0))
    pictures = [rgb8(51), png(Image.new("L", (3, 2), 102)), png(deep), png(clear)]
    status, answer = ask(server, {"images": pictures, "metadata": [{}, {"bonus": 1.0}, {}, {}]})
    assert status == 200
    assert answer["values"] == pytest.approx([0.2, 1.4, 128 / 255, 1.0], abs=1e-6)
    assert (answer["protocol"], answer["reward"], answer["details"]) == (1, "served_light:score", {})
    assert ask(server, {"images": []})[1]["values"] == []


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
BOMB = b"\x89PNG\r\n\x1a\n" + HEADER + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
LEVEL = {"height": 2, "width": 3}


def raw(data: bytes, encoding: str = "png", **size: int) -> dict:
    return {"encoding": encoding, **(size or LEVEL), "data": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    ("question", "status", "error"),
    [
        ({"images": [raw(BOMB)]}, 400, "images.0: has above 64 million pixels"),
        ({"images": [png(Image.new("L", (400, 400)), **LEVEL)]}, 400, "images.0: has 400 x 400 pixels, not 3 x 2"),
        ({"images": [raw(b"")]}, 400, "images.0: is no picture"),
        ({"images": [raw(b"GIF89a" + bytes(99))]}, 400, "images.0: is no picture"),
        ({"images": [raw(bytes(17), "rgb8")]}, 400, "images.0.data: has 17 bytes, not 2 x 3 x 3"),
        ({"images": [rgb8(1) | {"data": "%"}]}, 400, "images.0.data: is no base64"),
        ({"images": [rgb8(1), rgb8(1, width=2)]}, 400,
         "images: the pictures of a question have one size; send a question for each size"),
        ({"images": [rgb8(1)], "prompts": ["a", "b"]}, 400, "prompts: there are 2 for 1 pictures"),
        ({"images": [rgb8(1)], "metadata": [{}, {}]}, 400, "metadata: there are 2 for 1 pictures"),
        ({"images": [rgb8(1)] * 5}, 413, "the question has 5 pictures, above 4; send fewer at once"),
        ({"images": [rgb8(1) | {"height": 10**9}]}, 413,
         "the question has 3000000000 pixels, above 2000; send fewer pictures"),
        ({"images": [rgb8(1) | {"height": 0}]}, 400,
         "images.0.height: Input should be greater than or equal to 1"),
        ({"images": [rgb8(1)], "protocol": 2}, 400, "protocol: Input should be 1"),
        ({"prompts": []}, 400, "images: Field required"),
        ({"images": [rgb8(1)], "prompts": ["boom"]}, 500,
         "reward served_light:score: raised ValueError: no luck at served_light.py:10; mend the function"),
        ({"images": [rgb8(1)], "prompts": ["nan"]}, 500,
         "reward served_light:score: values are not finite: nan for picture 0, 1 of 1 in all; "
         "a reward must give finite numbers"),
    ],
)  # fmt: skip
def test_what_it_refuses(server, question, status, error):
    assert ask(server, question) == (status, {"protocol": 1, "error": error})


def test_a_broken_png_is_refused(server):
    noise = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    whole = base64.b64decode(png(Image.fromarray(noise))["data"])
    status, said = ask(server, {"images": [raw(whole[:300], height=30, width=20)]})
    assert status == 400
    assert said["error"].startswith("images.0: cannot be read as a picture (")


@pytest.mark.parametrize(
    ("content", "headers", "status", "error"),
    [
        (b"\x80\x04pickle", {}, 400, "Invalid JSON: "),
        (b"[" * 10_000, {}, 400, "Invalid JSON: recursion limit exceeded"),
        (b"{}", {"content-type": "text/plain"}, 415, "a question is sent as application/json"),
        (b"{}", {"content-encoding": "gzip"}, 415, "a question is sent without compression"),
        (b" " * 20_001, {}, 413, "the question has 20001 bytes, above 20000; send fewer pictures"),
    ],
)
def test_what_it_does_not_even_read(server, content, headers, status, error):
    found, said = ask(server, None, content=content, headers=headers)
    assert found == status
    assert said["error"].startswith(error)


def test_a_question_of_unknown_length_is_read_no_further_than_the_limit(server):
    def endless():
        for _ in range(100):
            yield b" " * 1000

    status, said = ask(server, None, content=endless())
    assert (status, said["error"]) == (413, "the question has more than 20000 bytes; send fewer pictures")


def test_a_question_that_takes_too_long_is_given_up_and_the_next_ones_are_answered(server):
    status, said = ask(server, {"images": [rgb8(1)], "prompts": ["slow"]})
    assert (status, said["error"]) == (504, "not answered within 0.8 s")
    assert ask(server, {"images": [rgb8(255)]})[1]["values"] == [1.0]


def request(count: int, size: int = 8) -> ScoreRequest:
    levels = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    return ScoreRequest(levels, [f"picture {n}" for n in range(count)], [{"bonus": float(n)} for n in range(count)])


def http(monkeypatch, token: str = TOKEN, **options):
    monkeypatch.setenv("SDPO_REWARD_TOKEN", token)
    return load_registry().reward("http", options).load(LoadContext())


@pytest.mark.parametrize("encoding", ["rgb8", "png"])
def test_the_client_gets_the_values_in_order_within_the_servers_limits(server, monkeypatch, encoding):
    reward = http(monkeypatch, urls=server.url, encoding=encoding, batch=100)
    asked = request(11, size=20)  # 2000 // 400 = 5 pictures a question by pixels, 4 by number
    expected = asked.images.mean((1, 2, 3)) + torch.arange(11)
    torch.testing.assert_close(reward.score(asked).values, expected, rtol=0, atol=1e-5)
    assert reward.score(request(0)).values.shape == (0,)
    assert reward.identity.startswith("served_light:score sha256 ")


def test_a_refused_token_is_told_without_it(server, monkeypatch):
    with pytest.raises(PluginError) as fault:
        http(monkeypatch, token="guessed", urls=server.url)
    assert str(fault.value) == (
        f"reward http: {server.url} refuses: the token is missing or wrong; "
        "put its token into the variable that token_env names"
    )


def test_a_fault_of_the_served_reward_names_server_and_reward(server, monkeypatch):
    reward = http(monkeypatch, urls=server.url, retries=1, backoff=0.0)
    with pytest.raises(PluginError) as fault:
        reward.score(ScoreRequest(torch.zeros(1, 3, 2, 3), ["boom"]))
    assert str(fault.value) == (
        f"reward http: {server.url} (2 tries) refuses: reward served_light:score: raised ValueError: no luck at "
        "served_light.py:10; mend the function; look at the server's log"
    )


def test_a_picture_above_the_servers_limit_is_told(server, monkeypatch):
    with pytest.raises(PluginError) as fault:
        http(monkeypatch, urls=server.url).score(ScoreRequest(torch.zeros(1, 3, 50, 41), [""]))
    assert str(fault.value) == (
        f"reward http: {server.url} refuses: the question has 2050 pixels, above 2000; send fewer pictures; "
        "look at the server's log"
    )


RECIPE = """\
model: emoji-turbo
prompts: few.txt
reward: {{http: {{urls: {url}, normalise: prompt}}, "served_light:score": {{}}}}
rollout: {{pairs: 2, steps: 2}}
train: {{epochs: 2, samples_every: 0, micro_batch: 1}}
eval: {{steps: [1], images_per_prompt: 1}}
"""


def test_training_and_scoring_ask_the_server(workplace, monkeypatch):
    monkeypatch.setenv("SDPO_REWARD_TOKEN", TOKEN)
    (workplace / "served_light.py").write_text(MODULE)
    wide = Server(workplace, "served_light:score")
    (workplace / "far.yaml").write_text(RECIPE.format(url=wide.url))
    assert main(["train", "far.yaml", "--quiet"]) == 0
    metrics = [json.loads(line) for line in Path("runs/far/metrics.jsonl").read_text().splitlines()]
    for row in metrics:
        assert row["reward/http"] == pytest.approx(row["reward/served_light:score"], abs=2e-3)
        # rewards of a prompt's two pictures at the last step: standardised -a and a, and as they are
        assert row["reward_last"] == pytest.approx(row["reward/served_light:score"], abs=1e-5)
    assert TOKEN not in "".join(path.read_text("latin-1") for path in Path("runs").rglob("*") if path.is_file())
    Image.new("RGB", (4, 4), (51, 51, 51)).save("gray.png")
    assert main(["score", "gray.png", "--reward", f"{{http: {{urls: {wide.url}}}}}", "-q"]) == 0
    (row,) = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert row["value"] == pytest.approx(0.2)
    assert row["version"].startswith("1 served_light:score sha256 ")
    assert wide.stop(signal.SIGINT) == 0
    assert wide.rest == ""


@pytest.mark.parametrize(
    ("argv", "token", "line"),
    [
        (["nothing"], "", "error: no reward named 'nothing'; `sdpo plugins list` has all"),
        (["colorfulness", "--host", "0.0.0.0"], "",
         "error: --host: 0.0.0.0 is open to others, and there is no token; "
         "set SDPO_REWARD_TOKEN, or listen at 127.0.0.1"),
        (["colorfulness"], "a b", "error: --token: holds other than printable ASCII letters; use letters and digits"),
        (["colorfulness", "--set", "style"], "", "error: --set style: no option and value; write --set style=flat"),
        (["emoji-style", "--set", "style=flut"], "", "error: emoji-style: style: 'flut' should be '3d', "),
        (["colorfulness", "--port", "{port}"], "", "error: 127.0.0.1:{port}: cannot listen (Address already in use); "),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_told_in_one_line(server, argv, token, line, monkeypatch, capsys):
    port = server.url.rpartition(":")[2]
    monkeypatch.setenv("SDPO_REWARD_TOKEN", token)
    code = main(["serve-reward", *(word.replace("{port}", port) for word in argv), "--device", "cpu"])
    assert code in (2, 3)
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(line.replace("{port}", port))


@pytest.mark.parametrize("library", ["starlette", "uvicorn"])
def test_without_the_server_library_the_remedy_is_told_before_torch_is_loaded(library):
    program = (
        "import sys; from sdpo_cli.main import main; sys.modules[sys.argv[1]] = None; "
        "print(main(['serve-reward', 'colorfulness']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, library], capture_output=True, text=True, check=False)
    assert done.stderr == f"error: sdpo serve-reward: {library} is not installed; pip install 'sdpo-cli[serve]'\n"
    assert done.stdout == "2 False\n"
