"""Options of Stable Diffusion and SDXL checkpoints. Imports no torch."""

from typing import Literal

from pydantic import Field

from sdpo_cli.api.pipelines import PipelineOptions


class UNetOptions(PipelineOptions):
    """Where a UNet pipeline is, how it is loaded, and how it draws."""

    guidance: float | None = Field(
        default=None,
        ge=0,
        description="Guidance scale; null means 8 where the network takes it as an input (LCM), else no guidance.",
    )
    scheduler: Literal["own", "ddim", "euler", "euler-ancestral", "lcm"] = Field(
        default="own",
        description="Noise levels and how a step is drawn; `own`: as the checkpoint's scheduler, where it is one of "
        "these, else `ddim`.",
    )
    timestep_spacing: Literal["own", "trailing", "leading", "linspace"] = Field(
        default="own", description="Which timesteps the steps visit; lcm has a grid of its own."
    )
    prediction: Literal["own", "epsilon", "v_prediction", "sample"] = Field(
        default="own", description="What the network predicts; `own`: what the checkpoint's scheduler says."
    )
