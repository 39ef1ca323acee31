"""Options of the flow-matching families. Imports no torch."""

from pydantic import Field

from sdpo_cli.api.pipelines import PipelineOptions


class FlowOptions(PipelineOptions):
    """Where a flow-matching pipeline is, how it is loaded, and where its noise levels lie."""

    shift: float | None = Field(
        default=None, gt=0, description="Fixed shift of the noise levels; null means the checkpoint's own rule."
    )
