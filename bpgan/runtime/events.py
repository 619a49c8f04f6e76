"""TensorBoard's view of a run: what its log and its sample grids say, and nothing else.

TensorBoard reads the event files of a folder in the order of their names. A writer therefore begins with a new file,
whose name comes after those that are there, in which everything that has been logged so far is said again. So no point
is lost or said twice, whatever became of the old files. The new file begins by saying that all points read before are
void. That and the old file, which is emptied and not removed, is for a TensorBoard that is watching: it would wait for
its file to come back.
"""

import importlib.util
import os
import pathlib
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

Event = Any  # the class is generated, and no type checker knows it

_NAME = re.compile(r"events\.out\.tfevents\.(\d+)\..*")
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by the color type of a PNG


class Writer:
    """Appends events to a new file in a folder, in the thread that calls it; what was written is the system's.

    Args:
      folder: made if need be. Once the new event file is complete, the last one before it is emptied, and older ones
        are removed.
      past: events of before.

    Raises:
      OSError: here and in every method, if the disk is full or fails.
    """

    def __init__(self, folder: pathlib.Path, past: Iterable[Event] = ()):
        event_pb2, _ = _messages()
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {p: int(m[1]) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))}
        name = f"events.out.tfevents.{max(numbers.values(), default=0) + 1:010d}.bpgan"
        temporary = folder / "events.tmp"  # a name that TensorBoard does not read
        temporary.unlink(missing_ok=True)  # of a process that was killed
        self._file = temporary.open("xb")
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        first = [
            event_pb2.Event(file_version="brain.Event:2"),
            event_pb2.Event(session_log=restart, step=0),
        ]
        try:
            for event in (*first, *past):
                self._file.write(_record(event.SerializeToString()))
            self._file.flush()
            os.replace(temporary, folder / name)
        except BaseException:
            self.close()
            raise
        before = [path for path in numbers if path.is_file() and not path.is_symlink()]
        before.sort(key=numbers.__getitem__)
        for old in before[:-1]:
            old.unlink()
        for old in before[-1:]:
            os.truncate(old, 0)

    def write(self, event: Event) -> None:
        """Appends an event."""
        self._file.write(_record(event.SerializeToString()))
        self._file.flush()

    def sync(self) -> None:
        """Returns when everything is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def scalars(step: int, values: Mapping[str, Any], time: float) -> Event:
    """The numbers among ``values``, each a point of the curve of its name; ``time`` in seconds since 1970."""
    event_pb2, summary_pb2 = _messages()
    points = [
        summary_pb2.Summary.Value(tag=name, simple_value=value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return event_pb2.Event(step=step, wall_time=time, summary=summary_pb2.Summary(value=points))


def image(step: int, name: str, png: bytes, time: float) -> Event:
    """A picture as it is in its PNG file."""
    event_pb2, summary_pb2 = _messages()
    width, height, _, color = struct.unpack(">IIBB", png[16:26])
    picture = summary_pb2.Summary.Image(
        width=width, height=height, colorspace=_CHANNELS.get(color, 3), encoded_image_string=png
    )
    summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, image=picture)])
    return event_pb2.Event(step=step, wall_time=time, summary=summary)


def hyperparameters(
    config: Mapping[str, Any], values: Mapping[str, float], time: float
) -> list[Event]:
    """A row of TensorBoard's table of hyper-parameters, with the final ``values`` as its metrics."""
    from tensorboardX import summary

    event_pb2, _ = _messages()
    parts = summary.hparams(dict(config), dict(values))
    events = [event_pb2.Event(wall_time=time, summary=part) for part in parts]
    return [*events, scalars(0, values, time)]


def missing() -> str:
    """Why no event file can be written here; empty if one can."""
    if importlib.util.find_spec("tensorboardX") is not None:
        return ""
    return (
        "no TensorBoard event files are written, which needs tensorboardX: pip install tensorboardX;"
        " a run that is resumed with it has them from its beginning"
    )


def _messages() -> tuple[Any, Any]:
    """The modules of TensorBoard's messages, which take a while to import."""
    from tensorboardX.proto import event_pb2, summary_pb2

    return event_pb2, summary_pb2


def _record(data: bytes) -> bytes:
    """A record of an event file: length, checksum of the length, data, checksum of the data."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return b"".join(
        (
            length,
            struct.pack("<I", masked_crc32c(length)),
            data,
            struct.pack("<I", masked_crc32c(data)),
        )
    )
