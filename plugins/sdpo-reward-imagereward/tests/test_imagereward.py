"""ImageReward against its upstream package on random weights, at full size by name, and with bad input."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sdpo_reward_imagereward import WEIGHTS, WORDS, network
from torch import Tensor

from sdpo_cli.api import LoadContext
from sdpo_cli.api.tensors import ScoreRequest
from sdpo_cli.errors import ArtifactError, UsageError
from sdpo_cli.main import main
from sdpo_cli.registry import load_registry
from sdpo_cli.testing import check_reward

MAKER = Path(__file__).with_name("make_imagereward_golden.py")
FETCH = "run `hf download zai-org/ImageReward --revision 5736be03b2652728fb87788c9797b0570450ab72 ImageReward.pt"
FETCH_WORDS = (
    "run `hf download google-bert/bert-base-uncased --revision 86b5e0934494bd15c9632b12f734a8a67f723594 vocab.txt"
)


def maker() -> Any:
    """The module that made the golden: its recipe of weights and pictures is part of it."""
    spec = importlib.util.spec_from_file_location(MAKER.stem, MAKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECIPE = maker()
GOLDEN = json.loads(RECIPE.FILE.read_text())
TINY = {name: torch.from_numpy(value) for name, value in RECIPE.random_weights(GOLDEN["shapes"]).items()}


def picture(size: tuple[int, int]) -> Tensor:
    return torch.from_numpy(RECIPE.picture(*size)).permute(2, 0, 1)[None] / 255


def write_words(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(RECIPE.VOCABULARY) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files as the hub has them, the network tiny."""
    made = tmp_path_factory.mktemp("imagereward")
    torch.save(TINY, made / "ImageReward.pt")
    write_words(made)
    return made


def load(folder: Path, **options: Any) -> Any:
    """The reward as a recipe loads it."""
    return load_registry().reward("imagereward", {"path": str(folder), **options}).load(LoadContext())


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Any:
    """The tiny reward, its options left alone; change nothing."""
    return load(folder)


def scores(reward: Any) -> Tensor:
    """Of the golden's cases, one at a time, for their pictures' sizes differ."""
    return torch.cat([reward.score(ScoreRequest(picture(size), [text])).values for text, size in RECIPE.CASES])


class TestAsUpstream:
    def test_scores_in_float64(self, folder: Path) -> None:
        reward = load(folder)
        reward.network.double()
        assert (scores(reward) - torch.tensor(GOLDEN["scores"], dtype=torch.float64)).abs().max() < 1e-9

    def test_scores_in_float32(self, tiny: Any) -> None:
        assert (scores(tiny) - torch.tensor(GOLDEN["scores"])).abs().max() < 5e-6

    def test_scores_in_float16_are_near(self, folder: Path) -> None:
        difference = (scores(load(folder, dtype="float16")) - torch.tensor(GOLDEN["scores"])).abs().max()
        assert 1e-5 < difference < 5e-3

    @pytest.mark.parametrize("index", range(len(RECIPE.PROMPTS)), ids=[repr(p[:12]) for p in RECIPE.PROMPTS])
    def test_tokens_of_tricky_prompts(self, tiny: Any, index: int) -> None:
        tokens, mask = tiny.tokenise([RECIPE.PROMPTS[index]])
        assert tokens.tolist() == [GOLDEN["tokens"][index]]
        assert mask.tolist() == [GOLDEN["masks"][index]]

    @pytest.mark.parametrize(
        ("tower", "change"),
        [
            (0, {"hidden_act": "quick_gelu"}),
            (1, {"hidden_act": "quick_gelu"}),
            (0, {"layer_norm_eps": 1e-5}),
            (1, {"layer_norm_eps": 1e-5}),
            (0, {"num_attention_heads": 1}),
            (1, {"num_attention_heads": 1}),
        ],
    )
    def test_a_wrong_network_would_be_seen(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, tower: int, change: dict[str, Any]
    ) -> None:
        def wrong(shapes: network.Shapes, right: Callable[..., Any] = network.configurations) -> Any:
            found = right(shapes)
            found[tower].update(change)
            return found

        monkeypatch.setattr(network, "configurations", wrong)
        reward = load(folder)
        reward.network.double()
        assert (scores(reward) - torch.tensor(GOLDEN["scores"], dtype=torch.float64)).abs().max() > 1e-6


class TestFullSize:
    def test_every_upstream_weight_has_its_place(self) -> None:
        shapes = GOLDEN["full_shapes"]
        weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        built = network.build(weights, torch.float32)
        dropped = [name for name in shapes if network.UNUSED.match(name)]
        assert (len(shapes), len(dropped), len(built.state_dict())) == (625, 5, 620)
        assert sum(value.numel() for value in built.state_dict().values()) // 1_000_000 == 446

    def test_the_towers_are_as_trained(self) -> None:
        vision, text = network.configurations(GOLDEN["full_shapes"])
        assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1024, 24, 16)
        assert (vision.intermediate_size, vision.image_size, vision.patch_size) == (4096, 224, 16)
        assert (vision.layer_norm_eps, vision.hidden_act) == (1e-6, "gelu")
        assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (768, 12, 12)
        assert (text.intermediate_size, text.vocab_size, text.max_position_embeddings) == (3072, 30524, 512)
        assert (text.encoder_hidden_size, text.layer_norm_eps, text.hidden_act) == (1024, 1e-12, "gelu")


class TestContract:
    TRICKY = ("a 🐱🌙", "\x00\x07\u202e\ud800", "cat " * 2500, "[SEP] [CLS] [PAD] [ENC]", "", "<|endoftext|>")

    def test_with_tricky_prompts(self, tiny: Any) -> None:
        check_reward(tiny, self.TRICKY)

    def test_through_the_command(self, folder: Path) -> None:
        assert main(["plugins", "check", "imagereward", "--set", f"path={folder}"]) == 0

    @pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (2000, 1500)])
    def test_pictures_of_any_size(self, tiny: Any, size: tuple[int, int]) -> None:
        values = tiny.score(ScoreRequest(torch.rand(2, 3, *size), ["a cat", "a dog"])).values
        assert values.shape == (2,)
        assert values.isfinite().all()

    def test_no_pictures(self, tiny: Any) -> None:
        result = tiny.score(ScoreRequest(torch.zeros(0, 3, 8, 8), []))
        assert (result.values.shape, result.details["raw"].shape) == ((0,), (0,))

    def test_batches_give_the_same(self, folder: Path) -> None:
        request = ScoreRequest(torch.rand(5, 3, 40, 40), ["a cat", "", "a dog", "a cat", "moon"])
        one, five = (load(folder, batch=size).score(request).values for size in (1, 5))
        torch.testing.assert_close(one, five, atol=1e-5, rtol=0)


def test_both_scales_are_told(folder: Path) -> None:
    request = ScoreRequest(picture((32, 32)), ["a cat"])
    standard, raw = (load(folder, scale=scale).score(request) for scale in ("standard", "raw"))
    assert standard.values == raw.details["standard"]
    assert raw.values == standard.details["raw"]
    assert raw.values.item() == pytest.approx(standard.values.item() * 1.0333394966054072 + 0.16717362830052426)


@dataclass
class Listener:
    """A tokenizer that remembers what it was asked."""

    tokenizer: Any
    asked: list[str] = field(default_factory=list)

    def encode_batch(self, texts: list[str]) -> Any:
        self.asked += texts
        return self.tokenizer.encode_batch(texts)


def test_each_distinct_prompt_is_tokenised_once(folder: Path) -> None:
    reward = load(folder)
    reward.tokenizer = listener = Listener(reward.tokenizer)
    prompts = ["a cat", "a dog", "a cat", "a cat"]
    repeated = reward.score(ScoreRequest(torch.rand(4, 3, 8, 8), prompts))
    assert listener.asked == ["a cat", "a dog"]
    assert repeated.values.shape == (4,)


def test_safetensors_give_the_same(tiny: Any, tmp_path: Path) -> None:
    save_file(TINY, tmp_path / "ImageReward.safetensors")
    write_words(tmp_path)
    assert torch.equal(scores(load(tmp_path)), scores(tiny))


class TestFaults:
    def fault(self, folder: Path) -> str:
        with pytest.raises(ArtifactError) as caught:
            load(folder)
        return str(caught.value)

    def test_no_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "none"
        assert self.fault(folder) == (
            f"{folder}: no folder with ImageReward.safetensors or ImageReward.pt; {FETCH} --local-dir {folder}`"
        )

    def test_no_word_list(self, tmp_path: Path) -> None:
        torch.save(TINY, tmp_path / "ImageReward.pt")
        assert self.fault(tmp_path) == f"{tmp_path}: no folder with vocab.txt; {FETCH_WORDS} --local-dir {tmp_path}`"

    @pytest.mark.parametrize("name", ["ImageReward.pt", "ImageReward.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off"])
    def test_damaged_weights(self, tmp_path: Path, name: str, content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        write_words(tmp_path)
        said = self.fault(tmp_path)
        assert said.startswith(f"{tmp_path / name}: cannot be read as weights (")
        assert said.endswith(f"; {FETCH} --local-dir {tmp_path}`")
        assert "\n" not in said

    def test_a_pickle_with_code_is_not_run(self, tmp_path: Path) -> None:
        class Touch:
            def __reduce__(self) -> Any:
                return Path.touch, (tmp_path / "touched",)

        torch.save({"blip": Touch()}, tmp_path / "ImageReward.pt")
        write_words(tmp_path)
        assert "cannot be read as weights (not plain tensors)" in self.fault(tmp_path)
        assert not (tmp_path / "touched").exists()

    @pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {"mlp.layers.0.bias": 1.5}}])
    def test_something_else_than_weights(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "ImageReward.pt")
        write_words(tmp_path)
        said = self.fault(tmp_path)
        assert said.startswith(f"{tmp_path / 'ImageReward.pt'}: ")
        assert said.endswith(f"; {FETCH} --local-dir {tmp_path}`")

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            (
                {"mlp.layers.7.bias": None},
                "with weights 1 missing, as head.7.bias",
            ),
            (
                {"blip.extra": torch.zeros(1), "mlp.layers.7.bias": torch.zeros(2)},
                "with weights 1 unknown, as blip.extra, 1 of another shape, as head.7.bias",
            ),
            (
                {"blip.visual_encoder.pos_embed": None},
                "without 'blip.visual_encoder.pos_embed'",
            ),
            (
                {"blip.visual_encoder.patch_embed.proj.weight": torch.zeros(32, 3, 16, 16)},
                "with weights of sizes that do not go together",
            ),
        ],
    )
    def test_weights_of_something_else(self, tmp_path: Path, change: dict[str, Any], fault: str) -> None:
        weights = {name: value for name, value in {**TINY, **change}.items() if value is not None}
        torch.save(weights, tmp_path / "ImageReward.pt")
        write_words(tmp_path)
        path = tmp_path / "ImageReward.pt"
        assert self.fault(tmp_path) == f"{path}: is no ImageReward: {fault}; {FETCH} --local-dir {tmp_path}`"

    @pytest.mark.parametrize("content", [b"", b"[PAD]\ncat\n", b"\xff\xfe\x00"])
    def test_another_word_list(self, folder: Path, tmp_path: Path, content: bytes) -> None:
        torch.save(TINY, tmp_path / "ImageReward.pt")
        (tmp_path / "vocab.txt").write_bytes(content)
        assert self.fault(tmp_path) == (
            f"{tmp_path / 'vocab.txt'}: is not the list of {len(RECIPE.VOCABULARY)} words that the network knows; "
            f"{FETCH_WORDS} --local-dir {tmp_path}`"
        )


def test_downloads_are_told_and_a_folder_needs_none(folder: Path) -> None:
    registry = load_registry()
    assert tuple(registry.reward("imagereward").needs()) == (WEIGHTS, WORDS)
    assert tuple(registry.reward("imagereward", {"path": str(folder)}).needs()) == ()


def test_without_files_or_hub_one_line_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        load_registry().reward("imagereward").load(LoadContext())
    assert str(caught.value).startswith("zai-org/ImageReward: not on this machine, and the hub cannot be reached (")
    assert FETCH in str(caught.value)
    assert "\n" not in str(caught.value)
