"""`sdpo plugins new`: an installable, tested package to start a plug-in from."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from string import Template
from typing import Annotated

import typer

TEMPLATES = Path(__file__).with_name("templates")
SUFFIX = ".tmpl"


class Kind(StrEnum):
    """The kinds of plug-in that there is a template for."""

    REWARD = "reward"
    PROMPT_SOURCE = "prompt-source"


def new(
    name: Annotated[str, typer.Argument(help="What recipes will call it: lower-case words joined by hyphens.")],
    kind: Annotated[Kind, typer.Option(help="What it adds.")] = Kind.REWARD,
    out: Annotated[
        Path | None, typer.Option(help="The folder to make; default: one of that name, here.", show_default=False)
    ] = None,
) -> None:
    """Write an installable, tested package to start from."""
    check_name(name)
    folder = out or Path(name)
    write(folder, rendered(name, kind))
    argument = {Kind.REWARD: "reward", Kind.PROMPT_SOURCE: "prompts"}[kind]
    print(f"{folder}: a package with the {kind.replace('-', ' ')} {name}. To try it:")
    print(f"  pip install -e {folder}")
    print(f"  sdpo plugins check {name}")
    print(f"  sdpo train quickstart --set {argument}={name}")


def check_name(name: str) -> None:
    """UsageError unless a plug-in, its distribution and its module can be called so."""
    import importlib.util
    import keyword

    from sdpo_cli.api import Spec
    from sdpo_cli.errors import UsageError
    from sdpo_cli.registry import load_registry

    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        words = "-".join(re.findall(r"[a-z0-9]+", name.lower())).lstrip("0123456789-")
        remedy = f"try {words}" if words else "try my-reward"
        raise UsageError(f"{name!r} is not lower-case words joined by hyphens", place="NAME", remedy=remedy)
    taken = load_registry().named(Spec, name)
    module = name.replace("-", "_")
    if taken:
        fault = f"{taken[0].origin} has the {taken[0].spec.kind} {name} already"
    elif keyword.iskeyword(module) or importlib.util.find_spec(module):
        fault = f"a module {module} exists already"
    else:
        return
    raise UsageError(fault, place="NAME", remedy=f"choose another, such as my-{name}")


def rendered(name: str, kind: Kind) -> dict[str, str]:
    """The package's files: text by path."""
    root, module = TEMPLATES / kind, name.replace("-", "_")
    words = {"name": name, "module": module, "title": "".join(word.capitalize() for word in name.split("-"))}
    return {
        path.relative_to(root).as_posix().removesuffix(SUFFIX).replace("module", module): Template(
            path.read_text(encoding="utf-8")
        ).substitute(words)
        for path in sorted(root.rglob(f"*{SUFFIX}"))
    }


def write(folder: Path, files: dict[str, str]) -> None:
    """Write the files into a new folder, all or none. UsageError where it exists, ArtifactError where it cannot be."""
    import tempfile

    from sdpo_cli.engine.disk.files import writing
    from sdpo_cli.errors import UsageError

    if folder.exists() or folder.is_symlink():
        raise UsageError("exists already", place=str(folder), remedy="name another folder with --out, or remove it")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            whole = Path(temporary) / "package"
            for name, text in files.items():
                path = whole / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            whole.rename(folder)
