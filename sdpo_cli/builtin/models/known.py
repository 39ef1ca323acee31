"""Known checkpoints: where they are and how their authors draw with them. Imports no torch.

A revision is the commit that public code names for the checkpoint; none was found for the network of `lcm-sdxl`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SD15 = {
    "path": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "revision": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
}
SDXL = {
    "path": "stabilityai/stable-diffusion-xl-base-1.0",
    "revision": "462165984030d82259a11f4367a4eed129e94a7b",
}
LIGHTNING = "ByteDance/SDXL-Lightning@c9a24f48e1c025556787b0c58dd67a091ece2e44"
HYPER = "ByteDance/Hyper-SD@1a091a0ba26e5639d083c6377ba4f2bed5115ccc"
TRAILING_EULER = {"scheduler": "euler", "timestep_spacing": "trailing"}
TRAILING_DDIM = {"scheduler": "ddim", "timestep_spacing": "trailing"}
STABILITY, OPENRAIL, OPENRAIL_XL = (
    "Stability AI Community License",
    "CreativeML Open RAIL-M",
    "CreativeML Open RAIL++-M",
)


@dataclass(frozen=True)
class Known:
    """A row of the table.

    Attributes:
        name: what recipes call it.
        xl: whether it is an SDXL UNet.
        options: what is set for it; anything else is as in `UNetOptions`, and a recipe may change all of it.
        steps: step counts it was made for.
        schedule: how its authors draw.
        guidance: what its authors use.
        size: height and width of its pictures.
        licence: of its weights.
        distilled: whether guidance went into the weights, so that none can be added.
    """

    name: str
    xl: bool
    options: Mapping[str, Any] = field(hash=False)
    steps: str
    schedule: str
    guidance: str
    size: int
    licence: str
    distilled: bool = True

    @property
    def weights(self) -> str:
        """What distinguishes it from other rows: its LoRA, its denoiser or its repository."""
        weights: str = self.options.get("base_lora") or self.options.get("denoiser") or self.options["path"]
        return weights

    @property
    def title(self) -> str:
        """Its weights without their owner, and what they stand on where that is another checkpoint."""
        own, base = (
            path.rsplit("/", 1)[-1].partition("@")[0].removesuffix(".safetensors")
            for path in (self.weights, self.options["path"])
        )
        return own if own == base else f"{own} on {base}"

    @property
    def facts(self) -> dict[str, str]:
        """What `sdpo plugins show` says of it."""
        revision = self.options.get("revision")
        return {
            "family": "StableDiffusionXLPipeline" if self.xl else "StableDiffusionPipeline",
            "checkpoint": self.options["path"] + (f" at {revision}" if revision else ""),
            **({"weights": self.weights} if self.weights != self.options["path"] else {}),
            "native steps": self.steps,
            "schedule": self.schedule,
            "guidance": self.guidance,
            "picture": f"{self.size} x {self.size}",
            "dtype": "float16 as published; bfloat16 trains more safely",
            "licence": self.licence,
            "access": "open",
        }


def lightning(steps: int, file: str, option: str, **more: str) -> Known:
    """SDXL-Lightning for a step count: as UNet weights, or as a LoRA."""
    name = f"sdxl-lightning-{steps}step" + ("-lora" if option == "base_lora" else "")
    options = {**SDXL, option: f"{LIGHTNING}/{file}", **TRAILING_EULER, **more}
    return Known(name, True, options, str(steps), "Euler, trailing", "none", 1024, OPENRAIL_XL)


def hyper(xl: bool, steps: int) -> Known:
    """Hyper-SD for a step count, a LoRA over SD 1.5 or SDXL."""
    file = f"Hyper-SD{'XL' if xl else '15'}-{steps}step{'s' if steps > 1 else ''}-lora.safetensors"
    options = {**(SDXL if xl else SD15), "base_lora": f"{HYPER}/{file}", **TRAILING_DDIM}
    name, licence = f"hyper-sd{'xl' if xl else '15'}-{steps}step", OPENRAIL_XL if xl else OPENRAIL
    return Known(name, xl, options, str(steps), "DDIM, trailing", "none", 1024 if xl else 512, licence)


KNOWN = (
    Known(
        "sd-turbo",
        False,
        {"path": "stabilityai/sd-turbo", "revision": "b261bac6fd2cf515557d5d0707481eafa0485ec2"},
        "1 to 4",
        "Euler, trailing",
        "none",
        512,
        STABILITY,
    ),
    Known(
        "sdxl-turbo",
        True,
        {"path": "stabilityai/sdxl-turbo", "revision": "71153311d3dbb46851df1931d3ca6e939de83304"},
        "1 to 4",
        "Euler ancestral, trailing",
        "none",
        512,
        STABILITY,
    ),
    Known(
        "lcm-dreamshaper-v7",
        False,
        {"path": "SimianLuo/LCM_Dreamshaper_v7", "revision": "a85df6a8bd976cdd08b4fd8f3b73f229c9e54df5"},
        "2 to 8",
        "LCM",
        "8, embedded",
        768,
        "MIT",
        distilled=False,
    ),
    Known(
        "lcm-sdxl",
        True,
        {**SDXL, "denoiser": "latent-consistency/lcm-sdxl", "scheduler": "lcm"},
        "2 to 8",
        "LCM",
        "8, embedded",
        1024,
        OPENRAIL_XL,
        distilled=False,
    ),
    lightning(1, "sdxl_lightning_1step_unet_x0.safetensors", "denoiser", prediction="sample"),
    *(lightning(steps, f"sdxl_lightning_{steps}step_unet.safetensors", "denoiser") for steps in (2, 4, 8)),
    *(lightning(steps, f"sdxl_lightning_{steps}step_lora.safetensors", "base_lora") for steps in (2, 4, 8)),
    *(hyper(False, steps) for steps in (1, 2, 4, 8)),
    *(hyper(True, steps) for steps in (1, 2, 4, 8)),
    Known(
        "sd-v1-5",
        False,
        {**SD15, "guidance": 7.5},
        "20 to 50",
        "DDIM in place of PNDM, leading",
        "7.5, classifier-free",
        512,
        OPENRAIL,
        distilled=False,
    ),
    Known(
        "sdxl-base",
        True,
        {**SDXL, "guidance": 5.0},
        "20 to 50",
        "Euler, leading",
        "5, classifier-free",
        1024,
        OPENRAIL_XL,
        distilled=False,
    ),
)


def unpinned(weights: str) -> str:
    """`OWNER/NAME` or `OWNER/NAME/FILE` without the revision."""
    return re.sub("@[^/]*", "", weights)


UNGUIDED = frozenset(unpinned(row.weights) for row in KNOWN if row.distilled)
"""Weights, by path or hub id, that were distilled so that they need no guidance and can take none."""
