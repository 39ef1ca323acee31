"""The diffusers pipeline classes that this distribution adapts. Imports no torch."""

from dataclasses import dataclass

from sdpo_model_flow import known
from sdpo_model_flow.known import Known

ONE_ENCODER = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
TWO_ENCODERS = (*ONE_ENCODER, "text_encoder_2", "tokenizer_2")
THREE_ENCODERS = (*TWO_ENCODERS, "text_encoder_3", "tokenizer_3")


@dataclass(frozen=True)
class Family:
    """A pipeline class.

    Attributes:
        name: of its plug-in.
        module, adapter: where its adapter is, and what it is called.
        pipeline: the class in `model_index.json`.
        summary, source: for the plug-in's record.
        components: what is fetched of a checkpoint.
        known: its published few-step checkpoints.
        matches_flows: whether its schedule can be shifted and drawn from with `sde`.
    """

    name: str
    module: str
    adapter: str
    pipeline: str
    summary: str
    source: str
    components: tuple[str, ...]
    known: tuple[Known, ...]
    matches_flows: bool = True

    @property
    def facts(self) -> dict[str, str]:
        """What `sdpo plugins show` says of it."""
        return {
            "transitions": "ddim, renoise, cps" + (", sde" if self.matches_flows else " (sde needs flow matching)"),
            "last step": "ends at the clean picture: without noise" + (", but for sde" if self.matches_flows else ""),
            "known checkpoints": ", ".join(one.name for one in self.known),
        }


FAMILIES = (
    Family(
        name="sd3",
        module="sd3",
        adapter="StableDiffusion3",
        pipeline="StableDiffusion3Pipeline",
        summary="any Stable Diffusion 3 or 3.5 checkpoint, by folder or hub id",
        source="arXiv 2403.03206; diffusers StableDiffusion3Pipeline",
        components=THREE_ENCODERS,
        known=known.SD3,
    ),
    Family(
        name="flux",
        module="flux",
        adapter="Flux",
        pipeline="FluxPipeline",
        summary="any FLUX.1 checkpoint, by folder or hub id",
        source="black-forest-labs/flux; diffusers FluxPipeline",
        components=TWO_ENCODERS,
        known=known.FLUX,
    ),
    Family(
        name="flux2-klein",
        module="flux2",
        adapter="Flux2Klein",
        pipeline="Flux2KleinPipeline",
        summary="any FLUX.2 klein checkpoint, by folder or hub id",
        source="black-forest-labs/flux2; diffusers Flux2KleinPipeline",
        components=ONE_ENCODER,
        known=known.FLUX2,
    ),
    Family(
        name="sana-sprint",
        module="sana",
        adapter="SanaSprint",
        pipeline="SanaSprintPipeline",
        summary="any SANA-Sprint checkpoint, by folder or hub id",
        source="arXiv 2503.09641; diffusers SanaSprintPipeline",
        components=ONE_ENCODER,
        known=known.SANA,
        matches_flows=False,
    ),
    Family(
        name="z-image",
        module="z_image",
        adapter="ZImage",
        pipeline="ZImagePipeline",
        summary="any Z-Image checkpoint, by folder or hub id",
        source="arXiv 2511.22699; diffusers ZImagePipeline",
        components=ONE_ENCODER,
        known=known.Z_IMAGE,
    ),
    Family(
        name="qwen-image",
        module="qwen",
        adapter="QwenImage",
        pipeline="QwenImagePipeline",
        summary="any Qwen-Image checkpoint, with a Lightning LoRA merged into it, by folder or hub id",
        source="arXiv 2508.02324; diffusers QwenImagePipeline",
        components=ONE_ENCODER,
        known=known.QWEN,
    ),
)
