"""What is said of an option that should be a number; Typer's own sentences differ from version to version."""

from inspect import unwrap
from typing import Any, get_args, get_type_hints

from sdpo_cli.errors import one_line

NUMBERS = {int: "a whole number", float: "a number"}


def number_fault(error: Any) -> str:
    """`--steps: 'abc' should be a whole number, 1 or more` of a usage error; empty where it is of something else."""
    option, context = getattr(error, "param", None), getattr(error, "ctx", None)
    if option is None or context is None or context.command.callback is None:
        return ""
    hint = get_type_hints(unwrap(context.command.callback), include_extras=True).get(option.name)
    kind, *told = get_args(hint) or (None,)
    words = next((NUMBERS[one] for one in (kind, *get_args(kind)) if one in NUMBERS), None)
    found = getattr(error.__cause__, "errors", list)()
    if words is None or not told or not found:
        return ""
    value, wanted = str(found[0]["input"]), f"{words}{bounds(told[0].min, told[0].max)}"
    return one_line(f"{value!r} should be {wanted}", option.opts[0])


def bounds(low: float | None, high: float | None) -> str:
    """`, 1 or more`, ` from 0 to 1`, or nothing."""
    if low is None:
        return ""
    return f", {low} or more" if high is None else f" from {low} to {high}"
