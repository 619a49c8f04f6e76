"""Run directories on an object store, ``gs://`` or ``s3://``: the only module that knows of them.

What is on a store is copied to a staging directory of this machine, and everything else works there. While it does, a
thread uploads what changes, in an order that leaves a sound run on the store whenever the process is killed:

* A file counts once it is uploaded as a whole, and a checkpoint once its manifest is, which is its last file.
* A checkpoint is uploaded after the log that it was saved with, and older ones are deleted after it.
* What a run takes back as it goes on, such as its old result, is deleted before anything is uploaded.

The store is the truth: a run goes on from what is there. Only one process at a time may write; see ``_Lock``.
"""

import concurrent.futures
import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bpgan import files
from bpgan.runtime import distributed, environment, peers, records, signals
from bpgan.types import UserError

EVERY = "BPGAN_STORE_EVERY"
"""In the environment: seconds between two uploads of what has changed, 10 by default."""

PATIENCE = "BPGAN_STORE_PATIENCE"
"""In the environment: seconds for which a store may be out of reach before a run is stopped, 300 by default."""

LEASE = "BPGAN_STORE_LEASE"
"""In the environment: seconds without a sign of life after which a run counts as abandoned, 60 by default."""

STAGING = "BPGAN_STAGING"
"""In the environment: the folder for staging directories; by default that for temporary files."""

STORES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
"""By scheme: the package that speaks with the store, and the extra of bpgan that installs it."""

_SECONDS = {EVERY: 10.0, PATIENCE: 300.0, LEASE: 60.0}
_LOCK, _LOG = ".lock", "metrics.jsonl"
_AT_ONCE = 8  # transfers
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHECKPOINT = re.compile(r"(?:(.*)/)?checkpoints/(\d+)/(.+)")


class Away(Exception):
    """A run was stopped because its store is out of reach, or it was taken over; the same command goes on."""


class _Trouble(Exception):
    """What a store says to a request that it does not fulfill, in one line."""


class _TakenOver(Exception):
    """Another process has the lock now."""


def is_url(place: str | os.PathLike) -> bool:
    """Whether a place is on a store, and no folder of this machine."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def check_place(text: str) -> None:
    """Accepts a folder of this machine, or one on a store that can be spoken with.

    Raises:
      ValueError: for any other URL, a store whose package is not installed, or what is no path.
    """
    scheme = _SCHEME.match(text)
    if scheme is None or scheme[1] not in STORES:
        kinds = ", or " + " or ".join(f"{name}://BUCKET/FOLDER" for name in STORES)
        environment.check_path(text, kinds)
        return
    package, extra = STORES[scheme[1]]
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"needs the package {package}: pip install {package}, or bpgan[{extra}]")
    bucket, *folders = text[scheme.end() :].rstrip("/").split("/")
    if not bucket or {"", ".", ".."} & set(folders):
        raise ValueError(f"must be {scheme[1]}://BUCKET/FOLDER")
    for name in _SECONDS:
        _seconds(name)


def join(place: str | os.PathLike, *names: str) -> str:
    """A place inside another one, as text."""
    return (
        "/".join([str(place).rstrip("/"), *names]) if is_url(place) else os.path.join(place, *names)
    )


@contextlib.contextmanager
def staged(place: str | os.PathLike, *, of_run: bool = True) -> Iterator[pathlib.Path]:
    """Where to work on what is at a place, alone; for a folder of this machine that is the folder itself.

    When the block ends, however it does, everything is on the store. Several processes that train one run stage it
    together, each for itself; what the first of them writes is uploaded.

    Args:
      place: a folder, or the URL of one.
      of_run: it is to be a run directory: others are refused before anything is copied.

    Raises:
      UserError: if the store cannot be used, or another process works there.
      Away: if the store was out of reach for too long, or another process has taken over.
    """
    if not is_url(place):
        yield pathlib.Path(place)
        return
    url = _checked(place)
    lead = not peers.is_joined() or distributed.is_lead()
    with _staging_directory(url) as folder, _named_as(url, folder):
        store = _Store(url)
        lock = _Lock(store)
        with contextlib.ExitStack() as stack:
            with _refused(url):
                if lead:
                    lock.acquire()
                    stack.callback(lock.release)
                _wait_for_all()  # the store is as the process before this one has left it
                mirror = _Mirror(store, folder)
                mirror.pull(of_run=of_run)
                _wait_for_all()  # and nothing on it changes before all have it
            if lead:
                stack.enter_context(_Uploads(mirror, lock))
                print(
                    f"{url}: the directory here is {folder}; what changes is uploaded every"
                    f" {_seconds(EVERY):g} s",
                    flush=True,
                )
            yield folder


@contextlib.contextmanager
def visited(
    place: str | os.PathLike, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[pathlib.Path]:
    """A copy of what is at a place, where another process may be working; for a folder of this machine the folder.

    What the block has changed or added is uploaded at its end, if no error ends it. Nothing is deleted.

    Args:
      place: a folder, or the URL of one.
      wanted: which of the files are needed, by their names relative to the place.

    Raises:
      UserError: if the store cannot be used.
    """
    if not is_url(place):
        yield pathlib.Path(place).expanduser()
        return
    url = _checked(place)
    with tempfile.TemporaryDirectory(prefix="bpgan-", dir=_staging_root()) as home:
        folder = pathlib.Path(home, _basename(url))
        folder.mkdir()
        with _named_as(url, folder), _refused(url):
            mirror = _Mirror(_Store(url), folder)
            mirror.pull(wanted)
            yield folder
            mirror.push(delete=False)


def _checked(place: str | os.PathLike) -> str:
    """A URL without its last slash. Raises UserError if ``check_place`` refuses it."""
    try:
        check_place(str(place))
    except ValueError as error:
        raise UserError(str(error), argument="workdir", value=place) from None
    return str(place).rstrip("/")


def in_run(*, checkpoints: bool | str = False) -> Callable[[str], bool]:
    """Which files of runs to visit: all but the checkpoints, or the records and checkpoints.

    Args:
      checkpoints: True for all of them, the step of one, or False.
    """

    known = ("config.json", records.TERMS)

    def wanted(name: str) -> bool:
        found = _CHECKPOINT.fullmatch(name)
        if isinstance(checkpoints, str):
            return found[2] == checkpoints if found else name in known
        if checkpoints:
            return bool(found) or name in known
        return "checkpoints" not in name.split("/")

    return wanted


def _seconds(name: str) -> float:
    """What the environment says. Raises ValueError if that is no number above 0."""
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else _SECONDS[name]
        if not 0 < value < 1e9:
            raise ValueError
    except ValueError:
        raise ValueError(f"{name}={text}: must be seconds, above 0") from None
    return value


def _basename(url: str) -> str:
    return _SCHEME.sub("", url).rpartition("/")[2]


def _wait_for_all() -> None:
    if peers.is_joined():
        distributed.agree(True)


def _staging_root() -> pathlib.Path:
    """The folder of this user for staging directories, which nobody else may use."""
    root = pathlib.Path(os.environ.get(STAGING) or tempfile.gettempdir(), f"bpgan-{os.getuid()}")
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = os.lstat(root)
        if root.is_symlink() or about.st_uid != os.getuid():
            raise UserError(f"{root}: belongs to another user; {STAGING} must name another folder")
        tempfile.TemporaryFile(dir=root).close()
    except OSError as error:
        raise UserError(
            f"{root}: cannot be written ({error.strerror}); {STAGING} says where"
        ) from None
    return root


@contextlib.contextmanager
def _staging_directory(url: str) -> Iterator[pathlib.Path]:
    """An empty directory, always the same for a URL and a process of several; it is removed again.

    What a process that was killed has left there is removed before: the store is the truth.
    """
    index = f"-{distributed.index()}" if peers.is_joined() else ""
    home = _staging_root() / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}{index}"
    folder = home / _basename(url)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(home.with_suffix(".lock")))
        except BlockingIOError:
            reason = "another process is training here"
            raise UserError(reason, argument="workdir", value=url) from None
        shutil.rmtree(home, ignore_errors=True)
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder


@contextlib.contextmanager
def _named_as(url: str, folder: pathlib.Path) -> Iterator[None]:
    """Errors name the URL in the place of its staging directory, of which users know nothing."""

    def named(value: Any) -> Any:
        text = str(value)
        return text.replace(str(folder), url) if isinstance(value, str | pathlib.Path) else value

    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError):  # whose arguments are a number and a text
            error.args = tuple(map(named, error.args))
        if isinstance(error, UserError):
            error.reason, error.value = named(error.reason), named(error.value)
        raise


@contextlib.contextmanager
def _refused(url: str) -> Iterator[None]:
    """A store that cannot be used is a mistake of the user, as long as nothing has begun."""
    try:
        yield
    except (_Trouble, _TakenOver) as error:
        raise UserError(f"cannot be used ({error})", argument="workdir", value=url) from None


class _Store:
    """What is under a URL, by names relative to it.

    Every method raises ``_Trouble`` for what goes wrong between here and the store.
    """

    def __init__(self, url: str):
        with self._asked():
            import fsspec

            self._files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self.url, self._root = url, str(root).rstrip("/")

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """The packages raise errors of many kinds, some of them bare ``Exception``."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            said = " ".join(str(error).split()) or "no answer"
            raise _Trouble(f"{type(error).__name__}: {said}"[:300]) from None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def find(self, folder: str = "") -> list[str]:
        """The names of all objects in a folder; none if there is no such folder."""
        with self._asked():
            try:
                found = self._files.find(self._path(folder), refresh=True)
            except FileNotFoundError:
                return []
        names = [str(path).removeprefix(f"{self._root}/") for path in found]
        # An object may be named after the folder, or as no file can be.
        return [n for n in names if not {"", ".", ".."} & set(n.split("/")) and n != self._root]

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is none."""
        with self._asked():
            try:
                return self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Replaces an object."""
        with self._asked():
            self._files.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Makes an object if there is none of its name; whether this is it now."""
        with self._asked():
            try:
                self._files.pipe_file(self._path(name), content, mode="create")
                return True
            except FileExistsError:  # perhaps made by this request, whose answer was lost
                return self._files.cat_file(self._path(name)) == content

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects, in this order; those that are gone are no error."""
        for name in names:
            with self._asked(), contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))

    def get(self, names: Sequence[str], folder: pathlib.Path) -> list[str]:
        """Copies objects into a folder; returns those that are gone meanwhile."""

        def one(name: str) -> bool:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with self._asked():
                    self._files.get_file(self._path(name), str(file))
                return True
            except FileNotFoundError:
                return False

        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            got = list(pool.map(one, names))
        return [name for name, there in zip(names, got, strict=True) if not there]

    def put(self, names: Sequence[str], folder: pathlib.Path) -> list[str]:
        """Copies files to the store; returns those that are gone meanwhile."""

        def one(name: str) -> bool:
            if not (folder / name).is_file():
                return False
            try:
                with self._asked():
                    self._files.put_file(str(folder / name), self._path(name))
                return True
            except FileNotFoundError:
                if (folder / name).is_file():  # then it is the bucket
                    raise _Trouble("there is no such bucket") from None
                return False

        with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
            sent = list(pool.map(one, names))
        return [name for name, there in zip(names, sent, strict=True) if not there]


class _Lock:
    """The right to write under a URL, which one process has at a time.

    The lock is the object ``.lock/N`` of the greatest N. It says who holds it, and its holder writes it anew four times
    in each lease. A store makes an object of a name for one of those who ask only; so who finds the lock released, or
    without a sign of life for a whole lease, makes the one of N + 1. No clocks are compared. Whoever finds that there
    is a greater N than its own has lost the lock, and writes nothing more.
    """

    def __init__(self, store: _Store):
        self._store, self._number, self._beats = store, 0, 0
        self._lease, self._turn = _seconds(LEASE), threading.Lock()
        self._seen = 0.0
        self._owner = {
            "owner": secrets.token_hex(8),
            "host": socket.gethostname(),
            "process": _process(os.getpid()),
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def acquire(self) -> None:
        """Raises UserError if another process has the lock and is alive."""
        last = self._newest()
        if last:
            self._wait_for_the_end_of(last)
        self._number = last + 1
        if not self._store.create(self._name(self._number), self._content()):
            raise self._busy({})
        if self._newest() > self._number:  # this process was asleep, and others have come and gone
            self._store.delete([self._name(self._number)])
            raise self._busy({})
        self._seen = time.monotonic()
        self._store.delete(self._name(n) for n in self._numbers() if n < self._number)

    def beat(self) -> None:
        """Gives a sign of life. Raises _TakenOver if another process has the lock."""
        with self._turn:
            now = time.monotonic()
            if self._newest() > self._number:
                self._seen = -self._lease  # from now on nothing is written without asking
                raise _TakenOver("another process has taken over this run")
            self._beats += 1
            self._store.write(self._name(self._number), self._content())
            self._seen = now

    def check(self) -> None:
        """As ``beat``, unless the last sign of life is so new that no other process can have the lock."""
        if time.monotonic() - self._seen > self._lease / 2:
            self.beat()

    @property
    def interval(self) -> float:
        """Seconds between two signs of life."""
        return self._lease / 4

    def release(self) -> None:
        """Gives the lock back; where nothing else is on the store, it is removed."""
        with contextlib.suppress(_Trouble), self._turn:
            if self._newest() == self._number:
                self._store.write(self._name(self._number), self._content(released=True))
                if all(name.startswith(f"{_LOCK}/") for name in self._store.find()):
                    self._store.delete([self._name(self._number)])

    def _name(self, number: int) -> str:
        return f"{_LOCK}/{number:08d}"

    def _numbers(self) -> list[int]:
        names = (name.rpartition("/")[2] for name in self._store.find(_LOCK))
        return [int(name) for name in names if name.isdecimal()]

    def _newest(self) -> int:
        return max(self._numbers(), default=0)

    def _content(self, released: bool = False) -> bytes:
        said = self._owner | {"beats": self._beats, "released": released}
        return json.dumps(said).encode()

    def _wait_for_the_end_of(self, number: int) -> None:
        """Returns when the holder of a lock has given it back or counts as dead. Raises UserError if it lives."""
        first = self._store.read(self._name(number))
        holder = _holder(first)
        if holder.get("released") or first is None:
            return
        known = _is_running(str(holder.get("process", "")))
        if known is not None:
            if known:
                raise self._busy(holder)
            return
        host = records.printable(str(holder.get("host", "another machine")))[:100]
        print(
            f"a process on {host} was at work here last; waiting up to {self._lease:g} s for a sign of its life",
            flush=True,
        )
        deadline = time.monotonic() + self._lease
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._lease / 20))
            now = self._store.read(self._name(number))
            if _holder(now).get("released"):
                return
            if now != first:
                raise self._busy(holder)

    def _busy(self, holder: Mapping[str, Any]) -> UserError:
        who = f" (on {records.printable(str(holder['host']))[:100]})" if "host" in holder else ""
        reason = f"another process{who} is training here"
        return UserError(reason, argument="workdir", value=self._store.url)


def _holder(content: bytes | None) -> dict[str, Any]:
    """What a lock says; nothing if it is damaged."""
    try:
        return files.decode(content or b"{}", dict[str, Any])
    except ValueError:
        return {}


def _process(number: int) -> str:
    """A name that no other process ever has, of any machine; empty where the system does not tell."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = os.readlink("/proc/self/ns/pid")
        about = pathlib.Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
        return f"{boot} {space} {number} {about.rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return ""


def _is_running(process: str) -> bool | None:
    """Whether a process by that name is running; None if it is one of another machine, or that is not known."""
    here, parts = _process(os.getpid()).split(), process.split()
    if len(parts) != 4 or parts[:2] != here[:2] or not parts[2].isdecimal():
        return None
    return _process(int(parts[2])) == process


class _Signature(NamedTuple):
    """What changes when a file does."""

    size: int
    changed: int
    inode: int


class _Mirror:
    """A staging directory and what the store has of it."""

    def __init__(self, store: _Store, folder: pathlib.Path):
        self._store, self._folder = store, folder
        self._sent: dict[str, _Signature | None] = {}  # of what is on the store, as it was here

    def pull(
        self, wanted: Callable[[str], bool] = lambda name: True, *, of_run: bool = False
    ) -> None:
        """Copies everything that counts, into an empty directory.

        Raises:
          UserError: if it is to be that of a run, and holds something else.
        """
        names = [name for name in self._store.find() if not name.startswith(f"{_LOCK}/")]
        whole = {_checkpoint_of(name) for name in names if _is_manifest(name)}
        entries = {name.partition("/")[0] for name in names}
        if of_run and "config.json" not in entries and entries - {"checkpoints"}:
            raise UserError(
                "is not empty and holds no bpgan run; name a new or empty directory",
                argument="workdir",
                value=self._folder,
            )
        parts = [name for name in names if wanted(name)]
        left = {n for n in parts if _checkpoint_of(n) and _checkpoint_of(n) not in whole}
        parts = [name for name in parts if name not in left]
        gone = self._store.get(parts, self._folder)
        for checkpoint in {_checkpoint_of(name) for name in gone} - {None}:  # deleted by its run
            shutil.rmtree(self._folder / str(checkpoint), ignore_errors=True)
        here = _scan(self._folder)
        # What is of no whole checkpoint counts as on the store, and as deleted here.
        self._sent = {name: here.get(name) for name in {*parts, *left} - {*gone}}

    def push(self, check: Callable[[], None] = lambda: None, *, delete: bool = True) -> None:
        """Makes the store hold what is here; see the module.

        Args:
          check: called before each part, it raises if this process may not write.
          delete: also delete what is not here any more.
        """
        here, logs = self._snapshot()
        newest: dict[str, int] = {}
        for name in here:
            if found := _CHECKPOINT.fullmatch(name):
                newest[found[1] or ""] = max(int(found[2]), newest.get(found[1] or "", -1))
        gone = sorted(set(self._sent) - set(here), key=lambda name: (not _is_manifest(name), name))
        late = [name for name in gone if _is_outlived(name, newest)]
        if delete:
            self._delete([name for name in gone if name not in late], check)
        changed = [name for name in here if self._sent.get(name) != here[name]]
        lost: set[str | None] = set()
        for rank in sorted(set(map(_rank, changed))):
            part = [name for name in changed if _rank(name) == rank]
            if rank == _rank(_LOG):
                check()
                for name in part:
                    self._store.write(name, logs[name])
            else:
                if rank == _MANIFESTS:
                    lost |= self._incomplete(part, here)
                    part = [name for name in part if _checkpoint_of(name) not in lost]
                missing = self._put(part, check)
                lost |= {_checkpoint_of(name) for name in missing}
                part = [name for name in part if name not in missing]
            self._sent |= {name: here[name] for name in part}
        if delete and not lost - {None}:
            self._delete(late, check)

    def _put(self, names: Sequence[str], check: Callable[[], None]) -> list[str]:
        missing = []
        for start in range(0, len(names), _AT_ONCE):
            check()
            missing += self._store.put(names[start : start + _AT_ONCE], self._folder)
        return missing

    def _delete(self, names: Sequence[str], check: Callable[[], None]) -> None:
        if names:
            check()
            self._store.delete(names)
        for name in names:
            del self._sent[name]

    def _snapshot(self) -> tuple[dict[str, _Signature], dict[str, bytes]]:
        """Signatures of all files by name and, of the same moment, the content of the logs.

        A log is never behind a checkpoint: it was written before. That it was cut back to an earlier checkpoint shows
        in the later ones, which were deleted before.
        """
        while True:
            here = _scan(self._folder)
            logs = {}
            for name in [name for name in here if _rank(name) == _rank(_LOG)]:
                with contextlib.suppress(FileNotFoundError):
                    logs[name] = (self._folder / name).read_bytes()
            again = _scan(self._folder)
            saved = {name for name in here if _checkpoint_of(name)}
            if all(again.get(name) == here[name] for name in saved) and len(logs) == sum(
                _rank(name) == _rank(_LOG) for name in here
            ):
                return here, logs

    def _incomplete(
        self, manifests: Sequence[str], before: Mapping[str, _Signature]
    ) -> set[str | None]:
        """The checkpoints of these manifests that were deleted here while their files were uploaded."""
        now = _scan(self._folder)
        checkpoints = set(map(_checkpoint_of, manifests))
        files_of = [name for name in before if _checkpoint_of(name) in checkpoints]
        return {_checkpoint_of(name) for name in files_of if now.get(name) != before[name]}


class _Uploads:
    """Keeps the store as its mirror while a block runs, in a thread; at the end everything is uploaded.

    A store that is out of reach is tried again, and again. After ``PATIENCE`` the run is told to stop.
    """

    def __init__(self, mirror: _Mirror, lock: _Lock):
        self._mirror, self._lock = mirror, lock
        self._every, self._patience = _seconds(EVERY), _seconds(PATIENCE)
        self._ending, self._failed = threading.Event(), ""
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._push, self._beat)]

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: Any
    ) -> None:
        """Raises Away if something could not be uploaded; if there is another error, that is a warning."""
        self._ending.set()
        if kind is not None and not issubclass(kind, Exception):  # Ctrl-C, twice: nobody waits
            return
        for thread in self._threads:
            thread.join()
        reason = self._finish()
        if not reason:
            return
        if error is None:
            raise Away(reason)
        environment.complain(f"warning: {reason}")

    def _finish(self) -> str:
        """Uploads the rest; why it could not, or empty."""
        deadline, pause = time.monotonic() + self._patience * (not self._failed), 0.5
        while True:
            try:
                self._mirror.push(self._lock.check)
                return ""
            except _TakenOver as error:
                return f"{error}; it goes on there from what was uploaded"
            except (_Trouble, OSError) as error:
                if time.monotonic() + pause > deadline:
                    return self._out_of_reach(error)
            time.sleep(pause)
            pause = min(2 * pause, 15.0)

    def _push(self) -> None:
        since, pause = 0.0, self._every
        while not self._ending.wait(pause) and not self._failed:
            began = time.monotonic()
            try:
                self._mirror.push(self._lock.check)
                since = 0.0
                # Large files that change often take at most a fifth of the time.
                pause = max(self._every, 4 * (time.monotonic() - began))
            except _TakenOver as error:
                self._give_up(str(error))
            except (_Trouble, OSError) as error:
                now = time.monotonic()
                if not since:
                    since, pause = began, 0.5
                    environment.complain(f"warning: not uploaded ({error}); trying again")
                if now - since > self._patience:
                    self._give_up(self._out_of_reach(error))
                pause = min(2 * pause, 15.0)

    def _beat(self) -> None:
        while not self._ending.wait(self._lock.interval) and not self._failed:
            self._lock_beat()

    def _lock_beat(self) -> None:
        try:
            self._lock.beat()
        except _Trouble:
            pass  # the uploads see it, too
        except _TakenOver as error:
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        self._failed = reason
        signals.ask_to_stop("the object store")
        while not self._ending.wait(1.0):  # who begins to listen now hears it, too
            signals.ask_to_stop("the object store")

    def _out_of_reach(self, error: Exception) -> str:
        return (
            f"the object store cannot be written ({error}); what was uploaded before is kept, and the same command"
            " goes on from there"
        )


def _scan(folder: pathlib.Path) -> dict[str, _Signature]:
    """All files that are to be uploaded, by their names relative to the folder."""
    found: dict[str, _Signature] = {}
    for home, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_temporary(name)]
        for name in names:
            path = os.path.join(home, name)
            if _is_temporary(name) or os.path.islink(path):
                continue
            with contextlib.suppress(FileNotFoundError):
                about = os.stat(path)
                key = pathlib.Path(path).relative_to(folder).as_posix()
                found[key] = _Signature(about.st_size, about.st_mtime_ns, about.st_ino)
    # A checkpoint without its manifest is none, yet or any more.
    whole = {_checkpoint_of(name) for name in found if _is_manifest(name)} | {None}
    return {name: about for name, about in found.items() if _checkpoint_of(name) in whole}


def _is_temporary(name: str) -> bool:
    """Whether a file or folder is only for this machine, or not complete."""
    return name == _LOCK or name.endswith((".tmp", ".partial")) or ".orbax-checkpoint-tmp" in name


def _checkpoint_of(name: str) -> str | None:
    """The folder of the checkpoint that a file is of."""
    found = _CHECKPOINT.fullmatch(name)
    return name.removesuffix(f"/{found[3]}") if found else None


def _is_manifest(name: str) -> bool:
    found = _CHECKPOINT.fullmatch(name)
    return found is not None and found[3] == records.MANIFEST


def _is_outlived(name: str, newest: Mapping[str, int]) -> bool:
    """Whether a file is of a checkpoint older than the newest of its run."""
    found = _CHECKPOINT.fullmatch(name)
    return found is not None and int(found[2]) < newest.get(found[1] or "", -1)


_MANIFESTS = 3


def _rank(name: str) -> int:
    """When a file is uploaded: what says which run this is, its log, checkpoints, their manifests, what is of them."""
    base = name.rpartition("/")[2]
    if _checkpoint_of(name):
        return _MANIFESTS if _is_manifest(name) else 2
    return {"config.json": 0, _LOG: 1, "result.json": 5}.get(base, 4)
