"""The command `sdpo`: the subcommands, and the one place where errors become lines and exit codes."""

import os
import sys
import traceback
from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated, Any

import typer

from sdpo_cli import __version__
from sdpo_cli.commands import plugins
from sdpo_cli.commands.bench import bench
from sdpo_cli.commands.compare import compare
from sdpo_cli.commands.eval import evaluate
from sdpo_cli.commands.export import export
from sdpo_cli.commands.sample import sample
from sdpo_cli.commands.score import score
from sdpo_cli.commands.serve_reward import serve_reward
from sdpo_cli.commands.train import OVERRIDE_REMEDY, train
from sdpo_cli.commands.usage import number_fault
from sdpo_cli.engine.training.team import launched
from sdpo_cli.errors import SdpoError, UsageError, one_line

INTERRUPTED = 130
"""Exit code after Ctrl-C; newer versions of Typer turn the exception into it, older ones into Abort."""

app = typer.Typer(
    name="sdpo",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would take a third of the time of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train")(train)
app.command("sample")(sample)
app.command("eval")(evaluate)
app.command("compare")(compare)
app.command("score")(score)
app.command("export")(export)
app.command("bench")(bench)
app.command("serve-reward")(serve_reward)
app.add_typer(plugins.app, name="plugins")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sdpo {__version__}")
        raise typer.Exit


def _one_process_alone(command: str | None) -> None:
    """Refuse to do several times what one process does; of several, rank 0 says so and the others leave."""
    rank, size = launched()
    if size > 1 and command != "train":
        if rank:
            raise typer.Exit
        remedy = "start it without torchrun, or unset WORLD_SIZE; only `sdpo train` shares its work"
        raise UsageError(f"runs in one process, and there are {size}", place=f"sdpo {command}", remedy=remedy)


@app.callback()
def sdpo(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Align few-step text-to-image models with a reward, by Stepwise Diffusion Policy Optimization.

    Start with: sdpo train recipes/quickstart.yaml
    """
    _one_process_alone(context.invoked_subcommand)


def main(argv: Sequence[str]) -> int:
    """Run the command line `argv` (without the program's name) and give the exit code.

    A user's fault is one `error:` line on stderr and the exit code of its class; a bug shows its traceback and gives 1.
    With SDPO_DEBUG=1 a fault shows its traceback too.
    """
    try:
        code = app(list(argv) or ["--help"], prog_name="sdpo", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:
            return _report(["interrupted"], INTERRUPTED)
        return code if isinstance(code, int) else 0
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except (KeyboardInterrupt, typer.Abort):
        return _report(["interrupted"], INTERRUPTED)
    except SdpoError as error:
        if os.environ.get("SDPO_DEBUG") == "1":
            traceback.print_exc()
        return _report(str(error).splitlines(), error.exit_code)
    except Exception as error:
        if hasattr(error, "format_message"):  # Click's usage errors; Typer carries its own Click, which has no name
            return _report([number_fault(error) or _usage_fault(error, argv)], 2)
        traceback.print_exc()
        return _report(["this is a bug in sdpo or in a plug-in; please report it with the lines above"], 1)


def _usage_fault(error: Any, argv: Sequence[str]) -> str:
    """Click's message as `fault; remedy`."""
    message = error.format_message().replace(". Did you", "; did you").replace("Value error, ", "").rstrip(".")
    context = getattr(error, "ctx", None)
    remedy = f"see `{context.command_path if context else _command_path(argv)} --help`"
    if context is None and getattr(error, "option_name", "") == "--override":
        remedy = OVERRIDE_REMEDY
    fault = message[:1].lower() + message[1:]
    return one_line(f"{fault} {remedy}") if fault.endswith("?") else one_line(fault, remedy=remedy)


def _command_path(argv: Sequence[str]) -> str:
    """The command that `argv` names before its first option; Click does not say it of an option without its value."""
    words = list(takewhile(lambda word: not word.startswith("-"), argv))
    return " ".join(["sdpo", *words[: 2 if words[:1] == ["plugins"] else 1]])


def _report(lines: Sequence[str], code: int) -> int:
    for line in lines:
        print(f"error: {line}", file=sys.stderr)
    return code
