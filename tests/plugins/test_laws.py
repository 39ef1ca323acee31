"""The checks for plug-in authors: each law is broken once, and named."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo_cli.api import LoadContext, Prompt
from sdpo_cli.api.tensors import LearningPlan, LossBatch, ObjectiveResult, ScoreRequest, ScoreResult
from sdpo_cli.errors import PluginError
from sdpo_cli.registry import load_registry
from sdpo_cli.testing import check_base_model, check_objective, check_prompt_source, check_reward


def fault(check: Callable[..., None], *arguments: Any) -> str:
    with pytest.raises(PluginError) as caught:
        check(*arguments)
    return str(caught.value)


class Scores:
    """A reward by a function of the pictures."""

    def __init__(self, function: Callable[[Tensor], Any], details: Mapping[str, Tensor] | None = None) -> None:
        self.function, self.details = function, details or {}

    def score(self, request: ScoreRequest) -> ScoreResult:
        return ScoreResult(self.function(request.images), self.details)


def mean(images: Tensor) -> Tensor:
    return images.mean(dim=(1, 2, 3))


def test_a_plain_reward_keeps_every_law() -> None:
    check_reward(Scores(mean))


SCORES = "scores are finite float32, one a picture"


@pytest.mark.parametrize(
    ("function", "law"),
    [
        (lambda x: mean(x)[:, None], f"{SCORES}: it gives [3, 1], not [3]"),
        (lambda x: mean(x).mean(), f"{SCORES}: it gives [], not [3]"),
        (lambda x: mean(x).double(), f"{SCORES}: it gives torch.float64"),
        (lambda x: mean(x).tolist(), f"{SCORES}: it gives a list"),
        (lambda x: mean(x) / 0, f"{SCORES}: 3 are not finite"),
        (lambda x: mean((x - mean(x)[:, None, None, None]).square()).log(),
         "flat pictures are scored: 2 are not finite"),
        (lambda x: mean(x) / int(x.shape[-1] > 1), "pictures of any size are scored: 1 are not finite"),
        (lambda x: mean(x) + torch.rand(len(x)), "scores are repeatable: a second call differs"),
        (lambda x: mean(x) - mean(x).mean(),
         "a picture's score is its own: scored alone it differs from scored among others"),
        (lambda x: mean(x.mul_(0.5)), "a request is left as it is: the images were changed"),
        (lambda x: mean(x) if len(x) else torch.zeros(1), "an empty batch has no scores: it gives [1], not [0]"),
    ],
)  # fmt: skip
def test_a_reward_that_breaks_a_law(function: Callable[[Tensor], Any], law: str) -> None:
    assert fault(check_reward, Scores(function)) == law


@pytest.mark.parametrize(
    ("detail", "said"),
    [
        (torch.zeros(7), "it gives [7], not [3]"),
        (torch.zeros(3, dtype=torch.int64), "it gives torch.int64"),
        (torch.tensor([0.0, 1.0, float("inf")]), "1 are not finite"),
    ],
)
def test_details_are_one_finite_number_a_picture(detail: Tensor, said: str) -> None:
    assert fault(check_reward, Scores(mean, {"x": detail})) == f"details are finite float32, one a picture: x: {said}"


def test_a_reward_made_for_one_size_or_for_full_batches_raises() -> None:
    with pytest.raises(RuntimeError):
        check_reward(Scores(lambda x: x.reshape(-1, 3 * 64 * 64).mean(dim=1)))


class Reads(Scores):
    """A reward that also looks at the rest of its request."""

    def __init__(self, look: Callable[[ScoreRequest], Any]) -> None:
        super().__init__(mean)
        self.look = look

    def score(self, request: ScoreRequest) -> ScoreResult:
        self.look(request)
        return super().score(request)


def test_a_reward_that_wants_metadata_or_plain_prompts_raises() -> None:
    with pytest.raises(IndexError):
        check_reward(Reads(lambda request: [request.metadata[i] for i in range(len(request.prompts))]))
    with pytest.raises(UnicodeEncodeError):
        check_reward(Reads(lambda request: [prompt.encode("ascii") for prompt in request.prompts]))


@pytest.mark.parametrize("change", [lambda r: r.metadata[0].pop("a", None), lambda r: r.metadata[0].update(b=1)])
def test_metadata_is_left_as_it_is(change: Callable[[ScoreRequest], Any]) -> None:
    def look(request: ScoreRequest) -> None:
        if request.metadata:
            change(request)

    assert fault(check_reward, Reads(look)) == "a request is left as it is: the metadata was changed"


def test_embeddings_are_unit_vectors() -> None:
    class Embedder(Scores):
        def embed(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :4]

    assert fault(check_reward, Embedder(mean)) == "embeddings are unit vectors: their lengths differ"


@pytest.mark.parametrize(
    ("prompts", "law"),
    [
        ([], "a source has prompts: it is empty"),
        ([Prompt("a"), "b"], "a source gives Prompts: number 1 is a str"),
        ([Prompt(" ")], "a prompt says something: number 0 is ' '"),
        ([Prompt("a", {"x": Path()})], "metadata is what JSON can say: that of number 0 is not"),
        ([Prompt("a", [1])], "metadata is what JSON can say: that of number 0 is not"),
    ],
)
def test_prompt_sources_that_break_a_law(prompts: Any, law: str) -> None:
    assert fault(check_prompt_source, prompts) == law


class Likelihood:
    """An objective: mean over prompts of -advantage x ratio, or a spoiled version of it."""

    def __init__(self, spoil: Callable[[Tensor], Tensor] = torch.mean, sign: float = -1, **metrics: Tensor) -> None:
        self.spoil, self.sign, self.metrics, self.plan = spoil, sign, metrics, LearningPlan()

    def loss(self, batch: LossBatch) -> ObjectiveResult:
        ratio = (batch.log_prob_new - batch.log_prob_old).exp()
        return ObjectiveResult(self.spoil((self.sign * batch.advantage * ratio).mean(0)), self.metrics)


def test_a_plain_objective_keeps_every_law() -> None:
    check_objective(Likelihood())


@pytest.mark.parametrize(
    ("objective", "law"),
    [
        (Likelihood(sign=1), "descending favours the better rollout: the worse rollout gains as much or more"),
        (Likelihood(lambda x: x), "the loss is one finite number: "),
        (Likelihood(lambda x: x.mean() / 0), "the loss is one finite number: "),
        (Likelihood(lambda x: x.mean().detach()), "the loss depends on log_prob_new: it carries no gradient"),
        (Likelihood(lambda x: (x * torch.tensor([1.0, 2, 3])).mean()),
         "the order of prompts is no matter: another order gives another loss"),
        (Likelihood(kl=torch.zeros(3)), "metrics are finite numbers: kl is tensor([0., 0., 0.])"),
    ],
)  # fmt: skip
def test_objectives_that_break_a_law(objective: Likelihood, law: str) -> None:
    said = fault(check_objective, objective)
    assert said.startswith(law) if law.endswith(": ") else said == law


def test_a_plan_whose_discount_grows_is_refused() -> None:
    objective = Likelihood()
    objective.plan = LearningPlan(gamma=1.5)
    assert fault(check_objective, objective) == "a discount lies in 0..1: gamma is 1.5"


@pytest.fixture
def model() -> Any:
    return load_registry().model("emoji-turbo").load(LoadContext())


def test_the_embedded_model_keeps_every_law(model: Any) -> None:
    check_base_model(model)


def spoil(model: Any, method: str, function: Callable[[Any], Any]) -> None:
    """Replace a method by the function of its own answer."""
    own = getattr(model, method)
    setattr(model, method, lambda *arguments: function(own(*arguments)))


@pytest.mark.parametrize(
    ("method", "function", "law"),
    [
        ("schedule", lambda s: replace(s, sigma_next=s.sigma), "every step has less noise: sigma is "),
        ("schedule", lambda s: replace(s, alpha=s.alpha * 2), "levels lie in 0..1: alpha or sigma does not"),
        ("schedule", lambda s: replace(s, timestep=s.timestep.flip(0)), "timesteps fall: they are "),
        ("encode", lambda c: {k: v - v.mean(0) for k, v in c.items()},
         "a prompt's conditioning is its own: prompt_embeds differs when it is encoded alone"),
        ("encode", lambda c: {k: v[:1] for k, v in c.items()},
         "axis 0 of the conditioning is the prompt: prompt_embeds has 1 of 2"),
        ("denoise", lambda x: x - x.mean(0), "a clean estimate is its picture's own: step 0 differs when taken alone"),
        ("denoise", lambda x: x.double(),
         "clean estimates are finite float32 latents: at step 0 it gives torch.float64"),
        ("decode", lambda x: x * 2 - 1, "pictures lie in 0..1: they span "),
        ("decode", lambda x: x[:, :1],
         "decoded pictures are finite float32: it gives [2, 1, 64, 64], not [2, 3, 64, 64]"),
        ("trainable", lambda w: {}, "an adapter can be trained: it cannot"),
    ],
)  # fmt: skip
def test_models_that_break_a_law(model: Any, method: str, function: Callable[[Any], Any], law: str) -> None:
    spoil(model, method, function)
    assert fault(check_base_model, model).startswith(law)


def test_an_adapter_that_is_not_saved_whole_is_told(model: Any) -> None:
    model.load_adapter = lambda folder: None
    assert fault(check_base_model, model) == "a saved adapter loads again: the clean estimate differs"


def test_an_adapter_that_changes_pictures_before_training_is_told(model: Any) -> None:
    own = model.add_adapter

    def eager(options: Any) -> None:
        own(options)
        with torch.no_grad():
            for weight in model.trainable().values():
                weight.add_(0.1)

    model.add_adapter = eager
    assert fault(check_base_model, model) == "a fresh adapter changes nothing: the clean estimate differs"
