"""What of a checkpoint a run goes on with, where something has changed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sdpo_cli.engine.disk.changes import Change, allowed, field_of
from sdpo_cli.engine.disk.recipe_differences import Differences
from sdpo_cli.engine.learning.ema import AVERAGE
from sdpo_cli.engine.setup import Setup, fresh_statistics
from sdpo_cli.engine.training.snapshot import Snapshot
from sdpo_cli.errors import ArtifactError


def check_continues(snapshot: Snapshot, about: Mapping[str, str], overrides: Sequence[str] = ()) -> Differences:
    """What the snapshot was not made with. ArtifactError naming all of it that no override allows.

    What it does not know, as one of format 1 knows no version of the objective, is not compared.
    """
    changed = {what: (old, about.get(what)) for what, old in snapshot.about.items() if about.get(what) != old}
    refused = {what: pair for what, pair in changed.items() if not allowed(field_of(what), overrides)}
    if refused:
        listed = ", ".join(f"another {what} ({old}, now {new or 'none'})" for what, (old, new) in refused.items())
        fields = " ".join(f"--override {one}" for one in dict.fromkeys(map(field_of, refused)))
        remedy = f"resume with what it was made with, or add {fields}"
        raise ArtifactError(f"made with {listed}", place=snapshot.place, remedy=remedy)
    return changed


def carried_over(snapshot: Snapshot, changes: Sequence[Change], setup: Setup) -> Snapshot:
    """What of the snapshot is still true after the changes made to it.

    Returns of another reward, objective or rollout are none of ours, and averages nobody carries on are of the past.
    """
    later = {change.what for change in changes if change.epoch >= snapshot.progress.epoch}
    stale = any(field_of(what).split(".")[0] in ("reward", "objective", "rollout") for what in later)
    averages = setup.recipe.train.ema_decay > 0
    kept = {name: one for name, one in snapshot.optimizer.items() if averages or not name.endswith(f"/{AVERAGE}")}
    statistics = fresh_statistics(setup) if stale else snapshot.statistics
    return replace(snapshot, statistics=statistics, optimizer=kept)
