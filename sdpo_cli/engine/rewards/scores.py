"""Scores of picture files in a `scores.jsonl` that never mixes versions of a reward."""

import hashlib
import json
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdpo_cli.engine.disk.files import read_numbered_json_lines, write_json_lines
from sdpo_cli.engine.disk.images import MAX_PIXELS, read_image
from sdpo_cli.engine.events import Event, FileWritten, Note, StageStarted
from sdpo_cli.engine.rewards.file_rewards import Asking, FileReward
from sdpo_cli.engine.rewards.pictures import Picture
from sdpo_cli.errors import ArtifactError

PICTURE_KEYS = ("sha256", "prompt", "metadata_sha256")
"""What a value was made from: it is stale where one of them differs."""

TEXT_KEYS = ("file", *PICTURE_KEYS, "reward", "plugin", "version")

Row = Mapping[str, Any]
Table = dict[tuple[str, str, str], Row]
"""Rows by `row_key`."""


@dataclass(frozen=True)
class Summary:
    """One reward over all pictures that have a value; the numbers are None where there are too few."""

    reward: str
    version: str
    options: Mapping[str, Any]
    count: int
    mean: float | None
    sd: float | None
    min: float | None
    max: float | None


@dataclass(frozen=True)
class ScoreReport:
    """What `score_files` did.

    Attributes:
        path: the scores file.
        pictures: how many pictures were asked for.
        failed: one line for each that a reward has no value of: it cannot be read, or the reward failed.
        summaries: in the order of the rewards.
    """

    path: Path
    pictures: int
    failed: Sequence[str]
    summaries: Sequence[Summary]


def read_scores(path: Path) -> Sequence[Row]:
    """The rows of a scores file; none where there is no file. ArtifactError with the line that is none."""
    if path.exists() and not path.is_file():  # a device would be replaced, a pipe waited for
        raise ArtifactError("is no file", place=str(path), remedy="name another file with --out")
    rows = read_numbered_json_lines(path) if path.exists() else []
    for number, row in rows:
        if not is_row(row):
            raise ArtifactError("is no score", place=f"{path}:{number}", remedy="name another file with --out")
    return [row for _, row in rows]


def is_row(row: Row) -> bool:
    """Whether a JSON object has all that a row needs: texts, options, and a finite value or an error."""
    value = row.get("value")
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    outcome = number if "value" in row else isinstance(row.get("error"), str)
    return outcome and isinstance(row.get("options"), dict) and all(isinstance(row.get(key), str) for key in TEXT_KEYS)


def refuse_other_versions(path: Path, rows: Sequence[Row], rewards: Sequence[FileReward]) -> None:
    """ArtifactError where the file has one of the rewards in another version."""
    for reward in rewards:
        others = {row["version"] for row in rows if row["plugin"] == reward.plugin} - {reward.version}
        if others:
            fault = f"holds {reward.name} version {', '.join(sorted(others))}, installed is {reward.version}"
            raise ArtifactError(fault, place=str(path), remedy="score again with --overwrite, or name another --out")


def row_key(row: Row) -> tuple[str, str, str]:
    """What a value belongs to: file, reward and its options."""
    return row["file"], row["plugin"], repr(sorted(row["options"].items()))


def file_name(path: Path, folder: Path) -> str:
    """How a row in `folder` names a picture: relative where it lies under it, else absolute."""
    path, folder = path.resolve(), folder.resolve()
    name = (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
    return name.encode(errors="backslashreplace").decode()  # a name that is not UTF-8 could not be written


def score_files(
    pictures: Sequence[Picture],
    rewards: Sequence[FileReward],
    path: Path,
    *,
    batch: int,
    overwrite: bool,
    device: torch.device,
) -> Generator[Event, None, ScoreReport]:
    """Score what the scores file at `path` lacks, and write it, whole, even when something stops it half-way.

    A picture that cannot be read, or that a reward fails on, gets a row with the error; it is tried again next time.
    A row is kept if picture bytes, prompt, metadata, reward, options and version are the same. `overwrite` scores all
    anew, each row replaced as its new one is there, and when all are drops the other rows of these rewards. Yields
    what it is doing; its return value is the report.

    Raises:
        ArtifactError: the scores file cannot be read or written, or has another version of a reward.
    """
    old = read_scores(path)
    if not overwrite:
        refuse_other_versions(path, old, rewards)
    bare = sum(not picture.prompt for picture in pictures)
    if bare:
        yield Note(f"{bare} of {len(pictures)} pictures have no prompt; rewards get an empty one for them")
    table = {row_key(row): row for row in old}
    wanted = [blank_row(picture, path.parent) for picture in pictures]
    jobs = needed_jobs(pictures, wanted, rewards, {} if overwrite else table)
    write_json_lines(path, old)  # a file that cannot be written is found out before the work
    try:
        yield from score_jobs(jobs, table, batch, device)
        if overwrite:
            table = without_others(table, wanted, rewards)
    finally:
        if table:
            write_json_lines(path, list(table.values()))
        else:
            path.unlink(missing_ok=True)
    yield FileWritten(path, "scores")
    return report(path, wanted, rewards, table)


Job = tuple[Picture, dict[str, Any], Sequence[FileReward]]
"""A picture, its row without reward, and the rewards that it lacks."""


def blank_row(picture: Picture, folder: Path) -> dict[str, Any]:
    """The part of a picture's rows that all rewards share. `sha256` is empty where the file cannot be read."""
    digest = ""
    with suppress(OSError):
        if picture.path.is_file():  # a pipe would be waited for
            with picture.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    metadata = json.dumps(dict(picture.metadata), sort_keys=True, default=repr)
    return {
        "file": file_name(picture.path, folder),
        "sha256": digest,
        "prompt": picture.prompt,
        "metadata_sha256": hashlib.sha256(metadata.encode()).hexdigest(),
    }


def needed_jobs(
    pictures: Sequence[Picture], wanted: Sequence[dict[str, Any]], rewards: Sequence[FileReward], table: Table
) -> list[Job]:
    """What the table lacks."""
    return [
        (picture, row, missing)
        for picture, row in zip(pictures, wanted, strict=True)
        if (missing := [one for one in rewards if not is_current(table.get(row_key(row | one.said)), row)])
    ]


def is_current(row: Row | None, wanted: Row) -> bool:
    """Whether a row has a value for these very bytes, this prompt and its metadata."""
    return row is not None and "value" in row and all(row[key] == wanted[key] for key in PICTURE_KEYS)


def without_others(table: Table, wanted: Sequence[Row], rewards: Sequence[FileReward]) -> Table:
    """The table without those rows of the rewards that are not of the wanted pictures and options."""
    asked = {row_key({**row, **reward.said}) for row in wanted for reward in rewards}
    plugins = {reward.plugin for reward in rewards}
    return {key: row for key, row in table.items() if key in asked or row["plugin"] not in plugins}


def score_jobs(jobs: Sequence[Job], table: Table, batch: int, device: torch.device) -> Generator[Event, None, None]:
    """Put the missing rows into `table`, in order, scoring up to `batch` neighbours of one size at a time.

    However many those are, they have no more pixels together than one picture may have.
    """
    group: list[tuple[Job, Tensor]] = []
    asking = Asking()
    for number, job in enumerate(jobs):
        image = readable(job[0].path)
        if group and (isinstance(image, str) or image.shape != group[0][1].shape or is_full(group, batch)):
            yield from score_group(group, table, device, asking)
            group = []
            yield StageStarted("score", 0, 0, f"{number} of {len(jobs)} pictures")
        if isinstance(image, str):
            yield Note(image)
            for reward in job[2]:
                failed = job[1] | reward.said | {"error": image}
                table[row_key(failed)] = failed
        else:
            group.append((job, image))
    if group:
        yield from score_group(group, table, device, asking)


def is_full(group: Sequence[tuple[Job, Tensor]], batch: int) -> bool:
    """Whether another picture of the same size would be too many, or too many pixels."""
    _, height, width = group[0][1].shape
    return len(group) == batch or (len(group) + 1) * height * width > MAX_PIXELS


def readable(path: Path) -> Float[Tensor, "3 H W"] | str:
    """The picture, or what is wrong with it."""
    try:
        return read_image(path)
    except ArtifactError as error:
        return str(error)


def score_group(
    group: Sequence[tuple[Job, Tensor]], table: Table, device: torch.device, asking: Asking
) -> Generator[Event, None, None]:
    """Score pictures of one size by the rewards that each lacks."""
    rewards = {id(reward): reward for (_, _, missing), _ in group for reward in missing}
    for reward in rewards.values():
        lacking = [(job, image) for job, image in group if reward in job[2]]
        images = torch.stack([image for _, image in lacking]).to(device)
        outcomes = asking.outcomes(reward, [job[0] for job, _ in lacking], images)
        for ((_, row, _), _), outcome in zip(lacking, outcomes, strict=True):
            scored = row | reward.said | outcome
            table[row_key(scored)] = scored
            if "error" in outcome:
                yield Note(outcome["error"])


def report(path: Path, wanted: Sequence[Row], rewards: Sequence[FileReward], table: Table) -> ScoreReport:
    """The rewards over the pictures asked for, those scored earlier included."""
    rows = [[table[row_key({**row, **reward.said})] for row in wanted] for reward in rewards]
    failed = {row["file"]: row["error"] for column in reversed(rows) for row in column if "error" in row}
    failed = {row["file"]: failed[row["file"]] for row in wanted if row["file"] in failed}
    summaries = [
        summary(reward, [row["value"] for row in column if "value" in row])
        for reward, column in zip(rewards, rows, strict=True)
    ]
    return ScoreReport(path, len(wanted), list(failed.values()), summaries)


def summary(reward: FileReward, values: Sequence[float]) -> Summary:
    """Count, mean, sample standard deviation and range."""
    return Summary(
        reward.name,
        reward.version,
        reward.options,
        len(values),
        fmean(values) if values else None,
        stdev(values) if len(values) > 1 else None,
        min(values, default=None),
        max(values, default=None),
    )
