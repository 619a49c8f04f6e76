"""Readers of users' files: what lies where, in which split and class, and how to decode one example.

A reader only looks at names, sizes and times until its ``examples()`` is called, which is when there is no cache yet.
Errors are UserErrors that do not name the dataset; ``datasets.load`` puts that before them.
"""

import contextlib
import functools
import gzip
import json
import math
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from bpgan.data import images
from bpgan.types import UserError

_BLOCK = 4 << 20  # bytes of an array that are read at once
_FEW = 3  # names that a message lists
_TESTS = ("test", "val", "valid", "validation")


class Examples(NamedTuple):
    """The examples of a dataset, not yet decoded.

    Attributes:
      items: ``items()`` iterates over the examples in order; cheap, and may be called again.
      decode: ``decode(item, form)``, uint8 ``[h, w, c]`` in that form, called in threads. Raises images.Unreadable.
      labels: integers ``[n]``; zeros for none.
      labelled: whether the labels were given.
      test: bool ``[n]``, which are test examples; None: the dataset has no splits.
      class_names: by label; may be empty.
      size: ``(h, w)`` of all images, if known.
      channels: of all images, if known.
      probe: ``probe(item)``, height, width and channels; called in threads, needed if they are not known.
      describe: ``describe(item)`` names it for people.
      warnings: what the user should know.
    """

    items: Callable[[], Iterator[Any]]
    decode: Callable[[Any, images.Form], np.ndarray]
    labels: np.ndarray
    labelled: bool = True
    test: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    channels: int | None = None
    probe: Callable[[Any], tuple[int, int, int]] | None = None
    describe: Callable[[Any], str] = str
    warnings: tuple[str, ...] = ()


class Raw(NamedTuple):
    """A dataset as it lies on disk: the absolute path, ``(path, size, mtime)`` of its files, and its examples."""

    path: pathlib.Path
    files: list[tuple[str, int, int]]
    examples: Callable[[], Examples]


def _raw(path: pathlib.Path, files: list[pathlib.Path], examples: Callable[[], Examples]) -> Raw:
    stats = [(str(f), f.stat()) for f in files]
    return Raw(path, [(name, s.st_size, s.st_mtime_ns) for name, s in stats], examples)


def _existing(argument: str) -> pathlib.Path:
    path = pathlib.Path(os.path.expanduser(argument))
    if not argument or not path.exists():
        raise UserError("no such file or directory")
    if not path.is_file() and not path.is_dir():  # reading a pipe may never end
        raise UserError("neither a file nor a directory")
    return path.resolve()


def shown(name: str) -> str:
    """A file's name as it may stand in one line of a message."""
    return name if name.isprintable() else ascii(name)


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


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
        images.shaped,
        np.concatenate([y.reshape(-1) for y in labels]),
        labelled=all(given),
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


def _check_arrays(shape: Any, dtype: Any, labels: Any, x: str, y: str) -> None:
    """Raises a UserError unless these are images and their labels."""
    if (
        dtype != np.uint8
        or len(shape) not in (3, 4)
        or min(shape) < 1
        or (len(shape) == 4 and shape[3] not in (1, 3, 4))
    ):
        raise UserError(
            f"{x!r} is {dtype}{list(shape)},"
            " must be uint8 [n, h, w] or [n, h, w, c] with 1, 3 or 4 channels"
        )
    if labels is not None and (
        labels.shape not in ((shape[0],), (shape[0], 1))
        or not np.issubdtype(labels.dtype, np.integer)
    ):
        raise UserError(
            f"{y!r} is {labels.dtype}{list(labels.shape)}, must be integers [{shape[0]}]"
        )


_NPZ = (
    ("x", "y"),
    ("x_train", "y_train", "x_test", "y_test"),  # Keras
    ("train_images", "train_labels", "test_images", "test_labels"),  # MedMNIST
)


def npz(argument: str) -> Raw:
    """Arrays ``x``, ``y``; or ``x_train``, ``y_train``, ``x_test``, ``y_test``; labels may be missing.

    So may ``class_names``, texts ``[k]`` in the order of the labels.
    """
    path = _existing(argument)
    return _raw(path, [path], lambda: _npz(path))


def _npz(path: pathlib.Path) -> Examples:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = next((names for names in _NPZ if names[0] in file), None)
            if found is None:
                raise UserError(f"no array 'x' or 'x_train' in it, only {list(file)}")
            parts = []
            for x, y in zip(found[::2], found[1::2], strict=True):
                if x in file:
                    with file.zip.open(f"{x}.npy") as member:
                        shape, fortran, dtype = _npy_header(member)
                    labels = file[y] if y in file else None
                    _check_arrays(shape, dtype, labels, x, y)
                    parts.append((shape, labels, functools.partial(_npz_blocks, path, x, fortran)))
            names = _npz_names(file)
    except UserError:
        raise
    except Exception as error:  # NumPy raises a dozen types for as many kinds of damage
        raise UserError(f"not a readable .npz file ({error})") from None
    examples = _arrays(parts, path.name)
    if names and examples.labelled and examples.labels.max(initial=0) >= len(names):
        raise UserError(f"{len(names)} 'class_names' for labels up to {examples.labels.max()}")
    return examples._replace(class_names=names if examples.labelled else ())


def _npz_names(file: Any) -> tuple[str, ...]:
    """``class_names``, a text for each class, which may be missing."""
    names = file["class_names"] if "class_names" in file else np.zeros(0, "<U1")
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(
            f"'class_names' is {names.dtype}{list(names.shape)}, must be a text for each class"
        )
    return tuple(shown(name) for name in names.tolist())


def _npy_header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    if np.lib.format.read_magic(member) == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def _npz_blocks(path: pathlib.Path, name: str, fortran: bool) -> Iterator[np.ndarray]:
    """The array in pieces, so that it need not fit in memory."""
    try:
        if fortran:  # its bytes are not in the order of the examples
            with np.load(path) as file:
                yield file[name]
            return
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            yield from _stream(member, _npy_header(member)[0])
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"not a readable .npz file ({name}: {error})") from None


_IDX = re.compile(r".*images[-._]idx[34]-ubyte(\.gz)?")


def idx(argument: str) -> Raw:
    """IDX files, the format of MNIST, gzipped or not: a directory, or an images file with its labels beside it."""
    path = _existing(argument)
    if not path.is_dir():
        pairs = [(path, _labels_beside(path))]
    else:
        found = sorted(f for f in path.iterdir() if _IDX.fullmatch(f.name))
        pairs = []
        for words in (("train",), ("t10k", "test")):
            files = [f for f in found if any(word in f.name for word in words)]
            files = [f for f in files if f.suffix != ".gz" or f.with_suffix("") not in files]
            if len(files) > 1:
                names = ", ".join(f.name for f in files[:_FEW])
                raise UserError(f"several files of {words[0]} images ({names}): name one of them")
            pairs += [(f, _labels_beside(f)) for f in files]
        if not pairs or len(pairs) == 1 and "train" not in pairs[0][0].name:
            raise UserError("no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in it")
    return _raw(path, [f for pair in pairs for f in pair if f is not None], lambda: _idx(pairs))


def _labels_beside(path: pathlib.Path) -> pathlib.Path | None:
    if "images" not in path.name:
        return None
    name = re.sub(r"idx[34]", "idx1", path.name.replace("images", "labels")).removesuffix(".gz")
    files = [path.with_name(name), path.with_name(name + ".gz")]
    return next((f for f in files if f.exists()), None)


def _idx(pairs: list[tuple[pathlib.Path, pathlib.Path | None]]) -> Examples:
    parts = []
    for path, beside in pairs:
        with _idx_file(path) as (_, shape):
            pass
        labels = None
        if beside is not None:
            with _idx_file(beside) as (file, dims):
                if len(dims) != 1:
                    raise UserError(f"{beside.name}: {len(dims)} dimensions, labels have one")
                labels = np.concatenate([np.zeros(0, np.uint8), *_stream(file, dims)])
        _check_arrays(shape, np.dtype(np.uint8), labels, path.name, beside.name if beside else "")
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
            head = file.read(4 * magic[3])
            dims = tuple(np.frombuffer(head[: len(head) // 4 * 4], ">u4").tolist())
            size, stored = math.prod(dims), path.stat().st_size
            if len(dims) < magic[3] or (size > 1100 * stored if zipped else stored < size):
                raise EOFError(
                    f"too short for its header, {list(dims)}"
                )  # deflate saves at most 1032 fold
            yield file, dims
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path.name}: damaged or cut short ({error})") from None


def _idx_blocks(path: pathlib.Path) -> Iterator[np.ndarray]:
    with _idx_file(path) as (file, shape):
        yield from _stream(file, shape)


def folder(argument: str) -> Raw:
    """Images in class folders, in ``train/`` and ``test/`` of such, flat, or labelled by a ``dataset.json``."""
    path = _existing(argument)
    if not path.is_dir():
        raise UserError("not a directory")
    tree = images.folder(path)
    return Raw(path, tree.files, lambda: _examples(tree))


def archive(argument: str) -> Raw:
    """The same in a zip file, which is not unpacked."""
    path = _existing(argument)
    return _raw(path, [path], lambda: _examples(images.archive(path)))


def _examples(tree: images.Tree) -> Examples:
    """Splits and classes by the names of folders, or classes by ``dataset.json``."""
    paths, warnings = tree.paths, []
    tops = sorted({p.partition("/")[0] for p in paths if "/" in p})
    folded = {top.casefold(): top for top in tops}
    train = folded.get("train")
    tests = [folded[name] for name in _TESTS if name in folded]
    prefixes = ("",)
    if train is not None and tests:
        prefixes = (f"{train}/", f"{tests[0]}/")
        other = [p for p in paths if not p.startswith(prefixes)]
        if other:
            warnings.append(
                f"{_images(len(other))} in neither {prefixes[0]} nor {prefixes[1]} left out"
                f" (first: {shown(other[0])})"
            )
            paths = [p for p in paths if p.startswith(prefixes)]
    elif train is not None and all(p.startswith(f"{train}/") for p in paths):
        prefixes = (f"{train}/",)
    if tree.ignored:
        warnings.append(
            f"{len(tree.ignored)} hidden {'file' if len(tree.ignored) == 1 else 'files'} or files"
            f" that are no images left out (first: {shown(tree.ignored[0])})"
        )
    inner = [next(p.removeprefix(x) for x in prefixes if p.startswith(x)) for p in paths]
    names: list[str] = []
    if tree.labelled:
        labels, more = _json_labels(tree, paths)
        warnings += more
    else:
        names = sorted({p.partition("/")[0] for p in inner if "/" in p})
        loose = [p for p, q in zip(paths, inner, strict=True) if "/" not in q]
        if names and loose:
            raise UserError(
                f"{_images(len(loose))} beside the class folders (first: {shown(loose[0])};"
                f" folders: {', '.join(map(shown, names[:_FEW]))}): every image must be in one"
            )
        numbers = {name: i for i, name in enumerate(names)}
        labels = [numbers[p.partition("/")[0]] for p in inner] if names else None
        depth = prefixes[0].count("/")  # of class folders
        inside = [f for f in tree.empty if f.startswith(prefixes) and f.count("/") == depth]
        empty = sorted({*inside, *(f for f in tree.empty if "/" not in f)})
        warnings += [f"the folder {shown(f)} has no images in it" for f in empty]
    return Examples(
        lambda: iter(paths),
        lambda path, form: images.decode(tree.read(path), form),
        np.array(labels if labels is not None else [0] * len(paths), np.int64),
        labelled=labels is not None,
        test=np.array([p.startswith(prefixes[1]) for p in paths]) if len(prefixes) == 2 else None,
        class_names=tuple(map(shown, names)),
        probe=lambda path: images.header(tree, path),
        describe=shown,
        warnings=tuple(warnings),
    )


def _json_labels(tree: images.Tree, paths: list[str]) -> tuple[list[int] | None, list[str]]:
    """The labels that StyleGAN's ``dataset.json`` gives to images, and warnings."""
    try:
        entries = json.loads(tree.read("dataset.json"))["labels"]
        if entries is None:
            return None, []
        labels = {path: label for path, label in entries}
        bad = [label for label in labels.values() if type(label) is not int]
        if bad:
            raise UserError(f"dataset.json: the label {bad[0]!r} is not a class number")
    except (images.Unreadable, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f'dataset.json: must be {{"labels": [[path, class number], ...]}} ({error})'
        ) from None
    missing = [p for p in paths if p not in labels]
    if missing:
        raise UserError(
            f"dataset.json: {_images(len(missing))} without a label (first: {shown(missing[0])})"
        )
    gone = len(labels.keys() - set(tree.paths))
    return [labels[p] for p in paths], [
        f"dataset.json labels {_images(gone)} that are not there"
    ] * bool(gone)


def tfds(name: str, *, mirror: str = "") -> Raw:
    """A dataset of TensorFlow Datasets, which is prepared first where that is possible."""
    from bpgan.data import builders

    prepared = builders.open_prepared(name, mirror=mirror)
    root = pathlib.Path(prepared.directory).absolute()
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return _raw(root, files, lambda: _tfds(prepared))


def _tfds(prepared: Any) -> Examples:
    splits = [prepared.splits.get("train")]
    splits += [prepared.splits[name] for name in _TESTS if name in prepared.splits][:1]
    if splits[0] is None:
        raise UserError(f"no split 'train', only {', '.join(prepared.splits) or 'none'}")
    items = [(split, i) for split in splits for i in range(len(split))]
    labels, shapes = [], []
    for split, i in items:
        record = split[i]
        image, label = np.asarray(record["image"]), record.get("label")
        _check_arrays((1, *image.shape), image.dtype, None, "image", "label")
        if label is not None and not (
            np.ndim(label) == 0 and np.issubdtype(np.asarray(label).dtype, np.integer)
        ):
            raise UserError(f"example {i}: the label is {label!r}, must be an integer")
        shapes.append(image.shape)
        labels.append(label)
    missing = sum(label is None for label in labels)
    if 0 < missing < len(labels):
        raise UserError(f"{_images(missing)} of {len(labels):,} without a label")
    return Examples(
        lambda: iter(range(len(items))),
        lambda k, form: images.shaped(np.asarray(items[k][0][items[k][1]]["image"]), form),
        np.array(labels if not missing else [0] * len(labels), np.int64),
        labelled=not missing,
        test=np.repeat([False, True], [len(s) for s in splits]) if len(splits) == 2 else None,
        class_names=tuple(prepared.class_names) if not missing else (),
        channels=max((shape[2] for shape in shapes), default=None),
        probe=lambda k: shapes[k],
        describe=lambda k: f"example {k}",
    )
