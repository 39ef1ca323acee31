"""Shows what an engine function reports: one live display on a terminal, plain lines elsewhere, nothing when quiet."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sdpo_cli.engine.events import EpochDone, Event, FileWritten, Note, Resumed, StageStarted

T = TypeVar("T")

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKLINE_WIDTH = 24


@dataclass(frozen=True)
class Progress:
    """What is known of a run so far.

    Attributes:
        stage: what is being done; empty before the first event.
        epoch, epochs: which of how many, from 1; 0 before and without training.
        done: the epochs that have ended, oldest first.
    """

    stage: str = ""
    epoch: int = 0
    epochs: int = 0
    done: tuple[EpochDone, ...] = ()


def show(events: Generator[Event, None, T], console: Console, *, quiet: bool = False) -> T:
    """Run `events` to its end, showing them on `console` (stderr), and give what it returns.

    Whatever it raises passes through.
    """
    returned: list[T] = []

    def followed() -> Iterator[Event]:
        returned.append((yield from events))

    with closing(events):
        if quiet:
            for _ in followed():
                pass
        elif console.is_terminal and not console.is_dumb_terminal:
            show_live(followed(), console)
        else:
            show_plain(followed(), console)
    return returned[0]


def show_live(events: Iterable[Event], console: Console) -> None:
    """One display redrawn in place; notes and files scroll by above it."""
    progress = Progress()
    with Live(console=console, auto_refresh=False, redirect_stdout=False) as live:
        for event in events:
            if line := spoken(event):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            progress = advance(progress, event)
            live.update(frame(progress, ascii_only=console.options.ascii_only), refresh=True)


def show_plain(events: Iterable[Event], console: Console) -> None:
    """One line an epoch, note, file, or stage that has something to add."""
    progress = Progress()
    for event in events:
        progress = advance(progress, event)
        if isinstance(event, EpochDone):
            line = epoch_line(progress)
        elif isinstance(event, StageStarted) and event.detail:
            line = progress.stage
        else:
            line = spoken(event)
        if line:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def spoken(event: Event) -> str:
    """What a note or a written file says; empty for other events."""
    match event:
        case Resumed(epoch, epochs):
            return f"resumed after epoch {epoch} of {epochs}"
        case FileWritten(path, what):
            return f"{what}: {path}"
        case Note(text):
            return text
    return ""


def advance(progress: Progress, event: Event) -> Progress:
    """The progress after `event`."""
    match event:
        case StageStarted(stage, epoch, epochs, detail):
            said = f"{stage}: {detail}" if detail else stage
            return replace(progress, stage=said, epoch=epoch or progress.epoch, epochs=epochs or progress.epochs)
        case EpochDone(epoch, epochs):
            return replace(progress, epoch=epoch, epochs=epochs, done=(*progress.done, event))
    return progress


def frame(progress: Progress, *, ascii_only: bool = False) -> RenderableType:
    """The live display: where the work is, and once an epoch has ended its speed and rewards."""
    if not progress.stage:
        return Text()
    place = Table.grid(padding=(0, 2))
    cells: list[RenderableType] = [Text(heading(progress), style="bold"), Text(progress.stage, style="cyan")]
    if progress.epochs:
        cells.insert(1, ProgressBar(total=progress.epochs, completed=epochs_behind(progress), width=16))
    for _ in cells:
        place.add_column(no_wrap=True)
    place.add_row(*cells)
    if not progress.done:
        return place
    return Group(place, Text(pace(progress), no_wrap=True), *reward_lines(progress.done, ascii_only=ascii_only))


def pace(progress: Progress) -> str:
    """Speed of the last epoch, and the time left while there is any."""
    left = seconds_left(progress)
    return f"{speed(progress.done[-1])}, {duration(left)} left" if left else speed(progress.done[-1])


def reward_lines(done: tuple[EpochDone, ...], *, ascii_only: bool) -> list[Text]:
    """Reward at the first and at the last step: its latest value, its change since the first, and its course."""
    lines = []
    for key, label in (("reward_first", "reward at first step"), ("reward_last", "reward at last step ")):
        values = [epoch.metrics[key] for epoch in done if key in epoch.metrics]
        if values:
            course = "" if ascii_only else sparkline(values, SPARKLINE_WIDTH)
            line = f"{label} {values[-1]:8.4f} {values[-1] - values[0]:+9.4f}  {course}"
            lines.append(Text(line.rstrip(), no_wrap=True))
    return lines


def heading(progress: Progress) -> str:
    """`epoch 3/16`, `before training`, or nothing where there are no epochs."""
    if not progress.epochs:
        return ""
    return f"epoch {progress.epoch}/{progress.epochs}" if progress.epoch else "before training"


def epochs_behind(progress: Progress) -> int:
    """How many epochs are behind us, those of an earlier, resumed run included."""
    return progress.done[-1].epoch if progress.done else max(progress.epoch - 1, 0)


def epoch_line(progress: Progress) -> str:
    """One line of fixed width for the epoch that has just ended."""
    done = progress.done[-1]
    digits = len(str(done.epochs))
    first, last = number(done.metrics, "reward_first"), number(done.metrics, "reward_last")
    return (
        f"epoch {done.epoch:>{digits}}/{done.epochs}  images {done.metrics.get('images', 0):>7.0f}  "
        f"reward first {first} last {last}  {speed(done):>14}  {duration(seconds_left(progress)):>9} left"
    )


def number(metrics: Mapping[str, float], key: str) -> str:
    """A metric in nine columns; a dash where it was not measured."""
    return f"{metrics[key]:9.4f}" if key in metrics else f"{'-':>9}"


def speed(done: EpochDone) -> str:
    """Images per second over the whole epoch."""
    seconds = sum(done.seconds.values())
    images = done.metrics.get("images", 0) / done.epoch
    return f"{images / seconds:.1f} images/s" if seconds else ""


def seconds_left(progress: Progress) -> float:
    """The mean time of the epochs seen, times the epochs to come."""
    seen = [sum(epoch.seconds.values()) for epoch in progress.done]
    last = progress.done[-1]
    return sum(seen) / len(seen) * (last.epochs - last.epoch)


def duration(seconds: float) -> str:
    """`47s`, `3m 05s`, `2h 07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02}m"


def sparkline(values: list[float], width: int) -> str:
    """The latest `width` values as blocks, the smallest of all values lowest, the largest highest."""
    low, high = min(values), max(values)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values[-width:])
