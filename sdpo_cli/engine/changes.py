"""What may change in a run that is gone on with, what only by `--override`, and the record of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sdpo_cli.engine.artifacts import RunFolder
from sdpo_cli.engine.ema import AVERAGE
from sdpo_cli.engine.files import read_json_lines, write_json_lines
from sdpo_cli.engine.recipe_differences import HANDLING, Differences, differences
from sdpo_cli.engine.snapshot import Snapshot
from sdpo_cli.errors import ArtifactError, RecipeError, UsageError, one_line
from sdpo_cli.maths import StepStatistics
from sdpo_cli.recipe import Recipe, long_form

WATCHED = {"eval.steps", "eval.every", "eval.images_per_prompt", "eval.rewards", "eval.prompts"}
"""The same where there is no guard, which compares all evaluations of the run."""

FIELDS = {
    "base model": "model",
    "version of the base model": "model",
    "list of prompts": "prompts",
    "version of reward ": "reward",
    "version of the objective": "objective",
}
"""The field that chooses what a checkpoint was made with, by how that begins in `Snapshot.about`."""


@dataclass(frozen=True)
class Resumption:
    """How a run is gone on with.

    Attributes:
        overrides: fields that may change although they change the training, or that hold such fields.
        recipe: what of the recipe does change.
    """

    overrides: Sequence[str] = ()
    recipe: Differences = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """Something that was one thing up to an epoch, and another after it."""

    epoch: int
    what: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return one_line(f"from epoch {self.epoch + 1} on: {self.what} {self.after!r}, before {self.before!r}")


def recipe_changes(written: Recipe, wanted: Recipe) -> Differences:
    """The fields that differ and decide something of what was trained, or of what the guard has compared."""
    free = HANDLING | {"eval.batch", "guard.rollback"}
    guarded = written.guard.on or wanted.guard.on
    return differences(long_form(written), long_form(wanted), free if guarded else free | WATCHED)


def check_same_run(written: Recipe, wanted: Recipe, place: str, overrides: Sequence[str] = ()) -> Resumption:
    """What of the recipe changes. RecipeError naming every field that differs and may not.

    UsageError where `overrides` names no field.
    """
    unknown = set(overrides) - {*paths(long_form(written)), *paths(long_form(wanted))}
    if unknown:
        remedy = "docs/recipe.md has all of them"
        raise UsageError("no field of a recipe", place=f"--override {min(unknown)}", remedy=remedy)
    changed = recipe_changes(written, wanted)
    faults = [
        one_line(f"{old!r} cannot become {new!r} in a resumed run", f"{place}: {path}", f"--override {path} allows it")
        for path, (old, new) in changed.items()
        if not allowed(path, overrides)
    ]
    if faults:
        raise RecipeError(faults)
    return Resumption(overrides, changed)


def paths(tree: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """The dotted paths of all fields of a recipe, and of what holds them."""
    for name, value in tree.items():
        yield f"{place}{name}"
        if isinstance(value, Mapping):
            yield from paths(value, f"{place}{name}.")


def allowed(path: str, overrides: Sequence[str]) -> bool:
    """Whether one of the overrides is the field, or holds it."""
    return any(path == one or path.startswith(f"{one}.") for one in overrides)


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


def field_of(what: str) -> str:
    """The field of a recipe that chooses something a checkpoint is about."""
    return next((name for start, name in FIELDS.items() if what.startswith(start)), what)


def changes_after(epoch: int, changed: Differences) -> list[Change]:
    """The differences as changes after an epoch; before the first there is nothing to be changed."""
    return [Change(epoch, what, old, new) for what, (old, new) in changed.items() if epoch]


def record(folder: RunFolder, changes: Sequence[Change]) -> None:
    """Write changes down, each once."""
    known = recorded(folder)
    new = [change for change in changes if change not in known]
    if new:
        write_json_lines(folder.changes, [asdict(change) for change in (*known, *new)])


def recorded(folder: RunFolder) -> list[Change]:
    """All changes so far. ArtifactError where a line is none."""
    rows = read_json_lines(folder.changes) if folder.changes.exists() else []
    try:
        return [Change(**row) for row in rows]
    except TypeError as error:
        remedy = "put the file back as it was"
        raise ArtifactError("holds a line that is no change", place=str(folder.changes), remedy=remedy) from error


def carried_over(snapshot: Snapshot, changes: Sequence[Change], fresh: StepStatistics, *, averages: bool) -> Snapshot:
    """What of the snapshot is still true after the changes made to it.

    Returns of another reward, objective or rollout are none of ours, and averages nobody carries on are of the past.
    """
    later = {change.what for change in changes if change.epoch >= snapshot.progress.epoch}
    stale = any(field_of(what).split(".")[0] in ("reward", "objective", "rollout") for what in later)
    kept = {name: one for name, one in snapshot.optimizer.items() if averages or not name.endswith(f"/{AVERAGE}")}
    return replace(snapshot, statistics=fresh if stale else snapshot.statistics, optimizer=kept)
