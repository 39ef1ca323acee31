"""What holds for the whole repository: import direction, documentation, size, the README's commands."""

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
from pydantic import BaseModel

import sdpo_cli
from sdpo_cli.api import hookspecs

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sdpo_cli"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "assets" not in path.parts)
HEAVY = ("torch", "diffusers", "transformers", "peft", "matplotlib", "numpy")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def undocumented(tree: ast.Module | ast.ClassDef) -> list[str]:
    """The public classes and functions directly in `tree` that have no docstring."""
    nodes = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return [node.name for node in nodes if not node.name.startswith("_") and not ast.get_docstring(node)]


def test_imports_go_one_way():
    result = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["plugins", "list"]])
def test_help_and_plugin_list_load_nothing_heavy(arguments, tmp_path):
    program = f"""
import sys
from sdpo_cli.main import main
code = main({arguments!r})
print(code, sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == "0 []"


class TestDocumentation:
    def test_every_hook(self):
        hooks = [value for value in vars(hookspecs).values() if hasattr(value, "sdpo_spec")]
        assert len(hooks) == 4
        assert all(isinstance(hook, FunctionType) and inspect.getdoc(hook) for hook in hooks)

    @pytest.mark.parametrize("path", MODULES, ids=name_of)
    def test_every_module_and_its_public_names(self, path):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), f"{name_of(path)} has no docstring"
        assert not undocumented(tree)

    @pytest.mark.parametrize("path", [path for path in MODULES if path.parent.name in ("api", "maths")], ids=name_of)
    def test_every_method_of_the_public_api(self, path):
        classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
        assert not [f"{kind.name}.{name}" for kind in classes for name in undocumented(kind)]

    def test_every_field_of_a_recipe_or_of_options(self):
        for module in pkgutil.walk_packages([str(PACKAGE)], "sdpo_cli."):
            if not module.name.endswith(("__main__", "_kernels")):  # the kernels need Triton, which is for GPUs
                importlib.import_module(module.name)
        models = [kind for kind in subclasses(BaseModel) if kind.__module__.startswith("sdpo_cli.")]
        assert len(models) > 4
        bare = [
            f"{m.__module__}.{m.__name__}.{n}" for m in models for n, f in m.model_fields.items() if not f.description
        ]
        assert not bare


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


class TestSize:
    @pytest.mark.parametrize("path", MODULES, ids=name_of)
    def test_modules_stay_under_300_lines(self, path):
        assert len(path.read_text().splitlines()) < 300

    @pytest.mark.parametrize(("folder", "limit"), [("maths", 20), ("engine", 40)])
    def test_functions_stay_small(self, folder, limit):
        nodes = [
            (path, node)
            for path in (PACKAGE / folder).rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef)
        ]
        long = [f"{name_of(path)}:{node.lineno} {node.name}" for path, node in nodes if code_lines(node) >= limit]
        assert nodes
        assert not long


def code_lines(node: ast.FunctionDef) -> int:
    """Lines of a function, its docstring aside."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    last = (body or node.body)[-1].end_lineno or node.lineno
    first = body[0].lineno if body else last
    return (node.body[0].lineno - node.lineno) + (last - first + 1)


def readme_commands(readme: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", ROOT / ".ci/readme-commands", readme], capture_output=True, text=True)


class TestReadme:
    def test_its_two_commands(self):
        assert readme_commands(ROOT / "README.md").stdout.splitlines() == [
            "pip install -e . && sdpo train recipes/quickstart.yaml",
            "pip install -e '.[dev]' && pip install ./plugins/sdpo-* && pytest -n 2 --dist loadfile",
        ]

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_any_other_number_stops_ci(self, count, tmp_path):
        readme = tmp_path / "README.md"
        fence = "```bash\npip install -e .\n```\ntext\n"
        readme.write_text("pip install -e .\n```\npip install -e .\n```\n" + fence * count)
        result = readme_commands(readme)
        assert result.returncode == 1
        assert result.stdout == ""
        assert result.stderr == (
            f"{readme}: {count} lines begin with `pip install -e` inside ```bash fences; there must be exactly 2\n"
        )


def test_changelog_speaks_of_this_version():
    headings = re.findall(r"^## \[?([^\]\s]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {"Unreleased", sdpo_cli.__version__} & set(headings)


def test_notice_names_the_art_and_its_licences():
    notice = (ROOT / "NOTICE").read_text()
    for part in ("Fluent Emoji", "Copyright (c) Microsoft Corporation", "Permission is hereby granted", "Noto Emoji"):
        assert part in notice


def test_no_file_names_a_place_on_somebodys_machine():
    place = re.compile(r"(?<![\w.~/])/(?:home|root|Users|tmp|mnt|opt|work|workspace)/[\w.-]+")
    folders = [ROOT / name for name in ("sdpo_cli", "plugins", "recipes", "tests", "docs", ".ci")]
    files = [*ROOT.glob("*.*"), *(path for folder in folders for path in folder.rglob("*"))]
    texts = [path for path in files if path.suffix in {".py", ".md", ".toml", ".yaml", ".j2", ".json", ".txt", ""}]
    found = [name_of(path) for path in texts if path.is_file() and place.search(path.read_text(encoding="utf-8"))]
    assert len(texts) > 40
    assert not found
