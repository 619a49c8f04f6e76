"""Files that bpgan writes and reads back: replaced as a whole, locked, and read as what they must be or refused.

A reader here never raises anything but ``Damaged``: bytes that are no text, JSON that is torn or nested without end,
keys that are missing, doubled or of another type, numbers that no 64 bits hold, and a directory, a pipe or a dangling
link where the file should be are all one kind of error, of one line.
"""

import contextlib
import csv
import errno
import fcntl
import json
import os
import pathlib
import secrets
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Annotated, Any, TypeVar

import msgspec

from bpgan.types import UserError

Count = Annotated[int, msgspec.Meta(ge=0)]
Scalar = str | bool | int | float | None
"""What a flag or a log line may hold."""

_MOST_BYTES = 1 << 28  # of one JSON document; bpgan's own are a thousand times smaller
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Of a disk without locks: Lustre without ``-o flock``, some NFS."""

_T = TypeVar("_T")


class Damaged(UserError):
    """A file that is not what was written there.

    Args:
      path: of the file, which the message begins with.
      reason: what is wrong, and at which key.
    """

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = pathlib.Path(path), reason


def decode(raw: bytes, kind: type[_T]) -> _T:
    """JSON as a value of a type that msgspec knows: a ``Struct``, a ``TypedDict``, ``dict[str, float]``, ``Any``, ...

    NaN and Infinity, which Python writes, are numbers. Keys that a ``Struct`` does not name are ignored.

    Raises:
      ValueError: says in one line what is wrong, and at which key.
    """
    try:
        value = _PARSER.decode(raw.decode())
        if b"\\ud" in raw or b"\\uD" in raw:  # half a character cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
        return convert(value, kind)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def convert(value: Any, kind: type[_T]) -> _T:
    """What ``json.loads`` makes of a document, as ``decode`` would. Raises ValueError."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        reason, _, at = str(error).replace("`", "").partition(" - at $")
        key = _full_key(value, kind, at.lstrip("."))
        raise ValueError(f"{key}: {reason}" if key else reason) from None


def _full_key(value: Any, kind: Any, key: str) -> str:
    """``metrics['loss']`` for msgspec's ``metrics[...]``: which entry of a dictionary it is that does not fit."""
    name, dots, rest = key.partition("[...]")
    whole = value if isinstance(value, dict) else {}
    entries = whole.get(name) if name else whole
    for each, entry in entries.items() if dots and isinstance(entries, dict) else ():
        one = {each: entry}
        try:
            msgspec.convert({**whole, name: one} if name else one, kind)
        except msgspec.ValidationError:
            return f"{name}[{each[:60]!r}]{rest}"
    return key


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated[:60]!r} occurs twice")
    return found


def _within_64_bits(digits: str) -> int:
    """JSON's whole numbers have no end; of the longer ones NumPy makes objects, and ``float`` overflows."""
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        raise ValueError(f"the number {digits[:20]}... has more than 64 bits")
    return int(digits)


_PARSER = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_int=_within_64_bits)


def read_json(path: str | os.PathLike, kind: type[_T]) -> _T | None:
    """The document in a file as ``decode`` reads it; None if there is no such file.

    Raises:
      Damaged: if it is anything else.
    """
    raw = read_bytes(path, most=_MOST_BYTES)
    if raw is None:
        return None
    try:
        return decode(raw, kind)
    except ValueError as error:
        raise Damaged(path, f"is damaged ({error})") from None


def read_bytes(
    path: str | os.PathLike, *, most: int | None = None, first: int | None = None
) -> bytes | None:
    """What is in a file, or the ``first`` bytes of it; None if there is none.

    Raises:
      Damaged: if it is no file, has more than ``most`` bytes, or cannot be read.
    """
    try:
        about = os.stat(path)
        if stat.S_ISDIR(about.st_mode):
            raise Damaged(path, "is a directory and must be a file")
        if not stat.S_ISREG(about.st_mode):  # a pipe or a device, which might never end
            raise Damaged(path, "is no regular file")
        if most is not None and about.st_size > most:
            raise Damaged(path, f"has {about.st_size:,} bytes and must have at most {most:,}")
        if first is None:
            return pathlib.Path(path).read_bytes()
        with open(path, "rb") as file:
            return file.read(first)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise Damaged(path, "is a link to a file that is not there") from None
        return None
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror})") from None


@contextlib.contextmanager
def replaced(path: str | os.PathLike, *, shared: bool = False) -> Iterator[pathlib.Path]:
    """Where to write what takes the place of ``path`` once the block has ended; until then a reader sees the old file.

    Of a block that raises, nothing is left.

    Args:
      path: of the file.
      shared: whether several processes may write it at the same time; then the last one counts.
    """
    path = pathlib.Path(path)
    own = f".{os.getpid()}-{secrets.token_hex(4)}.partial"
    temporary = path.with_name(path.name + (own if shared else ".tmp"))
    temporary.unlink(missing_ok=True)  # a link there would lead to another file
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def lock(file: int | IO[Any], waiting: str | None = None) -> str:
    """Locks an open file for this process, until it is closed or the process ends.

    Args:
      file: open.
      waiting: what to say while another process has the lock, before waiting for it. None: do not wait.

    Returns:
      Why it is not locked, for not every disk has locks; empty if it is.

    Raises:
      BlockingIOError: if another process has the lock.
      OSError: if the disk fails.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        if waiting is None:
            raise BlockingIOError(errno.EAGAIN, "another process has the lock") from None
        if waiting:
            print(waiting, file=sys.stderr, flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return error.strerror or str(error)
    return ""


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[str]:
    """Locks a file, which is made if need be, while the block runs. Its content stays.

    Yields:
      Why it is not locked; see ``lock``.

    Raises:
      BlockingIOError: if another process has the lock.
      OSError: if the file cannot be opened.
    """
    # A link would lead to another file, and a pipe would wait for its other end.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(path, flags, 0o666), "rb+", buffering=0) as file:
        unlocked = lock(file)
        if not unlocked and not is_at(file.fileno(), path):
            raise BlockingIOError(errno.EAGAIN, "whoever had the lock has just removed it")
        yield unlocked


def is_at(descriptor: int, path: str | os.PathLike) -> bool:
    """Whether an open file still has that name."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes ``value`` as JSON, whole or not at all. Raises OSError."""
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_csv(path: str | os.PathLike, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table under the names of its columns, whole or not at all. Raises OSError.

    Numbers are written in full. Text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    with replaced(path) as temporary:
        # A path may be no text.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows(map(_cell, row) for row in (names, *rows))


def append_csv(path: str | os.PathLike, row: Sequence[Any]) -> None:
    """Adds a row to a table that ``write_csv`` wrote. Raises OSError."""
    with open(path, "a", encoding="utf-8", errors="backslashreplace", newline="") as file:
        csv.writer(file, lineterminator="\n").writerow(map(_cell, row))


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet computes: ``=``, ``+``, ``-`` and ``@`` begin a formula, but for numbers."""
    text = str(value)
    if isinstance(value, int | float) or not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return value
