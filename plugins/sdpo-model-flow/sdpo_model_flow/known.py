"""Checkpoints known to draw in few steps, each under a name of its own. Imports no torch.

A revision is the commit that public code names for the checkpoint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Known:
    """A published checkpoint.

    Attributes:
        name: what recipes call it.
        path, revision: where it is on the hub.
        steps: step counts it was distilled for.
        schedule: how its levels lie.
        guidance: what its authors use.
        licence: of its weights.
        gated: whether the hub asks for consent before it can be fetched.
        options: what else is set for it.
    """

    name: str
    path: str
    revision: str
    steps: str
    schedule: str
    guidance: str
    licence: str
    gated: bool = False
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def defaults(self) -> dict[str, Any]:
        """The options that are set for it."""
        return {"path": self.path, "revision": self.revision, **self.options}

    @property
    def facts(self) -> dict[str, str]:
        """What `sdpo plugins show` says of it."""
        lora = self.options.get("base_lora")
        return {
            "checkpoint": f"{self.path} at {self.revision}",
            **({"weights": lora} if lora else {}),
            "native steps": self.steps,
            "schedule": self.schedule,
            "guidance": self.guidance,
            "picture": "1024 x 1024",
            "dtype": "bfloat16",
            "licence": self.licence,
            "access": "gated: accept its licence on its page" if self.gated else "open",
        }


def lightning(steps: int) -> Known:
    """Qwen-Image with the Lightning LoRA for a step count.

    Source: ModelTC/Qwen-Image-Lightning `generate_with_diffusers.py`: distilled with shift 3, no terminal shift.
    """
    repo = "lightx2v/Qwen-Image-Lightning@e74da8d4e71a54b341de86aa9f8d2509165aa513"
    file = f"{repo}/Qwen-Image-Lightning-{steps}steps-V2.0-bf16.safetensors"
    return Known(
        name=f"qwen-image-lightning-{steps}step",
        path="Qwen/Qwen-Image",
        revision="75e0b4be04f60ec59a75f475837eced720f823b6",
        steps=str(steps),
        schedule="Euler, shift 3",
        guidance="none",
        licence="Apache-2.0, the LoRA too",
        options={"base_lora": file, "shift": 3.0},
    )


def sana_sprint(size: str, revision: str) -> Known:
    """SANA-Sprint of a size in billions of parameters."""
    return Known(
        name=f"sana-sprint-{size.replace('.', '-')}b",
        path=f"Efficient-Large-Model/Sana_Sprint_{size}B_1024px_diffusers",
        revision=revision,
        steps="1 to 4",
        schedule="angles from π/2 to 0, by way of 1.3 in 2 steps",
        guidance="4.5, embedded",
        licence="NVIDIA NSCL v2-custom, and the Gemma terms for its text encoder",
    )


SD3 = (
    Known(
        name="sd3-5-large-turbo",
        path="stabilityai/stable-diffusion-3.5-large-turbo",
        revision="ec07796fc06b096cc56de9762974a28f4c632eda",
        steps="4",
        schedule="Euler, shift 3",
        guidance="none",
        licence="Stability AI Community License",
        gated=True,
    ),
)
FLUX = (
    Known(
        name="flux-schnell",
        path="black-forest-labs/FLUX.1-schnell",
        revision="741f7c3ce8b383c54771c7003378a50191e9efe9",
        steps="1 to 4",
        schedule="Euler, no shift",
        guidance="none",
        licence="Apache-2.0",
        gated=True,
    ),
)
FLUX2 = (
    Known(
        name="flux2-klein-4b",
        path="black-forest-labs/FLUX.2-klein-4B",
        revision="e7b7dc27f91deacad38e78976d1f2b499d76a294",
        steps="4",
        schedule="Euler, shifted by picture size and number of steps",
        guidance="none",
        licence="Apache-2.0",
    ),
)
SANA = (
    sana_sprint("0.6", "a7d9fc31dd5c3f5e22dbfd78360777ceed56ae97"),
    sana_sprint("1.6", "19683c58b7ea290e55cedd8950ae1d86ada7ef96"),
)
Z_IMAGE = (
    Known(
        name="z-image-turbo",
        path="Tongyi-MAI/Z-Image-Turbo",
        revision="f332072aa78be7aecdf3ee76d5c247082da564a6",
        steps="8",
        schedule="Euler, shift 3",
        guidance="none",
        licence="Apache-2.0",
    ),
)
QWEN = (lightning(4), lightning(8))
