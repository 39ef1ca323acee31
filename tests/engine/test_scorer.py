"""Scoring in a thread of its own: order, faults, rewards that hang, and numbers that are the same as without it."""

import dataclasses
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import tiny
import torch

from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.evaluating.evaluate import Plan, evaluate
from sdpo_cli.engine.learning.credit import ask_rewards, key_rewards
from sdpo_cli.engine.learning.rollout import roll_out, roll_out_parts
from sdpo_cli.engine.rewards.scorer import THREAD, WAITING, Scorer
from sdpo_cli.engine.rewards.scoring import LoadedReward
from sdpo_cli.engine.training.checkpoint import newest_snapshot
from sdpo_cli.engine.training.shares import Seat, roll_out_and_ask, sample_share
from sdpo_cli.engine.training.trainer import train
from sdpo_cli.errors import PluginError, UsageError
from sdpo_cli.registry import load_registry


def request(value: float, count: int = 1, prompt: str = "a dog") -> ScoreRequest:
    return ScoreRequest(torch.full((count, 3, 4, 4), value), [prompt] * count, [{}] * count)


def loaded(reward, name="light", timeout=600.0, **more) -> LoadedReward:
    return LoadedReward(name, "1", 1.0, reward, timeout=timeout, **more)


@pytest.fixture
def at_work():
    """Lists the scoring threads that this test has begun."""
    before = set(threading.enumerate())
    return lambda: [one for one in threading.enumerate() if one.name == THREAD and one not in before]


class Gated(tiny.Brightness):
    """Brightness that waits at a gate."""

    def __init__(self):
        self.gate, self.begun = threading.Event(), threading.Event()

    def score(self, request):
        self.begun.set()
        self.gate.wait()
        return super().score(request)


def test_answers_come_in_order_and_the_thread_ends(at_work):
    with Scorer([loaded(tiny.Brightness()), loaded(tiny.Brightness(), "again")]) as scorer:
        asked = [scorer.submit(request(value, count=2)) for value in (0.0, 0.25, 0.5, 0.75)]
        answers = [[result.values.tolist() for result in scorer.result(one)] for one in asked]
    assert answers == [[[value] * 2] * 2 for value in (0.0, 0.25, 0.5, 0.75)]
    assert not at_work()


def test_the_queue_is_bounded_and_the_asker_goes_on_meanwhile():
    reward = Gated()
    with Scorer([loaded(reward)]) as scorer:
        asked = [scorer.submit(request(0.5)) for _ in range(WAITING + 1)]
        assert reward.begun.wait(10)
        assert not any(one.done() for one in asked)
        late = threading.Thread(target=lambda: asked.append(scorer.submit(request(0.5))))
        late.start()
        late.join(0.3)
        assert late.is_alive()
        reward.gate.set()
        late.join(10)
        assert [scorer.result(one)[0].values.tolist() for one in asked] == [[0.5]] * (WAITING + 2)


def test_a_reward_that_hangs_is_told_with_sample_and_timeout_and_left_behind(at_work):
    reward = Gated()
    with pytest.raises(PluginError) as fault, Scorer([loaded(reward, timeout=0.2)]) as scorer:
        scorer.result(scorer.submit(request(0.5, count=3, prompt="a very\nlong " + "x" * 99)))
    assert str(fault.value) == (
        f"reward light: no answer in 0.2 s (3 pictures, the first of 'a very long {'x' * 45}...'); "
        "raise train.reward_timeout, or mend the reward"
    )
    assert len(at_work()) == 1
    reward.gate.set()
    at_work()[0].join(10)
    assert not at_work()


def test_a_hanging_reward_is_found_by_who_waits_for_a_place_in_the_queue():
    reward = Gated()
    with pytest.raises(PluginError) as fault, Scorer([loaded(reward, timeout=0.2)]) as scorer:
        for _ in range(WAITING + 2):
            scorer.submit(request(0.5))
    assert str(fault.value).startswith("reward light: no answer in 0.2 s (1 picture, of 'a dog'); ")
    reward.gate.set()


def test_after_a_fault_nothing_more_is_asked():
    class Failing:
        calls = 0

        def score(self, request):
            Failing.calls += 1
            raise ValueError("no\nluck")

    with pytest.raises(PluginError) as fault, Scorer([loaded(Failing())]) as scorer:
        asked = scorer.submit(request(0.5))
        while not asked.done():
            time.sleep(0.01)
        scorer.submit(request(0.5))
    assert str(fault.value) == (
        "reward light: raised ValueError: no luck (1 picture, of 'a dog'); report it to the plug-in's author"
    )
    assert Failing.calls == 1


def test_a_fault_that_a_reward_tells_itself_names_the_pictures_too():
    class Picky:
        def score(self, request):
            raise UsageError("has no quotes", place="reward light", remedy="quote it")

    with pytest.raises(UsageError) as fault, Scorer([loaded(Picky())]) as scorer:
        scorer.result(scorer.submit(request(0.5)))
    assert str(fault.value) == "reward light: has no quotes (1 picture, of 'a dog'); quote it"


def test_details_that_come_and_go_are_told():
    class Fickle(tiny.Brightness):
        calls = 0

        def score(self, request):
            self.calls += 1
            values = super().score(request).values
            return ScoreResult(values, {"first": values} if self.calls == 1 else {})

    with pytest.raises(PluginError) as fault, Scorer([loaded(Fickle())]) as scorer:
        for asked in [scorer.submit(request(0.5)) for _ in range(2)]:
            scorer.result(asked)
    assert str(fault.value) == (
        "reward light: gave the details [] and ['first'] before (1 picture, of 'a dog'); "
        "a reward must give the same details every time"
    )


def test_evaluation_stops_at_a_hanging_reward_too(checkpoint):
    model, reward = tiny.load(checkpoint), Gated()
    plan = Plan(tiny.PROMPTS, (1,), 1, 0, model.sampler, 20, "tiny")
    with pytest.raises(PluginError) as fault:
        list(evaluate(model, [loaded(reward, timeout=0.2)], plan, adapter=None))
    reward.gate.set()
    assert str(fault.value).startswith("reward light: no answer in 0.2 s (5 pictures, the first of 'cat'); ")


class Mortal(BaseHTTPRequestHandler):
    """A served reward that dies after a few answers."""

    left = 6

    def log_message(self, *args):
        pass

    def reply(self, **more):
        body = json.dumps({"protocol": 1, "reward": "light", "version": "1", **more}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.reply()

    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["content-length"])))
        Mortal.left -= 1
        if Mortal.left > 0:
            self.reply(values=[float(n) for n in range(len(question["images"]))])
        elif Mortal.left == 0:
            self.server.socket.close()  # and no answer


def test_training_stops_when_the_server_is_gone_and_keeps_the_last_whole_epoch(checkpoint, tmp_path):
    with HTTPServer(("127.0.0.1", 0), Mortal) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        options = {"urls": url, "retries": 1, "backoff": 0.0, "timeout": 5.0}
        remote = load_registry().reward("http", options).load(LoadContext())
        setup = dataclasses.replace(tiny.setup(checkpoint, epochs=9), rewards=(loaded(remote, "http"),))
        section = setup.recipe.train.model_copy(update={"checkpoint_every": 9})
        setup = dataclasses.replace(setup, recipe=setup.recipe.model_copy(update={"train": section}))
        (tmp_path / "run").mkdir()
        run = RunFolder(tmp_path / "run")
        with pytest.raises(PluginError) as fault:
            list(train(setup, run, resume=None))
    assert str(fault.value).startswith(f"reward http: {url} (2 tries) cannot be reached (")
    assert "pictures, the first of '" in str(fault.value)
    assert newest_snapshot(run.checkpoints)[0].progress.epoch == len(run.metrics.read_text().splitlines()) >= 1


class Slow(tiny.Brightness):
    def score(self, request: ScoreRequest) -> ScoreResult:
        time.sleep(0.02)
        return super().score(request)


def test_the_numbers_are_those_of_scoring_after_sampling(checkpoint):
    setup = dataclasses.replace(tiny.setup(checkpoint, steps=4), rewards=(loaded(Slow()),))
    plan, draw = setup.objective.plan, tiny.draw(setup.model)
    with Scorer(setup.rewards) as scorer:
        rollouts, asked = roll_out_and_ask(Seat(setup, scorer=scorer), draw, 2)
        beside = key_rewards(scorer, asked)
    whole = roll_out(setup.model, setup.kernel, draw, plan, 0, 2)
    assert torch.equal(rollouts.x_t, whole.x_t)
    assert torch.equal(rollouts.log_prob, whole.log_prob)
    with Scorer(setup.rewards) as scorer:
        parts = list(roll_out_parts(setup.model, setup.kernel, draw, plan, 0, 2))
        after = key_rewards(scorer, [ask_rewards(setup.model, scorer, part, plan, 4) for part in parts])
        at_once = key_rewards(scorer, [ask_rewards(setup.model, scorer, whole, plan, 100)])
    assert [len(part.draw) for part in parts] == [2, 2, 1]
    for other, exact in ((after, True), (at_once, False)):
        assert torch.equal(beside.key_step, other.key_step)
        assert beside.queries == other.queries
        torch.testing.assert_close(beside.reward, other.reward, **({"rtol": 0, "atol": 0} if exact else {}))


def test_memory_that_runs_out_halves_the_parts_and_asks_anew(checkpoint, monkeypatch):
    from sdpo_cli.engine.memory import fitting

    setup = tiny.setup(checkpoint)
    draw, denoise, largest = tiny.draw(setup.model), setup.model.denoise, 3

    def small(x_t, at, conditioning):
        if len(x_t) > largest:
            raise torch.OutOfMemoryError("no memory")
        return denoise(x_t, at, conditioning)

    with Scorer(setup.rewards) as scorer:
        monkeypatch.setattr(setup.model, "denoise", small)
        seat = Seat(setup, scorer=scorer)
        (_, asked), batch = fitting(lambda pairs: roll_out_and_ask(seat, draw, pairs), 4, "pair")
        found = key_rewards(scorer, asked)
        monkeypatch.undo()
        _, asked = roll_out_and_ask(seat, draw, 1)
        expected = key_rewards(scorer, asked)
    assert batch == 1  # 3 latents at once: the two rollouts of one pair
    assert torch.equal(found.reward, expected.reward)


def test_decoding_that_does_not_fit_is_halved_by_itself(checkpoint, monkeypatch):
    setup = tiny.setup(checkpoint)
    decode, sizes = setup.model.decode, []

    def small(x0):
        sizes.append(len(x0))
        if len(x0) > 2:
            raise torch.OutOfMemoryError("no memory")
        return decode(x0)

    monkeypatch.setattr(setup.model, "decode", small)
    with Scorer(setup.rewards) as scorer:
        _, asked = roll_out_and_ask(Seat(setup, scorer=scorer), tiny.draw(setup.model), 4)
        assert len(asked) == 2
        assert len(key_rewards(scorer, asked).reward[0]) == 5
    assert sizes[:2] == [8, 4]
    assert set(sizes[2:]) == {2}


def test_a_later_epoch_decodes_as_many_as_fitted(checkpoint, monkeypatch):
    seat = Seat(tiny.setup(checkpoint))
    decode, refused = seat.setup.model.decode, []

    def small(x0):
        if len(x0) > 2:
            refused.append(len(x0))
            raise torch.OutOfMemoryError("no memory")
        return decode(x0)

    monkeypatch.setattr(seat.setup.model, "decode", small)
    with Scorer(seat.setup.rewards) as seat.scorer:
        sample_share(seat, None, 1)
        assert refused
        refused.clear()
        sample_share(seat, None, 2)
    assert refused == []
