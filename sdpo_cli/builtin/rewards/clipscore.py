"""CLIPScore: the cosine of picture and prompt by CLIP, in the scale of whoever it is compared with.

Source: Hessel et al., CLIPScore, arXiv 2104.08718.
"""

from sdpo_cli.api.clip import ClipReward, ClipSource, image_tower, text_tower


def clipscore(source: ClipSource, scale: str) -> ClipReward:
    """The reward by the CLIP of `source`.

    Args:
        scale: `cos`; `logit`: exp(logit_scale) cos; `paper`: 2.5 max(cos, 0); `percent`: 100 max(cos, 0).
    """
    images, text = image_tower(source), text_tower(source)
    scales = {
        "cos": lambda cos: cos,
        "logit": lambda cos: text.logit_scale * cos,
        "paper": lambda cos: 2.5 * cos.clamp(min=0),
        "percent": lambda cos: 100 * cos.clamp(min=0),
    }
    return ClipReward(images, text, scales[scale])
