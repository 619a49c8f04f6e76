"""Readers of users' files: what lies where, in which split and class, and how to decode one example.

A reader only looks at names, sizes and times until its ``examples()`` is called, which is when there is no cache yet.
Errors are UserErrors that do not name the dataset; ``datasets.load`` puts that before them.
"""

import collections
import contextlib
import functools
import gzip
import math
import os
import pathlib
import re
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from bpgan import files, memory
from bpgan.data import attributes, images, tfds
from bpgan.types import UserError, counted

LARGEST = 1 << 30
"""Bytes that a downloaded file may unpack to; a damaged one could claim any size."""

_BLOCK = 4 << 20  # bytes of an array that are read at once
_FEW = 3  # names that a message lists
_TRAINS = ("train", "training")
_TESTS = ("test", "testing", "val", "valid", "validation", "eval", "evaluation", "dev", "holdout")
_MOST_LABELS = 1 << 28  # bytes of a dataset.json
_DEFLATE = 1032  # deflate's greatest ratio
_PER_EXAMPLE = 64  # bytes of memory for each: its label, the order of the labels, its split


class Examples(NamedTuple):
    """The examples of a dataset, not yet decoded.

    Attributes:
      items: ``items()`` iterates over the examples in order; cheap, and may be called again.
      decode: ``decode(item, form) -> images.Decoded``, called in threads. Raises images.Unreadable.
      labels: integers ``[n]``; zeros for none.
      labeled: whether the labels were given.
      test: bool ``[n]``, which are test examples; None: the dataset has no splits.
      class_names: by label; may be empty.
      size: ``(h, w)`` of all images, if known.
      channels: of all images, if known.
      probe: ``probe(item)``, height, width and channels; called in threads, needed if they are not known.
      describe: ``describe(item)`` names it for people.
      warnings: what the user should know.
      attributes: their names, and float32 ``[n, a]``; None: there are none.
    """

    items: Callable[[], Iterator[Any]]
    decode: Callable[[Any, images.Form], images.Decoded]
    labels: np.ndarray
    labeled: bool = True
    test: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    channels: int | None = None
    probe: Callable[[Any], tuple[int, int, int]] | None = None
    describe: Callable[[Any], str] = str
    warnings: tuple[str, ...] = ()
    attributes: tuple[tuple[str, ...], np.ndarray] | None = None


class Raw(NamedTuple):
    """A dataset as it lies on disk.

    Attributes:
      path: absolute.
      files: each as ``images.stamp``.
      examples: gives them; until then only names, sizes and times are looked at.
      digest: of all that the examples depend on, where that is known without looking at files; else empty.
      options: of the reader, by name, if other ones make other examples of the same files.
    """

    path: pathlib.Path
    files: list[tuple[Any, ...]]
    examples: Callable[[], Examples]
    digest: str = ""
    options: Mapping[str, str] = {}


def _raw(path: pathlib.Path, parts: list[pathlib.Path], examples: Callable[[], Examples]) -> Raw:
    return Raw(path, [images.stamp(str(f), f.stat()) for f in parts], examples)


def existing(argument: str) -> pathlib.Path:
    """The absolute path of a file or directory that is there."""
    path = pathlib.Path(os.path.expanduser(argument))
    if not argument or not path.exists():
        raise UserError("no such file or directory")
    if not path.is_file() and not path.is_dir():  # reading a pipe may never end
        raise UserError("neither a file nor a directory")
    return path.resolve()


def shown(name: str) -> str:
    """A file's name as it may stand in one line of a message."""
    return name if name.isprintable() else ascii(name)


def _arrays(
    parts: list[tuple[Any, Any, Callable[[], Iterator[np.ndarray]]]], what: str
) -> Examples:
    """Examples of up to two splits, each (shape of the images, labels or None, blocks of images)."""
    shapes = {tuple(shape[1:]) for shape, _, _ in parts}
    if len(shapes) > 1:
        raise UserError(f"{what}: train and test images differ in shape: {sorted(shapes)}")
    shape = shapes.pop()
    given = [y is not None for _, y, _ in parts]
    if any(given) and not all(given):
        raise UserError(f"{what}: labels of {'train' if given[0] else 'test'} only")
    lengths = [s[0] for s, _, _ in parts]
    memory.require(_PER_EXAMPLE * sum(lengths), f"{what}: {sum(lengths):,} examples")
    labels = [
        y if y is not None else np.zeros(n, np.int64)
        for n, (_, y, _) in zip(lengths, parts, strict=True)
    ]

    def items() -> Iterator[np.ndarray]:
        for _, _, blocks in parts:
            for block in blocks():
                yield from block.reshape(len(block), *shape[:2], -1)

    return Examples(
        items,
        lambda image, form: images.Decoded(images.shaped(image, form)),
        np.concatenate([y.reshape(-1) for y in labels]),
        labeled=all(given),
        test=np.repeat([False, True], lengths) if len(parts) == 2 else None,
        size=shape[:2],
        channels=shape[2] if len(shape) == 3 else 1,
        describe=lambda item: f"an image of {what}",
    )


def _stream(file: Any, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The rows of a uint8 array from the bytes of a file. Raises EOFError if there are not exactly as many."""
    row, n = math.prod(shape[1:]), shape[0]
    step = max(1, _BLOCK // row)
    for start in range(0, n, step):
        count = min(step, n - start)
        data = file.read(count * row)
        if len(data) < count * row:
            raise EOFError(f"{start * row + len(data)} bytes of pixels, must be {n * row}")
        yield np.frombuffer(data, np.uint8).reshape(count, *shape[1:])
    if file.read(1):
        raise EOFError(f"more than {n * row} bytes of pixels")


class _Array(NamedTuple):
    """What the beginning of an array in a file says."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool = False

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def check_arrays(x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> None:
    """Raises a UserError unless these are images and their labels, as the arrays of an .npz file."""
    _check_arrays(_Array(x.shape, x.dtype), _Array(y.shape, y.dtype), x_name, y_name)


def _check_arrays(images: _Array, labels: _Array | None, x: str, y: str) -> None:
    """Raises a UserError unless these are images and their labels."""
    shape = images.shape
    if (
        images.dtype != np.uint8
        or len(shape) not in (3, 4)
        or min(shape) < 1
        or (len(shape) == 4 and shape[3] not in (1, 3, 4))
    ):
        raise UserError(
            f"{x!r} is {images}, must be uint8 [n, h, w] or [n, h, w, c] with 1, 3 or 4 channels"
        )
    if labels is not None and (
        labels.shape not in ((shape[0],), (shape[0], 1))
        or not np.issubdtype(labels.dtype, np.integer)
    ):
        raise UserError(f"{y!r} is {labels}, must be integers [{shape[0]}]")


_NPZ = (
    ("x", "y"),
    ("x_train", "y_train", "x_test", "y_test"),  # Keras
    ("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST
)


def npz(argument: str) -> Raw:
    """Arrays ``x``, ``y``; or ``x_train``, ``y_train``, ``x_test``, ``y_test``; labels may be missing.

    So may ``class_names``, texts ``[k]`` in the order of the labels; and ``attributes``, numbers ``[n, a]``, or
    ``attributes_train`` and ``attributes_test`` of two splits, with texts ``attribute_names`` ``[a]``.
    """
    path = existing(argument)
    return _raw(path, [path], lambda: arrays_in(path))


def arrays_in(path: pathlib.Path, known: Sequence[tuple[str, ...]] = _NPZ) -> Examples:
    """The examples in an .npz file.

    Args:
      path: of the file.
      known: what the arrays may be called: images and labels, of one split or of both; the first that fits is used.
    """
    with _npz_file(path) as archive:
        inside = [name.removesuffix(".npy") for name in archive.namelist()]
        found = next((names for names in known if names[0] in inside), None)
        if found is None:
            wanted = " or ".join(repr(names[0]) for names in known[:2])
            raise UserError(f"no array {wanted} in it, only {inside[:20]}")
        parts = []
        for x, y in zip(found[::2], found[1::2], strict=True):
            if x in inside:
                stored, labels = _npy_header(archive, x), None
                given = _npy_header(archive, y) if y in inside else None
                _check_arrays(stored, given, x, y)
                if given is not None:
                    labels = _npz_array(archive, y, given)
                parts.append((stored.shape, labels, functools.partial(_npz_blocks, path, x)))
        names = _npz_names(archive, "class_names") if "class_names" in inside else ()
        found_attributes = _npz_attributes(archive, inside, [shape[0] for shape, _, _ in parts])
    examples = _arrays(parts, path.name)
    if names and examples.labeled and examples.labels.max(initial=0) >= len(names):
        raise UserError(f"{len(names)} 'class_names' for labels up to {examples.labels.max()}")
    named = names if examples.labeled else ()
    return examples._replace(class_names=named, attributes=found_attributes)


def _npz_names(archive: zipfile.ZipFile, array: str) -> tuple[str, ...]:
    """``class_names`` or ``attribute_names``, a text for each."""
    stored = _npy_header(archive, array)
    if len(stored.shape) != 1 or stored.dtype.kind != "U":
        raise UserError(f"{array!r} is {stored}, must be a text for each {array.partition('_')[0]}")
    return tuple(shown(name) for name in _npz_array(archive, array, stored).tolist())


_ATTRIBUTES = ("attributes", "attributes_train", "attributes_test", "attribute_names")


def _npz_attributes(
    archive: zipfile.ZipFile, inside: list[str], counts: list[int]
) -> tuple[tuple[str, ...], np.ndarray] | None:
    """The attributes of the images of one split or two; None if there are none."""
    wanted = ["attributes"] if len(counts) == 1 else ["attributes_train", "attributes_test"]
    there = [name for name in _ATTRIBUTES if name in inside]
    if not there:
        return None
    if set(there) - {"attribute_names"} != set(wanted):
        has, needed = (" and ".join(map(repr, names)) for names in (there, wanted))
        raise UserError(f"has {has}, must have {needed} for {counted(len(counts), 'split')}")
    named = "attribute_names" in inside
    names = _npz_names(archive, "attribute_names") if named else None
    parts = []
    for name, count in zip(wanted, counts, strict=True):
        stored = _npz_array(archive, name, _npy_header(archive, name))
        called, values = attributes.checked(stored, count, names, repr(name))
        if parts and values.shape[1] != parts[0].shape[1]:
            sizes = f"{parts[0].shape[1]} and {values.shape[1]}"
            raise UserError(f"{wanted[0]!r} and {name!r} have {sizes} numbers of each image")
        parts.append(values)
    return called, np.concatenate(parts)  # pyright: ignore[reportPossiblyUnboundVariable]


def _npz_array(archive: zipfile.ZipFile, name: str, stored: _Array) -> np.ndarray:
    """A whole array, if there is memory for it."""
    n = math.prod(stored.shape)
    memory.require(n * (_PER_EXAMPLE + 2 * stored.dtype.itemsize), f"{name!r} of {n:,} entries")
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


@contextlib.contextmanager
def _npz_file(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """The archive that an .npz file is. Raises a UserError for damage, also while it is used."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except UserError:
        raise
    except Exception as error:  # zipfile and NumPy raise a dozen types for as many kinds of damage
        reason = str(error).strip() or type(error).__name__
        raise UserError(f"not a readable .npz file ({reason.splitlines()[0]})") from None


def _npy_header(archive: zipfile.ZipFile, name: str) -> _Array:
    """What an array in an archive is. Raises a ValueError for one that cannot be as large as it says."""
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        header = _read_npy_header(member)
        size = math.prod(header.shape) * header.dtype.itemsize
        if not header.dtype.hasobject and member.tell() + size != info.file_size:
            raise ValueError(f"{name}: {header} does not take {info.file_size:,} bytes")
    if info.compress_type == zipfile.ZIP_DEFLATED and size > _DEFLATE * (info.compress_size + 1):
        raise ValueError(f"{name}: {header} cannot be in {info.compress_size:,} bytes")
    return header


def _read_npy_header(member: Any) -> _Array:
    version = np.lib.format.read_magic(member)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"an array of version {version}, must be (1, 0) or (2, 0)")
    shape, fortran, dtype = readers[version](member)
    return _Array(shape, dtype, fortran)


def _npz_blocks(path: pathlib.Path, name: str) -> Iterator[np.ndarray]:
    """The array in pieces, so that it need not fit in memory."""
    with _npz_file(path) as archive, archive.open(f"{name}.npy") as member:
        shape, _, fortran = _read_npy_header(member)
        if not fortran:
            yield from _stream(member, shape)
            return
        # Its bytes are not in the order of the examples, so that all must be there before the first is.
        memory.require(3 * math.prod(shape), f"{name!r}, in Fortran's order")
        columns = list(_stream(member, (*shape[:0:-1], shape[0])))
        yield np.concatenate(columns).T


def digits(argument: str) -> Raw:
    """The digits of 8 x 8 pixels that are installed with scikit-learn, whose grays 0 to 16 become 0 to 255."""
    return Raw(pathlib.Path(argument), [], _digits)


def _digits() -> Examples:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise UserError("comes with scikit-learn: pip install scikit-learn") from None
    flat, y = load_digits(return_X_y=True)
    x = np.rint(np.reshape(flat, (-1, 8, 8)) * (255 / 16)).astype(np.uint8)
    return _arrays([(x.shape, y, functools.partial(_once, x))], "scikit-learn's digits")


_IDX = re.compile(r".*images[-._]idx[34]-ubyte(\.gz)?")


def idx(argument: str) -> Raw:
    """IDX files, the format of MNIST, gzipped or not: a directory, or an images file with its labels beside it."""
    path = existing(argument)
    if not path.is_dir():
        pairs = [(path, _labels_beside(path))]
    else:
        found = sorted(f for f in path.iterdir() if _IDX.fullmatch(f.name))
        pairs = []
        for words in (("train",), ("t10k", "test")):
            these = [f for f in found if any(word in f.name for word in words)]
            these = [f for f in these if f.suffix != ".gz" or f.with_suffix("") not in these]
            if len(these) > 1:
                names = ", ".join(f.name for f in these[:_FEW])
                raise UserError(f"several files of {words[0]} images ({names}): name one of them")
            pairs += [(f, _labels_beside(f)) for f in these]
        if not pairs or len(pairs) == 1 and "train" not in pairs[0][0].name:
            raise UserError("no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in it")
    return _raw(path, [f for pair in pairs for f in pair if f is not None], lambda: _idx(pairs))


def _labels_beside(path: pathlib.Path) -> pathlib.Path | None:
    if "images" not in path.name:
        return None
    name = re.sub(r"idx[34]", "idx1", path.name.replace("images", "labels")).removesuffix(".gz")
    places = [path.with_name(name), path.with_name(name + ".gz")]
    return next((f for f in places if f.exists()), None)


def _idx(pairs: list[tuple[pathlib.Path, pathlib.Path | None]]) -> Examples:
    parts = []
    for path, beside in pairs:
        with _idx_file(path) as (_, shape):
            stored = _Array(shape, np.dtype(np.uint8))
            _check_arrays(stored, None, path.name, "")
        labels = None
        if beside is not None:
            with _idx_file(beside) as (file, dims):
                if len(dims) != 1:
                    raise UserError(f"{beside.name}: {len(dims)} dimensions, labels have one")
                _check_arrays(stored, _Array(dims, stored.dtype), path.name, beside.name)
                memory.require(_PER_EXAMPLE * dims[0], f"{beside.name}: {dims[0]:,} examples")
                labels = np.concatenate([np.zeros(0, np.uint8), *_stream(file, dims)])
        parts.append((shape, labels, functools.partial(_idx_blocks, path)))
    return _arrays(parts, pairs[0][0].name)


@contextlib.contextmanager
def _idx_file(path: pathlib.Path) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The file open after its header, and the dimensions. Raises a UserError for damage, also while it is used."""
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[3] == 0:
                raise UserError(f"{path.name}: not an IDX file; it begins with {magic!r}")
            if magic[2] != 0x08:
                raise UserError(
                    f"{path.name}: elements of type 0x{magic[2]:02x}, must be 0x08 (uint8)"
                )
            if magic[3] > 4:
                raise UserError(f"{path.name}: {magic[3]} dimensions, must be at most 4")
            head = file.read(4 * magic[3])
            dims = tuple(np.frombuffer(head[: len(head) // 4 * 4], ">u4").tolist())
            size, stored = math.prod(dims), path.stat().st_size
            most = _DEFLATE * (stored + 1) if zipped else stored
            if len(dims) < magic[3] or size > most:
                raise EOFError(f"too short for its header, {list(dims)}")
            yield file, dims
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path.name}: damaged or cut short ({error})") from None


def _idx_blocks(path: pathlib.Path) -> Iterator[np.ndarray]:
    with _idx_file(path) as (file, shape):
        yield from _stream(file, shape)


def cifar10(argument: str) -> Raw:
    """The archive of CIFAR-10 in its binary version."""
    return _cifar(argument, label_bytes=1, names="batches.meta.txt")


def cifar100(argument: str) -> Raw:
    """The archive of CIFAR-100 in its binary version, with its 100 fine classes."""
    return _cifar(argument, label_bytes=2, names="fine_label_names.txt")


def _cifar(argument: str, label_bytes: int, names: str) -> Raw:
    path = existing(argument)
    return _raw(path, [path], lambda: _cifar_examples(path, label_bytes, names))


def _cifar_examples(path: pathlib.Path, label_bytes: int, names: str) -> Examples:
    """Records of a byte for each label, then the red, the green and the blue pixels of 32 x 32.

    Args:
      path: of the archive, of which the members ``*.bin`` hold records, ``test*.bin`` those of the test split.
      label_bytes: labels of a record, the last of which counts.
      names: the member that lists the class names, one a line.
    """
    found = dict(members(path))
    size = label_bytes + 3072
    parts = []
    for is_test in (False, True):
        chosen = [
            n for n in sorted(found) if n.endswith(".bin") and n.startswith("test") == is_test
        ]
        for name in chosen:
            if len(found[name]) % size:
                raise UserError(f"{name}: {len(found[name])} bytes, which is no multiple of {size}")
        data = b"".join(found[name] for name in chosen)
        records = np.frombuffer(data, np.uint8).reshape(-1, size)
        pixels = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        parts.append((pixels.shape, records[:, label_bytes - 1], functools.partial(_once, pixels)))
    class_names = found.get(names, b"").decode("ascii", "replace").split("\n")
    return _arrays(parts, path.name)._replace(class_names=tuple(filter(None, class_names)))


def _once(block: np.ndarray) -> Iterator[np.ndarray]:
    yield block


def members(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """What is in a .tar, compressed or not, by name without folders; it is read in memory, so no path is followed.

    Raises:
      UserError: if it is damaged, or a member is larger than one GiB.
    """
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.size > LARGEST:  # a sparse one may claim any size
                    raise UserError(f"{member.name!r} unpacks to more than {LARGEST} bytes")
                if member.isfile() and (file := archive.extractfile(member)):
                    yield member.name.rpartition("/")[2], file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path.name}: damaged or cut short ({error})") from None


def content(path: pathlib.Path) -> Iterator[bytes]:
    """What is in a file that may be gzipped, block by block.

    Raises:
      UserError: if it is damaged, or unpacks to more than one GiB.
    """
    size = 0
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if zipped else path.open("rb") as file:
            while block := file.read(_BLOCK):
                size += len(block)
                if size > LARGEST:
                    raise UserError(f"{path.name} unpacks to more than {LARGEST} bytes")
                yield block
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path.name}: damaged or cut short ({error})") from None


def folder(argument: str) -> Raw:
    """Images in class folders, in ``train/`` and ``test/`` of such, flat, or labeled by a ``dataset.json``.

    ``DIR/A``, where there is none, is one domain of a dataset of CycleGAN: ``DIR/trainA`` and ``DIR/testA``.
    """
    if domain := _domain(pathlib.Path(os.path.expanduser(argument))):
        return domain
    path = existing(argument)
    if not path.is_dir():
        raise UserError("not a directory")
    tree = images.folder(path)
    return Raw(path, tree.files, lambda: pictures_in(tree))


def _domain(path: pathlib.Path) -> Raw | None:
    """What is in the folders of both splits of a domain; None if there are none."""
    splits = [f"{split}{path.name}" for split in ("train", "test")]
    if not path.name or path.exists() or not all((path.parent / s).is_dir() for s in splits):
        return None
    root = path.parent.resolve()
    tree = images.folder(root).within(tuple(f"{split}/" for split in splits))
    return Raw(root, tree.files, lambda: pictures_in(tree))


def archive(argument: str) -> Raw:
    """The same in a zip file, which is not unpacked."""
    path = existing(argument)
    return _raw(path, [path], lambda: pictures_in(images.archive(path)))


def _role(folder: str) -> tuple[str, str] | None:
    """The word in a folder's name that says which split it is, and the name without it: ``seg_train``, ``Test2017``.

    None: there is no such word in it, or there are several.
    """
    words = list(re.finditer(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", folder))
    found = [w for w in words if w[0].lower() in _TRAINS + _TESTS]
    if len(found) != 1:
        return None
    start, end = found[0].span()
    return found[0][0].lower(), f"{folder[:start]}*{folder[end:]}".casefold()


def _splits(tops: Sequence[str]) -> tuple[str, str] | None:
    """Of the folders the one to train on and the one for the test: their names differ in that word only."""
    roles = {top: role for top in tops if (role := _role(top))}
    pairs: dict[str, tuple[list[str], list[str]]] = {}
    for top, (word, rest) in sorted(roles.items()):
        pairs.setdefault(rest, ([], []))[word in _TESTS].append(top)
    pairs = {rest: pair for rest, pair in pairs.items() if all(pair)}
    if len(pairs) != 1 and "*" not in pairs:
        return None
    trains, tests = pairs["*"] if "*" in pairs else next(iter(pairs.values()))

    def usual(top: str) -> tuple[int, bool, str]:
        return (_TRAINS + _TESTS).index(roles[top][0]), not top.islower(), top

    return min(trains, key=usual), min(tests, key=usual)


def _around(paths: Sequence[str], prefix: str = "", labels: Sequence[str] = ()) -> str:
    """The folders around all images, which are no classes: ``a/b/`` if there are only folders in it, or it is a split.

    Args:
      paths: of images that begin with ``prefix``.
      prefix: a folder that is one of several splits; then only one inside it that is called so, too, is around.
      labels: paths of files with labels; what one refers to is not looked into.
    """
    outer = bool(prefix)
    while True:
        rest = [p[len(prefix) :] for p in paths]
        tops = {p.partition("/")[0] for p in rest}
        inner = f"{prefix}{min(tops, default='')}/"
        if len(tops) != 1 or f"{prefix}dataset.json" in labels or not all("/" in p for p in rest):
            return prefix
        nested = not outer and all(p.count("/") > 1 for p in rest)
        if not (nested or f"{inner}dataset.json" in labels or _role(min(tops))):
            return prefix
        prefix = inner


def pictures_in(tree: images.Tree) -> Examples:
    """Splits and classes by the names of folders, or classes by ``dataset.json``."""
    root = _around(tree.paths, "", tree.labels)
    tops = sorted({p[len(root) :].partition("/")[0] for p in tree.paths if "/" in p[len(root) :]})
    splits = _splits(tops)
    outer = [f"{root}{split}/" for split in splits] if splits else [root]
    paths = [p for p in tree.paths if p.startswith(tuple(outer))]
    prefixes = [_around([p for p in paths if p.startswith(x)], x) if splits else x for x in outer]
    warnings = _left_out(tree, paths, outer)
    inner = [next(p[len(x) :] for x in prefixes if p.startswith(x)) for p in paths]
    names: list[str] = []
    attributed = None
    said = _json_file(tree, root) if f"{root}dataset.json" in tree.labels else None
    if said is not None:
        attributed, gone = _json_attributes(said, tree, root, paths)
        warnings += gone
    if said is not None and not isinstance(said.labels, msgspec.UnsetType):
        labels, more = _json_labels(said, tree, root, paths)
    else:
        labels, names, more = _folder_labels(paths, inner)
        if not splits:
            more += _like_splits(names)
        empty = [f for f in tree.empty if any(_is_in(f, place) for place in ("", root, *prefixes))]
        more += [f"the folder {shown(f.removeprefix(root))} has no images in it" for f in empty]
    return Examples(
        lambda: iter(paths),
        tree.decode,
        np.array(labels if labels is not None else [0] * len(paths), np.int64),
        labeled=labels is not None,
        test=np.array([p.startswith(outer[1]) for p in paths]) if splits else None,
        class_names=tuple(map(shown, names)),
        probe=lambda path: images.header(tree, path),
        describe=shown,
        warnings=tuple(warnings + more),
        attributes=attributed,
    )


def _is_in(path: str, folder: str) -> bool:
    return path.startswith(folder) and "/" not in path[len(folder) :]


def _left_out(tree: images.Tree, paths: list[str], splits: list[str]) -> list[str]:
    """Warnings of what is in a tree and not among the examples."""
    warnings = []
    if other := sorted(set(tree.paths) - set(paths)):
        warnings.append(
            f"{counted(len(other), 'image')} in neither {shown(splits[0])} nor {shown(splits[1])} left out"
            f" (first: {shown(other[0])})"
        )
    if tree.unread:
        ends = collections.Counter(os.path.splitext(name)[1].lower() for name in tree.unread)
        kinds = ", ".join(f"{count:,} {end}" for end, count in ends.most_common(5))
        warnings.append(
            f"{counted(len(tree.unread), 'file')} of types that are not read left out:"
            f" {kinds} (first: {shown(tree.unread[0])})"
        )
    if tree.ignored:
        warnings.append(
            f"{counted(len(tree.ignored), 'hidden file')} or files"
            f" that are no images left out (first: {shown(tree.ignored[0])})"
        )
    if tree.repeated:
        warnings.append(
            f"{few(tree.repeated)} several times in the archive; the last of each is used"
        )
    return warnings


def few(names: Sequence[str]) -> str:
    """The first of some names, for a message."""
    return ", ".join(map(shown, names[:_FEW])) + ", ..." * (len(names) > _FEW)


def _folder_labels(
    paths: list[str], inner: list[str]
) -> tuple[list[int] | None, list[str], list[str]]:
    """Labels by the folders that the images are in, the names of these, and warnings."""
    names = sorted({p.partition("/")[0] for p in inner if "/" in p})
    loose = [p for p, q in zip(paths, inner, strict=True) if "/" not in q]
    if names and loose:
        raise UserError(
            f"{counted(len(loose), 'image')} beside the class folders (first: {shown(loose[0])};"
            f" folders: {', '.join(map(shown, names[:_FEW]))}): every image must be in one"
        )
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(unicodedata.normalize("NFKC", name).casefold().strip(), []).append(name)
    warnings = [
        f"the classes {few([ascii(n) for n in same])} differ only in case, spaces or Unicode form"
        for same in alike.values()
        if len(same) > 1
    ]
    numbers = {name: i for i, name in enumerate(names)}
    return [numbers[p.partition("/")[0]] for p in inner] if names else None, names, warnings


def _like_splits(names: Sequence[str]) -> list[str]:
    """A warning of classes whose names are like those of splits."""
    like = [name for name in names if _role(name)]
    return [
        f"taken for {'a class, not for a split' if len(like) == 1 else 'classes, not for splits'}: {few(like)};"
        " splits are a folder train and a folder test or val"
    ] * bool(like)


class _Labels(msgspec.Struct):
    """StyleGAN's ``dataset.json``, whose labels may be vectors, and attributes beside them."""

    labels: list[tuple[str, Any]] | None | msgspec.UnsetType = msgspec.UNSET
    attributes: list[tuple[str, list[float | bool]]] | None = None
    attribute_names: list[str] | None = None


def _json_file(tree: images.Tree, root: str) -> _Labels:
    """What the ``dataset.json`` in ``root`` says."""
    name = f"{root}dataset.json"
    try:
        if (size := tree.size(name)) > _MOST_LABELS:
            raise ValueError(f"of {size:,} bytes")
        said = files.decode(tree.read(name), _Labels)
        if isinstance(said.labels, msgspec.UnsetType) and said.attributes is None:
            raise ValueError("Object missing required field `labels`")
    except (images.Unreadable, ValueError) as error:
        raise UserError(
            f'dataset.json: must be {{"labels": [[path, class number], ...]}} or'
            f' {{"attributes": [[path, [number, ...]], ...]}} or both ({error})'
        ) from None
    return said


def _is_vector(label: Any) -> bool:
    return isinstance(label, list) and all(isinstance(v, int | float) for v in label)


def _json_attributes(
    said: _Labels, tree: images.Tree, root: str, paths: list[str]
) -> tuple[tuple[tuple[str, ...], np.ndarray] | None, list[str]]:
    """The attributes of images, ``attributes`` or labels that are vectors, None if there are none; and warnings."""
    pairs: Sequence[tuple[str, Any]] | None = said.attributes
    labels = said.labels if isinstance(said.labels, list) else []
    if labels and all(_is_vector(label) for _, label in labels):
        if pairs is not None:
            raise UserError("dataset.json: has vectors as labels and 'attributes', must have one")
        pairs = labels
    if pairs is None:
        if said.attribute_names is not None:
            raise UserError("dataset.json: has 'attribute_names', but no attributes")
        return None, []
    inner = [p[len(root) :] for p in paths]
    found = dict(pairs)
    twice = next((path for path, values in pairs if found[path] != values), None)
    if twice is not None and not any(v != v for v in found[twice]):
        raise UserError(f"dataset.json: {shown(twice)} has several attributes")
    missing = [p for p in inner if p not in found]
    if missing:
        count, first = counted(len(missing), "image"), shown(missing[0])
        raise UserError(f"dataset.json: {count} without attributes (first: {first})")
    size = len(said.attribute_names) if said.attribute_names is not None else len(found[inner[0]])
    wrong = next((p for p in inner if len(found[p]) != size), None)
    if wrong is not None:
        has = f"{counted(len(found[wrong]), 'attribute')}, must have {size}"
        raise UserError(f"dataset.json: {shown(wrong)} has {has}")
    values = [found[p] for p in inner]
    names, what = said.attribute_names, "dataset.json: attributes"
    known = attributes.checked(values, len(inner), names, what, lambda row: shown(inner[row]))
    return known, _gone(found, tree, root, "has attributes of")


def _gone(named: Mapping[str, Any], tree: images.Tree, root: str, says: str) -> list[str]:
    """A warning of images that ``dataset.json`` names and that are not there."""
    gone = len(named.keys() - {p[len(root) :] for p in tree.paths})
    return [f"dataset.json {says} {counted(gone, 'image')} that are not there"] * bool(gone)


def _json_labels(
    said: _Labels, tree: images.Tree, root: str, paths: list[str]
) -> tuple[list[int] | None, list[str]]:
    """The labels that the ``dataset.json`` in ``root`` gives to images, and warnings."""
    pairs = said.labels if isinstance(said.labels, list) else []
    if not pairs and said.labels is None or pairs and all(_is_vector(y) for _, y in pairs):
        return None, []
    bad = [label for _, label in pairs if type(label) is not int]
    if bad:
        raise UserError(f"dataset.json: the label {str(bad[0])[:60]} is not a class number")
    labels = dict(pairs)
    twice = next((path for path, label in pairs if labels[path] != label), None)
    if twice is not None:
        raise UserError(f"dataset.json: {shown(twice)} has several labels")
    inner = [p[len(root) :] for p in paths]
    missing = [p for p in inner if p not in labels]
    if missing:
        raise UserError(
            f"dataset.json: {counted(len(missing), 'image')} without a label (first: {shown(missing[0])})"
        )
    return [labels[p] for p in inner], _gone(labels, tree, root, "labels")


def prepared(found: tfds.Prepared) -> Raw:
    """What TensorFlow Datasets prepared."""
    root = pathlib.Path(found.directory).absolute()
    parts = sorted(p for p in root.rglob("*") if p.is_file())
    return _raw(root, parts, lambda: _tfds(found))


def _tfds(prepared: tfds.Prepared) -> Examples:
    if "train" not in prepared.splits:
        raise UserError(f"no split 'train', only {', '.join(prepared.splits) or 'none'}")
    test = [name for name in _TESTS if name in prepared.splits][:1]
    splits = [prepared.splits[name] for name in ("train", *test)]
    items = [(split, i) for split in splits for i in range(len(split))]
    labels, shapes = [], []
    for split, i in items:
        record = split[i]
        image, label = np.asarray(record["image"]), record.get("label")
        _check_arrays(_Array((1, *image.shape), image.dtype), None, "image", "label")
        if label is not None and not (
            np.ndim(label) == 0 and np.issubdtype(np.asarray(label).dtype, np.integer)
        ):
            raise UserError(f"example {i}: the label is {label!r}, must be an integer")
        shapes.append(image.shape)
        labels.append(label)
    missing = sum(label is None for label in labels)
    if 0 < missing < len(labels):
        raise UserError(f"{counted(missing, 'image')} of {len(labels):,} without a label")
    return Examples(
        lambda: iter(range(len(items))),
        lambda k, form: images.Decoded(
            images.shaped(np.asarray(items[k][0][items[k][1]]["image"]), form)
        ),
        np.array(labels if not missing else [0] * len(labels), np.int64),
        labeled=not missing,
        test=np.repeat([False, True], [len(s) for s in splits]) if len(splits) == 2 else None,
        class_names=tuple(prepared.class_names) if not missing else (),
        channels=max((shape[2] for shape in shapes), default=None),
        probe=lambda k: shapes[k],
        describe=lambda k: f"example {k}",
    )
