"""Measured agreement with the official diffusers pipelines: the record of a check, and the page made of all of them.

`python tests/engine/parity.py` measures every check anew and writes the table of docs/parity.md. A module
`parity_*.py`, here or in a plug-in's `tests` folder, gives its checks as `CASES`; its test asserts their bounds.
"""

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from sdpo_cli.api.pipelines import silence

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "parity.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Case:
    """One check of one family.

    Attributes:
        family: row of the table.
        check: column of the table.
        bound: the measured difference must stay below it.
        measure: gives the difference; it may write into the folder it gets.
    """

    family: str
    check: str
    bound: float
    measure: Callable[[Path], float]

    def __str__(self) -> str:
        return f"{self.family}: {self.check}"


def modules() -> Iterator[ModuleType]:
    """Every module that has checks."""
    sys.path.insert(0, str(Path(__file__).parent))
    for path in sorted([*ROOT.glob("tests/engine/parity_*.py"), *ROOT.glob("plugins/*/tests/parity_*.py")]):
        sys.path.append(str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        yield module


def measured(case: Case) -> float:
    """The difference, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return case.measure(Path(folder))


def heading(case: Case) -> str:
    """The check and its bound."""
    return f"{case.check} (< {case.bound:g})"


def table(numbers: Mapping[Case, float]) -> str:
    """Families down, checks across."""
    checks = list(dict.fromkeys(map(heading, numbers)))
    cells = {(case.family, heading(case)): f"{value:.1e}" for case, value in numbers.items()}
    rows = [
        [family, *(cells.get((family, check), "") for check in checks)]
        for family in dict.fromkeys(case.family for case in numbers)
    ]
    lines = [["family", *checks], ["---"] * (len(checks) + 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stale(cases: Sequence[Case]) -> list[str]:
    """The cases of which the page shows no number under the bound: it is to be made anew."""
    made = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in made.strip().splitlines()]
    shown = {(line[0], head): cell for line in lines[2:] for head, cell in zip(lines[0], line, strict=True)}
    return [str(case) for case in cases if not float(shown.get((case.family, heading(case))) or "nan") < case.bound]


def refreshed(page: str, made: str) -> str:
    """The page with `made` between its markers."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{made}\n{END}{after}"


def main() -> None:
    """Measure everything, print the table and put it on the page."""
    silence()
    made = table({case: measured(case) for module in modules() for case in module.CASES})
    print(made)
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
