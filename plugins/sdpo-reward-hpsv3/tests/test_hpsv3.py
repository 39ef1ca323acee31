"""HPSv3 against its upstream classes on random weights, at full size by name, and with bad input."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sdpo_reward_hpsv3 import WEIGHTS, WORDS, network
from sdpo_reward_hpsv3.pictures import AREA, UNIT, patches, target_size
from torch import Tensor

from sdpo_cli.api import LoadContext, UsageError
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.errors import ArtifactError
from sdpo_cli.main import main
from sdpo_cli.registry import load_registry

MAKER = Path(__file__).with_name("make_hpsv3_golden.py")
FETCH = "run `hf download MizzenAI/HPSv3 --revision 4f81e3e09edd82fe3c5f636444c721b592a735ca HPSv3.safetensors"
FETCH_WORDS = (
    "run `hf download Qwen/Qwen2-VL-7B-Instruct --revision eed13092ef92e448dd6875b2a00151bd3f7db0ac tokenizer.json"
)


def maker() -> Any:
    """The module that made the golden: its recipe of weights, words and pictures is part of it."""
    spec = importlib.util.spec_from_file_location(MAKER.stem, MAKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECIPE = maker()
GOLDEN = json.loads(RECIPE.FILE.read_text())
TINY = {name: torch.from_numpy(value) for name, value in RECIPE.random_weights(GOLDEN["shapes"]).items()}
CASES = [one for case in RECIPE.CASES for one in case]
SCORES = torch.tensor([one for case in GOLDEN["scores"] for one in case])


def write_words(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(RECIPE.tokenizer_json(GOLDEN["merges"]), encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files as the hub has them, the network tiny."""
    made = tmp_path_factory.mktemp("hpsv3")
    save_file(TINY, made / "HPSv3.safetensors")
    write_words(made)
    return made


def load(folder: Path, **options: Any) -> Any:
    """The reward as a recipe loads it."""
    return load_registry().reward("hpsv3", {"path": str(folder), **options}).load(LoadContext())


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Any:
    """The tiny reward in float32; change nothing."""
    return load(folder, dtype="float32")


def score(reward: Any, text: str, size: tuple[int, int]) -> ScoreResult:
    levels = torch.from_numpy(RECIPE.picture(*size)).permute(2, 0, 1)[None]
    return reward.score(ScoreRequest(levels / 255, [text]))


def difference(reward: Any, count: int = len(CASES)) -> float:
    """Largest difference from upstream's mean and logarithm of the deviation, over the first cases."""
    results = [score(reward, *case) for case in CASES[:count]]
    found = torch.stack([torch.cat([one.values, one.details["sigma"].log()]) for one in results])
    return (found - SCORES[:count]).abs().max().item()


class TestAsUpstream:
    def test_scores_in_float32(self, tiny: Any) -> None:
        assert difference(tiny) < 1e-5

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_shorter_floats_are_near(self, folder: Path, dtype: str) -> None:
        assert 1e-4 < difference(load(folder, dtype=dtype), 2) < 5e-2

    @pytest.mark.parametrize("index", range(len(RECIPE.PROMPTS)), ids=[repr(p[:12]) for p in RECIPE.PROMPTS])
    def test_tokens(self, tiny: Any, index: int) -> None:
        (question,) = tiny.questioner.ask([RECIPE.PROMPTS[index]])
        ours, upstream = question.before + question.after, GOLDEN["tokens"][index]
        assert ours == upstream[: len(ours)]
        assert tiny.questioner.reward not in upstream[len(ours) :]

    @pytest.mark.parametrize(
        ("part", "change"),
        [
            ("vision_config", {"hidden_act": "gelu"}),
            ("vision_config", {"num_heads": 1}),
            ("text_config", {"rms_norm_eps": 1e-5}),
            ("text_config", {"hidden_act": "gelu"}),
            ("text_config", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
        ],
    )
    def test_a_wrong_network_would_be_seen(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, part: str, change: dict[str, Any]
    ) -> None:
        def wrong(shapes: network.Shapes, right: Callable[..., Any] = network.configuration) -> Any:
            found = right(shapes)
            getattr(found, part).update(change)
            return found

        monkeypatch.setattr(network, "configuration", wrong)
        assert difference(load(folder, dtype="float32"), 2) > 2e-5

    def test_positions_by_rows_and_columns_would_be_seen(self, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        first, side = len(tiny.questioner.before), 16

        def by_rows_and_columns(count: int, length: int) -> Tensor:
            grid = torch.cartesian_prod(torch.arange(1), torch.arange(side), torch.arange(side)).T
            rest = torch.arange(length - first - side * side).expand(3, -1) + first + side
            places = torch.cat([torch.arange(first).expand(3, -1), grid + first, rest], dim=1)
            return places[:, None].expand(3, count, length)

        monkeypatch.setattr(network, "positions", by_rows_and_columns)
        assert difference(tiny, 2) > 1e-2


class TestFullSize:
    def test_every_upstream_weight_has_its_place(self) -> None:
        shapes = GOLDEN["full_shapes"]
        built = network.empty_network(shapes)
        assert (len(shapes), len(built.state_dict())) == (736, 735)
        assert [name for name in shapes if name.startswith(network.UNUSED)] == ["lm_head.weight"]
        assert all(value.device.type == "meta" for value in built.state_dict().values())

    def test_the_network_is_as_trained(self) -> None:
        config = network.configuration(GOLDEN["full_shapes"])
        text, vision = config.text_config, config.vision_config
        assert (text.vocab_size, text.hidden_size, text.intermediate_size) == (151658, 3584, 18944)
        assert (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) == (28, 28, 4)
        assert (text.rms_norm_eps, text.hidden_act, text.rope_parameters["rope_theta"]) == (1e-6, "silu", 1e6)
        assert (vision.depth, vision.embed_dim, vision.num_heads, vision.mlp_ratio) == (32, 1280, 16, 4)
        assert (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size) == (14, 2, 2)
        assert vision.hidden_act == "quick_gelu"


class TestPictures:
    @pytest.mark.parametrize(
        ("size", "target"),
        [
            ((512, 512), (448, 448)),  # 18 x 18 units are too many: 512 / 1.143 = 448.0
            ((448, 448), (448, 448)),
            ((1, 1), (448, 448)),
            ((768, 1344), (336, 588)),  # / 2.268: 12.09 and 21.17 units, down
            ((100, 150), (392, 560)),  # * 3.658: 13.06 and 19.6 units, up
            ((1, 200), (56, 6356)),  # * 31.68: 1.13 and 226.3 units, up
            ((224, 896), (224, 896)),  # 8 x 32 units: the area itself
        ],
    )
    def test_target_size(self, size: tuple[int, int], target: tuple[int, int]) -> None:
        assert target_size(*size) == target
        assert target_size(*size[::-1]) == target[::-1]
        assert AREA == 16 * 16 * UNIT * UNIT

    def test_a_strip(self) -> None:
        with pytest.raises(UsageError) as caught:
            target_size(1, 201)
        assert str(caught.value) == (
            "reward hpsv3: a picture of 201 x 1 pixels is longer than 200 times its width; leave it out or cut it"
        )

    def test_the_four_patches_of_a_token_follow_each_other(self) -> None:
        levels = torch.zeros(2, 3, 28, 56, dtype=torch.uint8)
        levels[1, 2, 14:, 28:42] = 255  # lower left patch of the second token, blue
        found = patches(levels).reshape(2, 2, 4, 3, 2, 14 * 14)
        bright = found > 0
        assert bright[1, 1, 2, 2].all()
        assert bright.sum() == 2 * 14 * 14


class TestContract:
    def test_tricky_prompts(self, tiny: Any) -> None:
        tricky = ["a 🐱\x00\x07\ud800", "<|Reward|> <|im_end|>\n<|image_pad|><|endoftext|>", ""]
        values = tiny.score(ScoreRequest(torch.rand(1, 3, 28, 28).expand(3, -1, -1, -1), tricky)).values
        assert values.isfinite().all()
        assert len(set(values.tolist())) == 3

    def test_through_the_command(self, folder: Path) -> None:
        assert main(["plugins", "check", "hpsv3", "--set", f"path={folder}", "--set", "dtype=float32"]) == 0

    def test_in_bfloat16_a_score_is_still_a_picture_s_own(self, folder: Path) -> None:
        reward, prompts = load(folder), ["a cat", "a much longer prompt"]
        images = torch.rand(2, 3, 28, 28)
        together = reward.score(ScoreRequest(images, prompts)).values
        alone = reward.score(ScoreRequest(images[1:], prompts[1:])).values
        assert torch.equal(together[1:], alone)

    def test_a_prompt_of_10_000_characters(self, tiny: Any) -> None:
        long, short = (score(tiny, "cat " * count, (28, 28)).values for count in (2500, 2))
        assert long.isfinite().all()
        assert long != short

    def test_special_words_in_a_prompt_are_plain_text(self, tiny: Any) -> None:
        (question,) = tiny.questioner.ask(["<|Reward|><|im_end|><|vision_start|>"])
        special = {tiny.questioner.tokenizer.token_to_id(word) for word in RECIPE.SPECIAL}
        assert special.intersection(question.after) == {question.after[0]}
        assert question.after.count(tiny.questioner.reward) == 1

    def test_no_pictures(self, tiny: Any) -> None:
        result = tiny.score(ScoreRequest(torch.zeros(0, 3, 8, 8), []))
        assert (result.values.shape, result.details["sigma"].shape) == ((0,), (0,))

    def test_padding_on_the_right_changes_nothing(self, folder: Path, tiny: Any) -> None:
        request = ScoreRequest(torch.rand(3, 3, 28, 28), ["a cat", "a very much longer prompt than that", ""])
        batched = load(folder, dtype="float32", batch=3).score(request)
        torch.testing.assert_close(batched.values, tiny.score(request).values, atol=1e-5, rtol=0)

    def test_each_distinct_prompt_is_worked_on_once(self, tiny: Any) -> None:
        first, second, third = tiny.questioner.ask(["a cat", "a dog", "a cat"])
        assert first is third
        assert first.after != second.after


class TestFaults:
    def fault(self, folder: Path) -> str:
        with pytest.raises(ArtifactError) as caught:
            load(folder)
        return str(caught.value)

    def test_no_folder(self, tmp_path: Path) -> None:
        folder = tmp_path / "none"
        assert self.fault(folder) == f"{folder}: no folder with HPSv3.safetensors; {FETCH} --local-dir {folder}`"

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        save_file(TINY, tmp_path / "HPSv3.safetensors")
        said = f"{tmp_path}: no folder with tokenizer.json; {FETCH_WORDS} --local-dir {tmp_path}`"
        assert self.fault(tmp_path) == said

    @pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x08\0\0\0\0\0\0\0{}      "])
    def test_damaged_weights(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "HPSv3.safetensors").write_bytes(content)
        write_words(tmp_path)
        said = self.fault(tmp_path)
        assert said.startswith(f"{tmp_path / 'HPSv3.safetensors'}: ")
        assert said.endswith(f"; {FETCH} --local-dir {tmp_path}`")
        assert "\n" not in said

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            ({"rm_head.5.bias": None}, "with weights 1 missing, as head.5.bias"),
            (
                {"extra": torch.zeros(1), "rm_head.5.bias": torch.zeros(3)},
                "with weights 1 unknown, as extra, 1 of another shape, as head.5.bias",
            ),
            ({"model.embed_tokens.weight": None}, "without 'model.embed_tokens.weight'"),
            ({"visual.patch_embed.proj.weight": torch.zeros(8)}, "with weights of sizes that do not go together"),
        ],
    )
    def test_weights_of_something_else(self, tmp_path: Path, change: dict[str, Any], fault: str) -> None:
        path = tmp_path / "HPSv3.safetensors"
        save_file({name: value for name, value in {**TINY, **change}.items() if value is not None}, path)
        write_words(tmp_path)
        assert self.fault(tmp_path) == f"{path}: is no HPSv3: {fault}; {FETCH} --local-dir {tmp_path}`"

    @pytest.mark.parametrize("content", ["", "{}", "not JSON"])
    def test_damaged_tokenizer(self, folder: Path, tmp_path: Path, content: str) -> None:
        (tmp_path / "HPSv3.safetensors").symlink_to(folder / "HPSv3.safetensors")
        (tmp_path / "tokenizer.json").write_text(content)
        said = self.fault(tmp_path)
        assert said.startswith(f"{tmp_path / 'tokenizer.json'}: cannot be read as a tokenizer (")
        assert said.endswith(f"; {FETCH_WORDS} --local-dir {tmp_path}`")

    def test_tokenizer_of_another_model(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "HPSv3.safetensors").symlink_to(folder / "HPSv3.safetensors")
        other = json.loads(RECIPE.tokenizer_json(GOLDEN["merges"]))
        others = other["added_tokens"]
        other["added_tokens"] = [word for word in others if word["content"] != "<|vision_end|>"]
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(other))
        assert self.fault(tmp_path) == f"{path}: has no <|vision_end|>; {FETCH_WORDS} --local-dir {tmp_path}`"
        further = {**others[-1], "id": others[-1]["id"] + 1, "content": "<|further|>"}
        path.write_text(json.dumps({**other, "added_tokens": [*others, further]}))
        known = GOLDEN["shapes"]["model.embed_tokens.weight"][0]
        fault = f"has {known} words, the network knows {known}, one of which is its own"
        assert self.fault(tmp_path) == f"{path}: {fault}; {FETCH_WORDS} --local-dir {tmp_path}`"


def test_downloads_are_told_and_a_folder_needs_none(folder: Path) -> None:
    registry = load_registry()
    assert tuple(registry.reward("hpsv3").needs()) == (WEIGHTS, WORDS)
    assert tuple(registry.reward("hpsv3", {"path": str(folder)}).needs()) == ()


def test_without_files_or_hub_one_line_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        load_registry().reward("hpsv3").load(LoadContext())
    assert str(caught.value).startswith("MizzenAI/HPSv3: not on this machine, and the hub cannot be reached (")
    assert FETCH in str(caught.value)
    assert "\n" not in str(caught.value)
