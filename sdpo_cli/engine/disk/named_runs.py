"""Runs by the name of what they were made from: to be named where a recipe's name or a folder of runs is given."""

import re
from pathlib import Path

from sdpo_cli.engine.disk.artifacts import LATEST, RUNS, is_run

FEW = 5
"""As many runs are listed, the newest."""


def runs_in(folder: Path) -> list[Path]:
    """The runs in a folder, by name; `latest`, which is one of them, left out."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name != LATEST and is_run(path))


def newest_run(name: str) -> Path | None:
    """Of runs/NAME, runs/NAME-2, ... the one with the highest number, where there is one."""
    numbered = re.compile(re.escape(name) + r"(?:-([1-9][0-9]{0,8}))?")
    found = [(int(match[1] or 1), path) for path in runs_in(RUNS) if (match := numbered.fullmatch(path.name))]
    return max(found)[1] if found else None


def listed(folder: Path) -> str:
    """`runs/quickstart, runs/longer`: the runs in a folder, the newest first; empty where it holds none."""
    newest = sorted(runs_in(folder), key=lambda path: path.stat().st_mtime, reverse=True)
    return ", ".join(map(str, newest[:FEW])) + (", ..." if len(newest) > FEW else "")


def name_one(folder: Path) -> str:
    """What to do where a folder is named that holds runs; empty where it holds none."""
    runs = listed(folder)
    return f"name one of its runs: {runs}" if runs else ""
