"""Write `imagereward_golden.json` with the upstream package, and the random weights and pictures it is about.

The tests need only this file and the JSON. To make the JSON again, in an environment of its own (Python 3.11):

    pip install torch==2.13.0 torchvision==0.28.0 transformers==4.30.2 timm==0.6.13 fairscale==0.4.13 "numpy<2" pillow
    pip install --no-deps image-reward==1.5
    python make_imagereward_golden.py

Upstream's `__init__` imports more than is installed, so its modules are imported past it.
"""

import importlib
import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("imagereward_golden.json")
WORDS = [
    "cat",
    "dog",
    "red",
    "moon",
    "a",
    "the",
    "on",
    "of",
    "un",
    "##happy",
    "##ing",
    "sit",
    "##s",
    "##'",
    "cafe",
    "i",
]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789ßøıʼ²ßαω"
SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~’“”…—£°猫狗ー🐱"
VOCABULARY = list(
    dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS), *SIGNS]
    )
)
PROMPTS = [
    "a red cat",
    "",
    " ",
    "The CAT sits, unhappy; on the moon!",
    "cat " * 60,
    "x" * 101,
    "y" * 10_000,
    "a 🐱 on the moon 🌙👩‍🚀",
    "Café CAFÉ cafe\u0301",
    "İstanbul ISTANBUL ıI ŞŁØ",
    "straße ẞ ﬁne ①²½",
    "dog\u2019s \u201cmoon\u201d \u2026 \u2014 'cat'",
    "tab\tnew\nline\r\nzero\x00bell\x07del\x7f\u200b\u200d\ufeff\ufffd",
    "non\u00a0breaking\u3000space\u2028line",
    "猫と狗 cat猫dog",
    "한국어 العربية हिन्दी ไทย",
    "[SEP] cat [CLS] [MASK] [PAD] [UNK]",
    "cat[SEP]dog [sep] [ SEP ]",
    "[DEC] red [ENC] cat",
    "un##happy ##ing ## #cat",
    "a_b-c.d,e/f\\g|h~i",
    "1,234.50% $9.99 3x4",
    "e=mc^2 <b>cat</b> &amp; {moon}",
    "Ａ ｆｕｌｌ ｗｉｄｔｈ ｃａｔ",
    "don't can't y'all 'tis",
    "ΑΩ αω Σίσυφος",
    "\u202eright to left\u202c a\u0301\u0327b",
]
CASES = [("a red cat", (32, 32)), ("a red cat", (50, 50)), ("the dog on the moon", (32, 43)), ("", (65, 40))]
CASES += [("[SEP] cat [ENC]", (20, 27)), ("cat " * 60, (100, 64)), ("unhappy moon", (1, 1))]


def random_weights(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 weights by name, the same on every machine and NumPy version; integers count up."""
    stream = np.random.RandomState(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        values = stream.standard_normal(shape)
        if name.endswith("position_ids"):
            weights[name] = np.arange(shape[-1], dtype=np.int64)[None]
        elif len(shape) > 1 and "embed" not in name:
            weights[name] = (values / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        else:
            weights[name] = (0.2 * values + ("norm" in name.lower() and name.endswith("weight"))).astype(np.float32)
    return weights


def picture(height: int, width: int) -> np.ndarray:
    """Levels [H, W, 3]: a coarse pattern with noise, the same on every machine."""
    stream = np.random.RandomState(height * 1000 + width)
    coarse = stream.randint(0, 200, (height // 8 + 1, width // 8 + 1, 3))
    fine = stream.randint(0, 56, (height, width, 3))
    return (coarse.repeat(8, 0).repeat(8, 1)[:height, :width] + fine).astype(np.uint8)


def upstream():
    """Upstream's modules `ImageReward.ImageReward` and `ImageReward.models.BLIP.blip_pretrain`."""
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("unused")  # wants the compiled operators
    root = Path(importlib.util.find_spec("ImageReward").submodule_search_locations[0])
    for name in ("ImageReward", "ImageReward.models"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    blip = importlib.import_module("ImageReward.models.BLIP.blip_pretrain")
    return importlib.import_module("ImageReward.ImageReward"), blip


def text_config(folder: Path, **sizes: int) -> str:
    """A `med_config.json` of BLIP's text encoder."""
    fixed = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "add_cross_attention": True, "pad_token_id": 0}
    dropout = {"attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1}
    path = folder / "med_config.json"
    path.write_text(json.dumps({"model_type": "bert", "type_vocab_size": 2, **fixed, **dropout, **sizes}))
    return str(path)


def main():
    import torch
    from PIL import Image
    from transformers import BertTokenizer

    reward, blip = upstream()
    folder = Path(tempfile.mkdtemp())
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    local = types.SimpleNamespace(from_pretrained=lambda name: BertTokenizer.from_pretrained(str(folder)))
    sys.modules["ImageReward.models.BLIP.blip"].BertTokenizer = local

    sizes = {"vocab_size": 30524, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    full_config = text_config(folder, **sizes, intermediate_size=3072, max_position_embeddings=512)
    full = reward.ImageReward(full_config).state_dict()

    tower = sys.modules["ImageReward.models.BLIP.vit"].VisionTransformer
    tiny_tower = tower(img_size=32, patch_size=16, embed_dim=128, depth=2, num_heads=2, drop_path_rate=0.1)
    blip.create_vit = lambda *ignored: (tiny_tower, 128)
    head, transform = reward.MLP, reward._transform
    reward.MLP, reward._transform = lambda width: head(128), lambda side: transform(32)
    sizes = {"vocab_size": len(VOCABULARY) + 2, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    tiny = reward.ImageReward(text_config(folder, **sizes, intermediate_size=256, max_position_embeddings=40))
    shapes = {name: list(value.shape) for name, value in tiny.state_dict().items()}
    tiny.load_state_dict({name: torch.from_numpy(value) for name, value in random_weights(shapes).items()})
    tiny.eval().double()
    limits = {"padding": "max_length", "truncation": True, "max_length": 35}

    def score(text, image):
        """Upstream's own network in float64, where the order of summation is no matter."""
        tokens = tiny.blip.tokenizer(text, **limits, return_tensors="pt")
        pixels = tiny.preprocess(Image.fromarray(image))[None].double()
        return tiny.score_gard(tokens.input_ids, tokens.attention_mask, pixels).item()

    encoded = [tiny.blip.tokenizer(text, **limits) for text in PROMPTS]
    golden = {
        "tokens": [one.input_ids for one in encoded],
        "masks": [one.attention_mask for one in encoded],
        "scores": [score(text, picture(*size)) for text, size in CASES],
        "shapes": shapes,
        "full_shapes": {name: list(value.shape) for name, value in full.items()},
    }
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in golden.items())
    FILE.write_text("{\n" + lines + "\n}\n")
    print(len(full), "keys at full size;", golden["scores"])


if __name__ == "__main__":
    main()
