"""How the files `clip-*` of this folder were made: by the upstream packages, on tiny random weights.

    pip install torch==2.13.0 torchvision==0.28.0 open-clip-torch==3.3.0 hpsv2==1.2.0
    python tests/golden/make_clip.py

(hpsv2's wheel lacks its vocabulary: copy `bpe_simple_vocab_16e6.txt.gz` from open_clip's folder into its own.)

clip-h, clip-l: an open_clip network with the heads and the activation of ViT-H-14 and of OpenAI's ViT-L/14: its
weights, pixels, tokens and what it makes of them. clip-h-keys: names and shapes of the true ViT-H-14. clip-pictures:
pictures through the preprocessing of hpsv2's package and of torchvision. clip-tokens: prompts through open_clip's
tokenizer.
"""

import json
from pathlib import Path

import torch
from hpsv2.src.open_clip.transform import image_transform as hps_transform
from open_clip import get_model_config, image_transform
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file

HERE = Path(__file__).parent
SIZE, PATCH, VOCABULARY, LENGTH = 28, 14, 512, 77
END = 49407
SHAPES = [(40, 40), (64, 43), (31, 60), (28, 28), (9, 13), (1, 1), (57, 33)]

PROMPTS = [
    "",
    " ",
    "a photo of a cat",
    "A Photo OF a CAT",
    "it’s the artist’s “best” work",
    "it's the artist's \"best\" work, they're sure we've won; I'll go, I'd go, I'm gone",
    "salt &amp; pepper",
    "salt &amp;amp; pepper &lt;3 &#x1F600;",
    "ﬁne ﬂowers, ﬀ",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３",
    "schÃ¶n, donâ€™t, cafÃ©",
    "cafe\u0301 naïve Ångström",
    "caf e&#769; e&#x301;",
    "<|endoftext|>",
    "a cat <|endoftext|> and a dog <|startoftext|>",
    "<b>bold</b> $100 100% 3.14 1,000,000",
    "line one\nline two\r\n\ttab\x0bvertical\x1cseparator\u2028line\u00a0blank\u3000wide",
    "null\x00bell\x07escape\x1b[31mred\x1b[0m delete\x7f",
    "😀 a 👩‍👩‍👧 family 🏳️‍🌈 and 🇩🇪",
    "一只在月球上的猫",
    "ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ",
    "İstanbul ıssız ſtraße ẞ",
    "Привет, МИР! שלום عليكم",
    "zero\u200bwidth\u200djoiner\ufeffmark soft\u00adhyphen",
    "a_b-c+d=e/f\\g|h~i^j`k",
    "…—–‘’“”„‚‹›«»¿¡",
    "½ ² ① Ⅷ ٣ ၃",
    "!!! ??? ...''' '' ' 's 'S ''s",
    "word " * 200,
    "x" * 10_000,
    "😀" * 100,
    "masterpiece, best quality, ((ultra-detailed)), 8k, <lora:style:0.8>, trending on artstation",
]


def network(image_heads: int, text_heads: int, text_width: int, quick_gelu: bool) -> CLIP:
    """A two-layer CLIP whose weights are large enough for a wrong activation or head count to show."""
    vision = CLIPVisionCfg(layers=2, width=32, head_width=32 // image_heads, patch_size=PATCH, image_size=SIZE)
    text = CLIPTextCfg(context_length=LENGTH, vocab_size=VOCABULARY, width=text_width, heads=text_heads, layers=2)
    torch.manual_seed(0)
    clip = CLIP(16, vision, text, quick_gelu=quick_gelu).eval()
    for name, weight in clip.named_parameters():
        if name != "logit_scale":
            weight.data += 0.2 * torch.randn(weight.shape)
    clip.logit_scale.data.fill_(3.0)
    return clip


def keys() -> dict[str, list[int]]:
    """Names and shapes of every weight of ViT-H-14."""
    config = get_model_config("ViT-H-14")
    with torch.device("meta"):
        clip = CLIP(config["embed_dim"], CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"]))
    return {name: list(weight.shape) for name, weight in clip.state_dict().items()}


@torch.no_grad()
def golden(clip: CLIP) -> dict[str, torch.Tensor]:
    """The network and what it makes of four pictures and four token sequences of several lengths."""
    pixels = torch.randn(4, 3, SIZE, SIZE)
    tokens = torch.zeros(4, LENGTH, dtype=torch.long)
    for row, length in enumerate((2, 5, 20, LENGTH)):
        tokens[row, :length] = torch.randint(1, VOCABULARY - 2, (length,))
        tokens[row, 0], tokens[row, length - 1] = VOCABULARY - 2, VOCABULARY - 1
    made = {
        "pixels": pixels,
        "tokens": tokens,
        "image": clip.encode_image(pixels, normalize=True),
        "text": clip.encode_text(tokens, normalize=True),
    }
    return made | {f"weights.{name}": weight.contiguous() for name, weight in clip.state_dict().items()}


def pictures() -> dict[str, torch.Tensor]:
    """Levels, and the pixels that hpsv2's package and OpenAI's preprocessing make of them."""
    generator = torch.Generator().manual_seed(1)
    hps, openai = hps_transform(SIZE, is_train=False, resize_longest_max=True), image_transform(SIZE, is_train=False)
    made = {}
    for number, (height, width) in enumerate(SHAPES):
        levels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(levels.numpy())
        made[f"{number}.levels"] = levels.permute(2, 0, 1).contiguous()
        made[f"{number}.openai"] = openai(picture)
        made[f"{number}.hps"] = hps(picture).contiguous()
    return made


if __name__ == "__main__":
    save_file(golden(network(16, 16, 32, quick_gelu=False)), HERE / "clip-h.safetensors")
    save_file(golden(network(16, 12, 24, quick_gelu=True)), HERE / "clip-l.safetensors")
    save_file(pictures(), HERE / "clip-pictures.safetensors")
    (HERE / "clip-h-keys.json").write_text(json.dumps(keys(), indent=0) + "\n")
    rows = [
        {"prompt": prompt, "tokens": row[: row.index(END) + 1]}
        for prompt, row in zip(PROMPTS, SimpleTokenizer()(PROMPTS).tolist(), strict=True)
    ]
    (HERE / "clip-tokens.json").write_text(json.dumps(rows, indent=0) + "\n")
