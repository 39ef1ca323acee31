"""Plug-ins that this project keeps as distributions of their own, so that a recipe can say what to install."""

DISTRIBUTIONS = {
    "pickscore": "sdpo-reward-pickscore",
    "hpsv2": "sdpo-reward-hpsv2",
    "hpsv3": "sdpo-reward-hpsv3",
    "imagereward": "sdpo-reward-imagereward",
    "ocr": "sdpo-reward-ocr",
    "vlm": "sdpo-reward-vlm",
}
"""Plug-in name -> distribution under plugins/."""


def how_to_install(name: str) -> str:
    """What to run for a plug-in that is one of this project's; empty where it is not."""
    distribution = DISTRIBUTIONS.get(name)
    return (
        f"run `pip install {distribution}`, in a clone `pip install ./plugins/{distribution}`;" if distribution else ""
    )
