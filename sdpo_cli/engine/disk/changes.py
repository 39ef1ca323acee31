"""What may change in a run that is gone on with, what only by `--override`, and the record of it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sdpo_cli.engine.disk.artifacts import RunFolder
from sdpo_cli.engine.disk.files import read_json_lines, write_json_lines
from sdpo_cli.engine.disk.recipe_differences import HANDLING, Differences, differences
from sdpo_cli.errors import ArtifactError, RecipeError, UsageError, one_line
from sdpo_cli.recipe import Recipe, did_you_mean, long_form
from sdpo_cli.recipe.text import format_inline

WATCHED = {"eval.steps", "eval.every", "eval.images_per_prompt", "eval.rewards", "eval.prompts"}
"""The same where there is no guard, which compares all evaluations of the run."""

SHAPE = {"model.train", "model.lora.rank", "model.lora.targets", "train.optimizer"}
"""Fields that say which tensors a checkpoint has: another one's cannot be gone on with."""

FIELDS = {
    "base model": "model",
    "version of the base model": "model",
    "list of prompts": "prompts",
    "version of reward ": "reward",
    "version of the objective": "objective",
}
"""The field that chooses what a checkpoint was made with, by how that begins in `Snapshot.about`."""


OPTIONS = ("model.options.", "prompts.", "reward.", "objective.")
"""Where a recipe has options of plug-ins. One that is new may be on by default; a new field elsewhere never is."""


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
        return one_line(f"from epoch {self.epoch + 1} on: {self.what} {in_words(self.what, self.before, self.after)}")


def in_words(what: str, before: Any, after: Any) -> str:
    """`from A to B`, `added: B`, or `gone, which was A`; A and B as a recipe says them.

    None is nothing at all where the other is a plug-in with its options, or the version of something; else it is null.
    """
    plain = field_of(what) != what
    old, new = (str(one) if plain else format_inline(one) for one in (before, after))
    if before is None and (plain or isinstance(after, Mapping)):
        return f"added: {new}"
    if after is None and (plain or isinstance(before, Mapping)):
        return f"gone, which was {old}"
    return f"from {old} to {new}"


def recipe_changes(written: Recipe, wanted: Recipe) -> Differences:
    """The fields that differ and decide something of what was trained, or of what the guard has compared."""
    free = HANDLING | {"eval.batch", "guard.rollback"}
    guarded = written.guard.on or wanted.guard.on
    return meant_otherwise(written, wanted, free if guarded else free | WATCHED)


def meant_otherwise(written: Recipe, wanted: Recipe, free: Collection[str] = ()) -> Differences:
    """The fields that two recipes say otherwise and mean otherwise, without those in `free`."""
    said = differences(long_form(written), long_form(wanted), free)
    before, after = lora_in_effect(written), lora_in_effect(wanted)
    return {path: pair for path, pair in said.items() if path not in before or before[path] != after[path]}


def lora_in_effect(recipe: Recipe) -> dict[str, Any]:
    """The fields of the LoRA that may be null, by path, with what null means."""
    lora = recipe.model.lora
    rank = lora.rank or 8
    meant = {"rank": rank, "alpha": lora.alpha or rank, "targets": lora.targets or "attention"}
    return {f"model.lora.{name}": value for name, value in meant.items()}


def newer_options(raw: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """The options of plug-ins that a run's recipe, as read, does not say, as there were none of the name when it was
    written; with what they are by default.
    """
    all_of_them, said = by_path(long_form(recipe)), by_path(raw)
    return {
        path: value
        for path, value in all_of_them.items()
        if path.startswith(OPTIONS) and path not in said and not isinstance(value, Mapping)
    }


def check_said(newer: Mapping[str, Any], place: str) -> None:
    """RecipeError where there are options that the run was trained without, and nobody has said what they should be."""
    faults = [
        one_line(
            "is newer than the run, which was trained without it",
            f"{place}: {path}",
            f"say what is the same, --set {path}=VALUE; the default is now {format_inline(value)}",
        )
        for path, value in newer.items()
    ]
    if faults:
        raise RecipeError(faults)


def check_same_run(
    written: Recipe, wanted: Recipe, place: str, overrides: Sequence[str] = (), newer: Collection[str] = ()
) -> Resumption:
    """What of the recipe changes, options apart that the run was trained without.

    RecipeError naming every field that differs and may not, whatever is overridden where checkpoints would no longer
    fit; UsageError where `overrides` names no field.
    """
    known = {*by_path(long_form(written)), *by_path(long_form(wanted))}
    if unknown := set(overrides) - known:
        remedy = f"{did_you_mean(min(unknown), sorted(known))} docs/recipe.md has all of them".strip()
        raise UsageError("no field of a recipe", place=f"--override {min(unknown)}", remedy=remedy)
    changed = {path: pair for path, pair in recipe_changes(written, wanted).items() if path not in newer}
    faults = [
        one_line(
            f"{format_inline(old)} cannot become {format_inline(new)} in a resumed run",
            f"{place}: {path}",
            way_out(path),
        )
        for path, (old, new) in changed.items()
        if path in SHAPE or not allowed(path, overrides)
    ]
    if faults:
        raise RecipeError(faults)
    return Resumption(overrides, changed)


def way_out(path: str) -> str:
    """The remedy where a field may not change."""
    return "its checkpoints would not fit; start a new run" if path in SHAPE else f"--override {path} allows it"


def by_path(tree: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """All fields of a recipe, and what holds them, by dotted path."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found[f"{place}{name}"] = value
        if isinstance(value, Mapping):
            found |= by_path(value, f"{place}{name}.")
    return found


def allowed(path: str, overrides: Sequence[str]) -> bool:
    """Whether one of the overrides is the field, or holds it."""
    return any(path == one or path.startswith(f"{one}.") for one in overrides)


def field_of(what: str) -> str:
    """The field of a recipe that chooses something a checkpoint is about."""
    return next((name for start, name in FIELDS.items() if what.startswith(start)), what)


def changes_of(known: Sequence[Change], epoch: int, changed: Differences, now: Mapping[str, Any]) -> list[Change]:
    """All changes of a run that goes on after `epoch`; before the first there is nothing to be changed.

    What was changed after this epoch or a later one has decided nothing that is left: it counts as changed after this
    one, and not at all where it is again what it was.

    Args:
        known: those written down.
        epoch: the last one that is left.
        changed: what differs from what was written down.
        now: what the run goes on with.
    """
    pending = {one.what: one.before for one in reversed(known) if one.epoch >= epoch}
    before = {what: old for what, (old, _) in changed.items()} | pending
    new = [Change(epoch, what, old, now.get(what)) for what, old in before.items() if epoch and old != now.get(what)]
    return [*(one for one in known if one.epoch < epoch), *new]


def record(folder: RunFolder, changes: Sequence[Change]) -> None:
    """Write all changes down. ArtifactError where that cannot be done."""
    if changes or folder.changes.exists():
        write_json_lines(folder.changes, [asdict(change) for change in changes])


def recorded(folder: RunFolder) -> list[Change]:
    """All changes so far. ArtifactError where a line is none."""
    rows = read_json_lines(folder.changes) if folder.changes.exists() else []
    names = {one.name for one in fields(Change)}
    if not all(row.keys() == names and type(row["epoch"]) is int and isinstance(row["what"], str) for row in rows):
        remedy = "put the file back as it was"
        raise ArtifactError("holds a line that is no change", place=str(folder.changes), remedy=remedy)
    return [Change(**row) for row in rows]
