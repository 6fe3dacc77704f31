"""A training run's numbers for TensorBoard, a file of events a process that trains.

torch's `SummaryWriter` writes from a thread of its own: where the disk is full, that thread dies with a traceback, some
steps later, in place of a sentence.
"""

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from featstore.store.full_disk import writing

EVENT_BYTES = 96
"""Of a number in the file, name and step included, at most."""

_FORMAT = "brain.Event:2"


class Board:
    """Writes into a new file of a folder. Every method, and making one, raises `StoreError` or `DiskFullError` where
    the disk does not take it."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """first_step: TensorBoard forgets what earlier files of the folder say of it and of later ones."""
        self._file = folder / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        with writing(str(self._file)):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(self._file.open("wb"))
        self._write(Event(file_version=_FORMAT))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        self.flush()

    def add(self, name: str, value: float, step: int) -> None:
        """One number of one step."""
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)])))

    def flush(self) -> None:
        """Hand everything so far to the disk."""
        with writing(str(self._file)):
            self._writer.flush()

    def close(self) -> None:
        """Nothing more comes."""
        with writing(str(self._file)):
            self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with writing(str(self._file)):
            self._writer.write(event.SerializeToString())
