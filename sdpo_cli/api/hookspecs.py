"""The four hooks of a plug-in. A plug-in is a module named by an entry point of the group `sdpo`.

It sets `SDPO_PLUGIN_API = 1` and implements any of these functions, each marked `@hookimpl`:

    from sdpo_cli.api import RewardSpec, hookimpl

    SDPO_PLUGIN_API = 1

    @hookimpl
    def sdpo_rewards():
        return [RewardSpec(name="brightness", ...)]
"""

from collections.abc import Sequence

import pluggy

from sdpo_cli.api.specs import BaseModelSpec, ObjectiveSpec, PromptSourceSpec, RewardSpec

GROUP = "sdpo"
"""Entry-point group and pluggy project name."""

PLUGIN_API = 1
"""The contract's version; a plug-in module must set `SDPO_PLUGIN_API` to it."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def sdpo_rewards() -> Sequence[RewardSpec]:
    """Rewards: image and prompt -> one number, higher is better."""
    raise AssertionError("a hook specification is never called")


@hookspec
def sdpo_base_models() -> Sequence[BaseModelSpec]:
    """Few-step text-to-image models: prompt encoding, noise schedule, clean estimate, decoding, adapter."""
    raise AssertionError("a hook specification is never called")


@hookspec
def sdpo_prompt_sources() -> Sequence[PromptSourceSpec]:
    """Prompt lists to train and evaluate on."""
    raise AssertionError("a hook specification is never called")


@hookspec
def sdpo_objectives() -> Sequence[ObjectiveSpec]:
    """What is learnt from two or more scored rollouts: a learning plan and a loss."""
    raise AssertionError("a hook specification is never called")
