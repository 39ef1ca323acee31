"""Write `hpsv3_golden.json` with the upstream classes, and the random weights, words and pictures it is about.

The tests need only this file and the JSON. To make the JSON again, in an environment of its own (Python 3.11):

    pip install torch==2.13.0 torchvision==0.28.0 transformers==4.45.2 "numpy<2" pillow requests
    pip install --no-deps hpsv3==1.0.0
    python make_hpsv3_golden.py

Upstream's modules import far more than scoring needs, so its classes are taken out of their files and run alone.
"""

import ast
import importlib.util
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("hpsv3_golden.json")
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
PROMPTS = [
    "a red cat",
    "",
    " leading and trailing ",
    "A {brace} and {text_prompt}\nnew line\ttab\x00\x07",
    "Cafe\u0301 猫 🐱👩‍🚀 ﬁne",
    "the end.\n\n\n",
    "don't 1,234.50% $9 e=mc^2 &amp; <b>",
]
CASES = [[("a red cat", (64, 64)), ("the moon, a dog and the cat in the sea", (448, 448))], [("", (37, 90))]]
CASES += [[("a cat.\n", (1, 1))], [("the cat", (300, 200))], [("🐱" * 20, (30, 500))]]
"""Each list is one batch of upstream's."""


def tokenizer_json(merges: list[list[str]]) -> str:
    """A `tokenizer.json` like Qwen2's: bytes, the given merges, special words. Prompts lose nothing in it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys("".join(pair) for pair in merges)]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    return with_parts(Tokenizer(models.BPE(numbers, [tuple(pair) for pair in merges]))).to_str()


def learnt_merges(text: str) -> list[list[str]]:
    """Merges that make most words of a text one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = with_parts(Tokenizer(models.BPE()))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet))
    return json.loads(tokenizer.to_str())["model"]["merges"]


def with_parts(tokenizer):
    """The tokenizer with all but its words."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def random_weights(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 weights by name, the same on every machine and NumPy version."""
    stream = np.random.RandomState(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        values = stream.standard_normal(shape)
        if len(shape) > 1 and "embed_tokens" not in name:
            values = values / math.sqrt(math.prod(shape[1:]))
        else:
            norm = name.endswith("weight") and ("norm" in name or "ln_q" in name)
            values = 0.2 * values + norm
        weights[name] = values.astype(np.float32)
    return weights


def picture(height: int, width: int) -> np.ndarray:
    """Levels [H, W, 3]: a coarse pattern with noise, the same on every machine."""
    stream = np.random.RandomState(height * 1000 + width)
    coarse = stream.randint(0, 200, (height // 8 + 1, width // 8 + 1, 3))
    fine = stream.randint(0, 56, (height, width, 3))
    return (coarse.repeat(8, 0).repeat(8, 1)[:height, :width] + fine).astype(np.uint8)


CHAT = (
    "{% for message in messages %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
"""What Qwen2-VL's chat template makes of one message with a picture."""


def taken(path: Path, names: set[str], known: dict) -> None:
    """Run only the assignments, classes and functions `names` of a file, in the names `known`."""
    tree = ast.parse(path.read_text())

    def wanted(node: ast.stmt) -> bool:
        targets = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        return getattr(node, "name", None) in names or bool(names & set(targets))

    tree.body = [node for node in tree.body if wanted(node)]
    exec(compile(tree, str(path), "exec"), known)


def upstream() -> tuple[type, type, str]:
    """Upstream's network, the class that prepares its inputs, and its instruction."""
    import torch

    sys.modules["torchvision._meta_registrations"] = types.ModuleType("unused")  # wants the compiled operators
    from transformers import Qwen2VLForConditionalGeneration

    root = Path(importlib.util.find_spec("hpsv3").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("vision_utils", root / "dataset/utils.py")
    vision_utils = importlib.util.module_from_spec(spec)
    sys.modules["vision_utils"] = vision_utils
    spec.loader.exec_module(vision_utils)
    known = {"torch": torch, "nn": torch.nn, "Qwen2VLForConditionalGeneration": Qwen2VLForConditionalGeneration}
    known |= {"List": list, "Optional": typing.Optional, "Mapping": Mapping}
    known["process_vision_info"] = vision_utils.process_vision_info
    texts = {"INSTRUCTION", "prompt_with_special_token", "prompt_without_special_token"}
    taken(root / "dataset/data_collator_qwen.py", texts, known)
    taken(root / "model/qwen2vl_trainer.py", {"Qwen2VLRewardModelBT"}, known)
    taken(root / "inference.py", {"HPSv3RewardInferencer"}, known)
    return known["Qwen2VLRewardModelBT"], known["HPSv3RewardInferencer"], known["INSTRUCTION"]


def config(words: int, image_pad: int, pad: int, vision: dict, **sizes):
    """The configuration of Qwen2-VL-7B-Instruct, or of a smaller one."""
    from transformers import Qwen2VLConfig

    rope = {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1e6}
    fixed = {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "tie_word_embeddings": False, **rope}
    ids = {"image_token_id": image_pad, "video_token_id": words, "pad_token_id": pad}
    fixed_vision = {"mlp_ratio": 4, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
    return Qwen2VLConfig(
        vocab_size=words, use_cache=False, vision_config={**fixed_vision, **vision}, **ids, **fixed, **sizes
    )


def main():
    import torch

    network, inferencer, instruction = upstream()
    from PIL import Image
    from tokenizers import Tokenizer
    from transformers import Qwen2TokenizerFast, Qwen2VLImageProcessor, Qwen2VLProcessor

    merges = learnt_merges(instruction)
    fast = Tokenizer.from_str(tokenizer_json(merges))
    tokenizer = Qwen2TokenizerFast(tokenizer_object=fast, pad_token="<|endoftext|>", padding_side="right")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    reward_id = tokenizer.convert_tokens_to_ids("<|Reward|>")
    limits = {"min_pixels": 3136, "max_pixels": 12845056}
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(**limits), tokenizer, chat_template=CHAT)

    head = {"output_dim": 2, "special_token_ids": [reward_id], "rm_head_type": "ranknet"}
    tall = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 3584}
    sizes = {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4}
    with torch.device("meta"):
        full = network(config(151658, 151655, 151643, tall, intermediate_size=18944, **sizes), **head).state_dict()

    small = {"depth": 1, "embed_dim": 160, "num_heads": 2, "hidden_size": 256}
    sizes = {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    ids = [tokenizer.convert_tokens_to_ids(word) for word in ("<|image_pad|>", "<|endoftext|>")]
    tiny = network(config(len(tokenizer), *ids, small, intermediate_size=320, **sizes), **head)
    shapes = {name: list(value.shape) for name, value in tiny.state_dict().items()}
    tiny.load_state_dict({name: torch.from_numpy(value) for name, value in random_weights(shapes).items()})

    scorer = inferencer.__new__(inferencer)
    scorer.model, scorer.processor, scorer.device = tiny.eval(), processor, "cpu"
    scorer.use_special_tokens = True
    prepared = [scorer.prepare_batch([Image.fromarray(picture(28, 28))], [text]) for text in PROMPTS]
    with torch.no_grad():
        scores = [
            scorer.reward([Image.fromarray(picture(*size)) for _, size in case], [text for text, _ in case])
            for case in CASES
        ]
    golden = {
        "merges": merges,
        "tokens": [[one for one in batch["input_ids"][0].tolist() if one != ids[0]] for batch in prepared],
        "scores": [case.tolist() for case in scores],
        "shapes": shapes,
        "full_shapes": {name: list(value.shape) for name, value in full.items()},
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    FILE.write_text("{\n" + lines + "\n}\n")
    print(len(full), "keys at full size;", golden["scores"], len(golden["tokens"][0]))


if __name__ == "__main__":
    main()
