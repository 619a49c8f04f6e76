"""Record files in plain Python: what stands in for array_record where that is not installed.

A file is a head, which says how long every record is, then the records, each with its CRC-32. Neither library reads
the other's files: a cache that the other one wrote counts as damaged, and is made again.
"""

import os
import struct
import weakref
import zlib
from collections.abc import Sequence

_MAGIC = b"bpgan flat records\n\x00\x00\x00\x00\x01"
_HEAD = struct.Struct(f"<{len(_MAGIC)}sQ")
_CHECKSUM = struct.Struct("<I")


class ArrayRecordWriter:
    """Writes records of one length.

    Args:
      path: of the file.
      options: as of array_record; not used.
    """

    def __init__(self, path: str, options: str = ""):
        self._file = open(path, "wb")
        self._length: int | None = None

    def write(self, record: bytes) -> None:
        """Appends a record. Raises RuntimeError if it is of another length."""
        if self._length is None:
            self._begin(len(record))
        if len(record) != self._length:
            raise RuntimeError(f"a record of {len(record)} bytes, must have {self._length}")
        self._file.write(record + _CHECKSUM.pack(zlib.crc32(record)))

    def close(self) -> None:
        """Ends the file."""
        if self._length is None:
            self._begin(0)
        self._file.close()

    def _begin(self, length: int) -> None:
        self._length = length
        self._file.write(_HEAD.pack(_MAGIC, length))


class ArrayRecordReader:
    """Reads records by their numbers; threads may share it. All methods raise RuntimeError if the file is damaged.

    Args:
      path: of the file.
      options: as of array_record; not used.
    """

    def __init__(self, path: str, options: str = ""):
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        head = os.pread(self._descriptor, _HEAD.size, 0)
        if len(head) < _HEAD.size or _HEAD.unpack(head)[0] != _MAGIC:
            raise RuntimeError(
                "no flat records; array_record, which may have written it, is missing"
            )
        self._length = _HEAD.unpack(head)[1]
        self._stride = self._length + _CHECKSUM.size
        self._count, rest = divmod(os.fstat(self._descriptor).st_size - len(head), self._stride)
        if rest:
            raise RuntimeError("it ends within a record")

    def num_records(self) -> int:
        """How many there are."""
        return self._count

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The records of these numbers, in this order."""
        return [self._record(i) for i in indices]

    def _record(self, index: int) -> bytes:
        raw = os.pread(self._descriptor, self._stride, _HEAD.size + index * self._stride)
        record, checksum = raw[: self._length], raw[self._length :]
        if checksum != _CHECKSUM.pack(zlib.crc32(record)):
            raise RuntimeError(f"the checksum of record {index} differs")
        return record
