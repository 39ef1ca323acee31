"""TensorBoard events, written at once and by this thread: a full disk is seen, and nothing is lost at a kill."""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdpo_cli.engine.disk.files import writing

FILE = "events.out.tfevents.0.sdpo"


class Board:
    """The events of a run, one scalar for each metric, against the pictures drawn so far.

    Making one writes the file anew from `rows`, the epochs that are there already: a resumed run has no point twice.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, int | float]]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import RecordWriter

        with writing(folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self.folder, self.writer = folder, RecordWriter(str(folder / FILE))
            self.writer.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        for row in rows:
            self.add(row)

    def add(self, metrics: Mapping[str, int | float], group: str = "train") -> None:
        """The scalars of one epoch. ArtifactError where they cannot be written."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with writing(self.folder):
            for name, value in metrics.items():
                tag = name if "/" in name else f"{group}/{name}"
                event = Event(wall_time=time.time(), step=int(metrics["images"]), summary=scalar(tag, value))
                self.writer.write(event.SerializeToString())
            self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        with writing(self.folder):
            self.writer.close()
