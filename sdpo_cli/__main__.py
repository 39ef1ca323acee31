"""`python -m sdpo_cli`: the same program as the console script `sdpo`."""

import sys

from sdpo_cli.main import main


def run() -> None:
    """Run the command line and exit with its code."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
