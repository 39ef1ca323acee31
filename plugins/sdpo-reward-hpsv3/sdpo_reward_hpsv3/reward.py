"""HPSv3 as a reward: pictures and prompts in, preferences out."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sdpo_cli.api.checkpoints import Located, locate
from sdpo_cli.api.lora import first_line
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_reward_hpsv3 import WEIGHTS, WORDS, Hpsv3Options
from sdpo_reward_hpsv3.network import UNUSED, Network, empty_network, fill
from sdpo_reward_hpsv3.pictures import PATCH, patches, sized
from sdpo_reward_hpsv3.texts import Question, Questioner


class Hpsv3:
    """The network with its tokenizer.

    Args:
        batch: pictures that go through the network at once.
    """

    def __init__(self, network: Network, questioner: Questioner, batch: int) -> None:
        self.network, self.questioner, self.batch = network, questioner, batch
        self.device = network.head[0].weight.device

    @torch.no_grad()
    def score(self, request: ScoreRequest) -> ScoreResult:
        """One mean preference a picture; the detail `sigma` is its standard deviation, as the model guesses it."""
        questions = self.questioner.ask(request.prompts)
        parts = [torch.zeros(0, 2, device=self.device)]
        for start in range(0, len(questions), self.batch):
            part = slice(start, start + self.batch)
            parts.append(self.answer(request.images[part], questions[part]))
        mean, log_sigma = torch.cat(parts).unbind(dim=1)
        return ScoreResult(mean, {"sigma": log_sigma.exp()})

    def answer(self, images: Float[Tensor, "B 3 H W"], questions: Sequence[Question]) -> Float[Tensor, "B 2"]:
        """Mean and logarithm of the deviation."""
        levels = sized(images.to(self.device))
        grid = torch.tensor([[1, levels.shape[2] // PATCH, levels.shape[3] // PATCH]] * len(images))
        after = [torch.tensor(question.after) for question in questions]
        lengths = torch.tensor([len(tokens) for tokens in after])
        before = torch.tensor(questions[0].before)
        words = (before, pad_sequence(after, batch_first=True), lengths)
        return self.network(patches(levels), *(one.to(self.device) for one in (grid, *words)))


def load_reward(options: Hpsv3Options, device: str) -> Hpsv3:
    """The reward on `device`. ArtifactError where files are missing or are not HPSv3's."""
    weights, words = locate(options.path, WEIGHTS), locate(options.path, WORDS)
    try:
        questioner = Questioner(words.path)
    except ValueError as error:
        raise words.wrong(str(error)) from error
    network = load_network(weights, getattr(torch, options.dtype), device)
    known = network.body.config.text_config.vocab_size
    if questioner.reward >= known:
        raise words.wrong(f"has {questioner.reward} words, the network knows {known}, one of which is its own")
    return Hpsv3(network, questioner, options.batch)


def load_network(file: Located, dtype: torch.dtype, device: str) -> Network:
    """The network on `device`; names and shapes are checked before any weight is read."""
    try:
        with safe_open(file.path, framework="pt", device=device) as opened:
            names = [name for name in opened.keys() if not name.startswith(UNUSED)]  # noqa: SIM118
            network = empty_network({name: opened.get_slice(name).get_shape() for name in names})
            fill(network, {name: opened.get_tensor(name) for name in names}, dtype)
    except (OSError, SafetensorError) as error:
        raise file.wrong(f"cannot be read as weights ({first_line(error)})") from error
    except ValueError as error:
        raise file.wrong(f"is no HPSv3: {error}") from error
    return network.to(device)
