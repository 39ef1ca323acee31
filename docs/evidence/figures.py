"""The figures of docs/evidence.md, from docs/evidence/results: `python docs/evidence/figures.py`.

`STUDY=FOLDER python docs/evidence/figures.py` draws those of a study of your own, into its folder.
"""

from pathlib import Path

from arms import MEASURES
from reading import FOLDER, HOLDING, STEPS, read

from sdpo_cli.engine.comparing.figure import draw_comparison, draw_trade_off

HERE = Path(__file__).parent
PLACE = HERE if FOLDER.parent == HERE else FOLDER


def main() -> None:
    """What each reward costs, and style over pictures and queries."""
    for reward, measure in MEASURES.items():
        runs = [run for seeds in read(reward).values() for run in seeds]
        (PLACE / f"{reward}.png").write_bytes(draw_trade_off(runs, STEPS, measure, HOLDING))
        if reward == "style":
            (PLACE / "style-4.png").write_bytes(draw_comparison(runs, 4, (measure, HOLDING.measure)))


if __name__ == "__main__":
    main()
