"""Shows what an engine function reports: one live display on a terminal, plain lines elsewhere, nothing when quiet."""

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sdpo_cli.engine.events import EpochDone, Event, FileWritten, Note, Resumed, RunDone, StageStarted

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
                console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
            progress = advance(progress, event)
            live.update(frame(progress, ascii_only=console.options.ascii_only), refresh=True)


def show_plain(events: Iterable[Event], console: Console) -> None:
    """One line an epoch, note, file, or stage that has something to add; of the first epoch, one for every stage."""
    progress = Progress()
    for event in events:
        progress = advance(progress, event)
        if isinstance(event, EpochDone):
            line = epoch_line(progress)
        elif isinstance(event, StageStarted) and event.epoch and not progress.done:
            line = f"{heading(progress)}: {progress.stage}"
        elif isinstance(event, StageStarted) and event.detail:
            line = progress.stage
        else:
            line = spoken(event)
        if line:
            console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)


def spoken(event: Event) -> str:
    """What a note, a written file or a finished run says; empty for other events."""
    match event:
        case RunDone(left, seconds):
            return f"about {duration(seconds)} left for {left} more run{'s' if left > 1 else ''}"
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
            if stage == "load":  # a run begins; a comparison has several
                return Progress(said, epoch, epochs)
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
    """Speed of the last epoch, and the time left while there are epochs to come; the evaluation is not counted."""
    left, done = seconds_left(progress), progress.done[-1]
    return f"{speed(done)} images/s, {duration(left)} left, then evaluation" if left else f"{speed(done)} images/s"


def reward_lines(done: tuple[EpochDone, ...], *, ascii_only: bool) -> list[Text]:
    """Reward at the first and at the last step: its latest value, its change since the first, and its course.

    The last alone where no other one earns a reward.
    """
    first, last = ([one.metrics[key] for one in done if key in one.metrics] for key in ("reward_first", "reward_last"))
    lines = []
    for label, values in (("reward at first step", first), ("reward at last step ", last)):
        if values and (values is last or values != last):
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
    """One line of fixed width for the epoch that has just ended: with up to 9999 epochs it fits 80 columns."""
    done, left = progress.done[-1], seconds_left(progress)
    place = f"epoch {done.epoch:>{len(str(done.epochs))}}/{done.epochs}"
    images, pace = f"{done.metrics.get('images', 0):>7.0f} images", f"{speed(done)}/s"
    reward = f"{done.metrics['reward_last']:9.4f}" if "reward_last" in done.metrics else f"{'-':>9}"
    rest = f"{duration(left)} left + eval" if left else "then eval"
    return f"{place}  {images}  {pace:>7}  reward {reward}  {rest:>19}"


def speed(done: EpochDone) -> str:
    """Images per second over the whole epoch."""
    seconds = sum(done.seconds.values())
    images = done.metrics.get("images", 0) / done.epoch
    return f"{images / seconds:.1f}" if seconds else "-"


def seconds_left(progress: Progress) -> float:
    """The mean time of the epochs seen, times the epochs to come. The first, which may compile, counts while alone."""
    seen = [sum(epoch.seconds.values()) for epoch in progress.done]
    seen = seen[1:] or seen
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
