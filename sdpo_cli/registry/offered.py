"""Plug-ins that this project keeps as distributions of their own, so that a recipe can say what to install."""

FLOW_MODELS = (
    "sd3",
    "flux",
    "flux2-klein",
    "sana-sprint",
    "z-image",
    "qwen-image",
    "sd3-5-large-turbo",
    "flux-schnell",
    "flux2-klein-4b",
    "sana-sprint-0-6b",
    "sana-sprint-1-6b",
    "z-image-turbo",
    "qwen-image-lightning-4step",
    "qwen-image-lightning-8step",
)

DISTRIBUTIONS = {
    "pickscore": "sdpo-reward-pickscore",
    "hpsv2": "sdpo-reward-hpsv2",
    "hpsv3": "sdpo-reward-hpsv3",
    "imagereward": "sdpo-reward-imagereward",
    "ocr": "sdpo-reward-ocr",
    "vlm": "sdpo-reward-vlm",
    **dict.fromkeys(FLOW_MODELS, "sdpo-model-flow"),
}
"""Plug-in name -> distribution under plugins/."""


def how_to_install(name: str) -> str:
    """What to run for a plug-in that is one of this project's; empty where it is not."""
    distribution = DISTRIBUTIONS.get(name)
    return (
        f"run `pip install {distribution}`, in a clone `pip install ./plugins/{distribution}`;" if distribution else ""
    )
