"""A recipe whose model has random weights, so that nothing is downloaded to measure it."""

from dataclasses import replace

from sdpo_cli.api.specs import needs_nothing
from sdpo_cli.api.tensors import ScoreRequest, ScoreResult
from sdpo_cli.errors import UsageError
from sdpo_cli.registry import Chosen, ResolvedRecipe


class StandIn:
    """The mean of a picture: in place of a reward whose weights would have to be downloaded."""

    def score(self, request: ScoreRequest) -> ScoreResult:
        """Brightness, in no time."""
        return ScoreResult(request.images.mean((1, 2, 3)))


def with_random_weights(resolved: ResolvedRecipe) -> tuple[ResolvedRecipe, list[str]]:
    """The recipe with nothing to download, and the names of the rewards that something else stands in for.

    UsageError where the model's architecture is not known.
    """
    spec = resolved.model.spec
    if spec.load_random is None:
        raise UsageError(
            f"the architecture of {resolved.model.name} is not known without a download",
            place="--random-weights",
            remedy="name a recipe of a known checkpoint, such as aesthetic, or leave it out",
        )
    model = respecified(resolved.model, load=spec.load_random, needs=needs_nothing)
    absent = [reward.name for reward in resolved.rewards if reward.needs()]
    rewards = tuple(
        respecified(one, load=lambda options, context: StandIn(), needs=needs_nothing) if one.name in absent else one
        for one in resolved.rewards
    )
    return replace(resolved, model=model, rewards=rewards), absent


def respecified(chosen: Chosen, **changes: object) -> Chosen:
    """A chosen plug-in whose record says something else."""
    return replace(chosen, plugin=replace(chosen.plugin, spec=replace(chosen.spec, **changes)))
