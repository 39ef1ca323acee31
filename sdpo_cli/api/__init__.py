"""The plug-in contract: everything a reward, base model, prompt source or objective may import.

`sdpo_cli.api` needs no torch (records, options, hook markers); `sdpo_cli.api.tensors` holds what crosses the border
at run time.
"""

from sdpo_cli.api.hookspecs import PLUGIN_API, hookimpl
from sdpo_cli.api.specs import (
    BaseModelSpec,
    Example,
    HubFiles,
    LoadContext,
    ObjectiveSpec,
    Options,
    Prompt,
    PromptSourceSpec,
    RewardSpec,
    Spec,
    UserPath,
)
from sdpo_cli.errors import ArtifactError, PluginError, SdpoError, UsageError

__all__ = [
    "PLUGIN_API",
    "ArtifactError",
    "BaseModelSpec",
    "Example",
    "HubFiles",
    "LoadContext",
    "ObjectiveSpec",
    "Options",
    "PluginError",
    "Prompt",
    "PromptSourceSpec",
    "RewardSpec",
    "SdpoError",
    "Spec",
    "UsageError",
    "UserPath",
    "hookimpl",
]
