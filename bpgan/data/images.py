"""Image files as uint8 arrays, and the folders and zip archives they lie in. The only module of data that knows PIL.

PNG, JPEG, WebP, BMP, GIF (its first frame) and TIFF. Rotation by EXIF is applied. 16-bit grey becomes 8 bits by
``round(v / 257)``; of 16-bit colour, which Pillow has no mode for, it is the high byte. Transparency is composited on
white unless four channels are asked for; colour becomes grey by ITU-R 601 luma. All resizing is Pillow's Lanczos filter
widened by the scale, which antialiases.
"""

import contextlib
import io
import os
import pathlib
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bpgan.types import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""A file is an image if its name ends like this, in upper or lower case."""

FITS = ("crop", "pad", "stretch")

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
_ORIENTATION = 0x0112  # the EXIF tag
_LARGEST = 1 << 30  # bytes of one file; a zip may claim any size


class Form(NamedTuple):
    """What images are made into: ``size`` (h, w) by ``fit``, ``channels``. None: as they are."""

    size: tuple[int, int] | None = None
    fit: str = "crop"
    channels: int | None = None


class Unreadable(Exception):
    """A file that is no image bpgan can read. The message is one line and does not name the file."""


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Whatever is raised within becomes Unreadable: zipfile, zlib and PIL have a dozen types for damaged files."""
    try:
        yield
    except (Unreadable, MemoryError):
        raise
    except Exception as error:
        text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise Unreadable(text.splitlines()[0]) from None


@contextlib.contextmanager
def _opened(file: BinaryIO) -> Iterator[Any]:
    from PIL import Image

    with _damage():
        try:
            image = Image.open(file, formats=_FORMATS)
        except Image.UnidentifiedImageError:
            raise Unreadable(f"not an image of type {', '.join(_FORMATS)}") from None
        with image:
            if image.mode in ("F", "LAB"):
                raise Unreadable(f"mode {image.mode} is not supported")
            yield image


@contextlib.contextmanager
def strict() -> Iterator[None]:
    """While images are read, in whatever thread: decompression bombs are errors, PIL's other remarks are not shown."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


def header(tree: "Tree", path: str) -> tuple[int, int, int]:
    """Height, width (both upright) and channels, 1 or 3, of an image, without decoding it.

    Grey is what is stored as grey or with a palette of greys; transparency does not count.

    Raises:
      Unreadable: if it is no image.
    """
    with tree.open(path) as file, _opened(file) as image:
        width, height = image.size
        if image.format == "TIFF":  # some versions of Pillow say the upright size, some not
            width, height = image.tag_v2[256], image.tag_v2[257]
        # Asked about the EXIF of a PNG that has not said anything of it yet, Pillow would decode it.
        said = {"exif", "Raw profile type exif"} & set(image.info)
        if image.format in ("JPEG", "MPO", "WEBP", "TIFF") or said:
            if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
                width, height = height, width
        grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
        if image.mode in ("P", "PA") and image.palette is not None:
            colours = np.frombuffer(bytes(image.palette.palette), np.uint8)
            colours = colours.reshape(-1, len(image.palette.rawmode or image.palette.mode))
            grey = bool((colours[:, :3] == colours[:, :1]).all())
        return height, width, 1 if grey else 3


def decode(data: bytes, form: Form) -> np.ndarray:
    """An encoded image as uint8 ``[h, w, c]``; ``form.channels`` must be given.

    Raises:
      Unreadable: if it is no image, damaged, too large to be honest (Pillow's limit of 89 million pixels) or of a mode
        without a meaning in 8 bits.
    """
    from PIL import Image

    with _opened(io.BytesIO(data)) as image:
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
        image = _eight_bit(image)
        if 2 <= orientation <= 8:
            way = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270",
                   "TRANSVERSE", "ROTATE_90")[orientation - 2]  # fmt: skip
            image = image.transpose(Image.Transpose[way])
        return _finished(image, form)


def shaped(array: np.ndarray, form: Form) -> np.ndarray:
    """The same for pixels: uint8 ``[h, w, c]`` with 1, 3 or 4 (the last is opacity) channels."""
    from PIL import Image

    channels = form.channels or array.shape[2]
    if form.size in (None, array.shape[:2]) and channels == array.shape[2]:
        return array
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    return _finished(image, form._replace(channels=channels))


def _eight_bit(image: Any) -> Any:
    """The image in mode L, LA, RGB or RGBA."""
    from PIL import Image

    mode, clear = image.mode, "transparency" in image.info
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable(f"values from {values.min()} to {values.max()}, more than 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if mode == "1":
        return image.convert("L")
    if mode in ("P", "PA"):
        return image.convert("RGBA" if clear or mode == "PA" else "RGB")
    if mode in ("L", "LA", "La"):
        return image.convert("LA" if clear or mode != "L" else "L")
    return image.convert("RGBA" if clear or mode in ("RGBA", "RGBa") else "RGB")


def _finished(image: Any, form: Form) -> np.ndarray:
    """The pixels of an image of mode L, LA, RGB or RGBA in the given form."""
    from PIL import Image

    if form.channels == 4:
        image = image.convert("RGBA")
    else:
        if image.mode in ("LA", "RGBA"):
            paper = Image.new(image.mode[:-1], image.size, (255,) * (len(image.mode) - 1))
            paper.paste(image.convert(paper.mode), mask=image.getchannel("A"))
            image = paper
        image = image.convert("L" if form.channels == 1 else "RGB")
    if form.size is not None and form.size != image.size[::-1]:
        image = _resized(image, *form.size, form.fit)
    array = np.array(image)
    return array if array.ndim == 3 else array[..., None]


def _resized(image: Any, h: int, w: int, fit: str) -> Any:
    """Resized to ``[h, w]``.

    ``crop``: the greatest centred rectangle of that shape, as if cut from the whole image resized; ``pad``: the whole
    image, centred on black (transparent, if there is opacity); ``stretch``: the whole image, its shape changed.
    """
    from PIL import Image

    filter_, (width, height) = Image.Resampling.LANCZOS, image.size
    wide = width * h >= height * w
    if fit == "crop":
        left = (width - w * height / h) / 2 if wide else 0
        top = 0 if wide else (height - h * width / w) / 2
        return image.resize((w, h), filter_, box=(left, top, width - left, height - top))
    if fit == "stretch":
        return image.resize((w, h), filter_)
    inner_h = max(1, round(height * w / width)) if wide else h
    inner_w = w if wide else max(1, round(width * h / height))
    black = Image.new(image.mode, (w, h))
    black.paste(image.resize((inner_w, inner_h), filter_), ((w - inner_w) // 2, (h - inner_h) // 2))
    return black


class Tree(NamedTuple):
    """Files in folders: of a directory or of a zip archive.

    Attributes:
      paths: of the images, relative, with ``/``, sorted.
      files: ``(path, size, mtime in ns)`` of all that counts; another content has another list.
      ignored: of hidden files and files that are no images.
      empty: folders, one or two levels deep, without an image in them.
      open: opens the file at a path, to read its beginning. Raises Unreadable.
      read: all its bytes. Raises Unreadable.
      labelled: whether there is a ``dataset.json``.
    """

    paths: list[str]
    files: list[tuple[str, int, int]]
    ignored: list[str]
    empty: list[str]
    open: Callable[[str], BinaryIO]
    read: Callable[[str], bytes]
    labelled: bool


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _sorted_out(names: list[str]) -> tuple[list[str], list[str]]:
    """The images among the names of files, and the rest; ``dataset.json`` is neither."""
    images, ignored = [], []
    for name in sorted(names):
        if not _hidden(name) and name.lower().endswith(SUFFIXES):
            images.append(name)
        elif name != "dataset.json":
            ignored.append(name)
    return images, ignored


def _empty(folders: list[str], paths: list[str]) -> list[str]:
    parents = {p[:i] for p in paths for i, letter in enumerate(p) if letter == "/"}
    return sorted(f for f in set(folders) - parents if f.count("/") < 2 and not _hidden(f))


def folder(root: pathlib.Path) -> Tree:
    """The tree of a directory. Symbolic links are followed, but not round in circles.

    Raises:
      UserError: if it or a folder in it cannot be listed.
    """
    found: dict[str, os.stat_result] = {}
    folders: list[str] = []
    hidden: list[str] = []

    def is_folder(entry: os.DirEntry) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link to itself
            return False

    def walk(path: str, prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        here = os.stat(path)
        if (here.st_dev, here.st_ino) in above:
            return
        with os.scandir(path) as entries:
            for entry in entries:
                name = prefix + entry.name
                if _hidden(entry.name):
                    hidden.append(name)
                elif is_folder(entry):
                    folders.append(name)
                    walk(entry.path, f"{name}/", (*above, (here.st_dev, here.st_ino)))
                else:
                    try:
                        found[name] = entry.stat()
                    except (
                        OSError
                    ):  # a link that leads nowhere stays in the list, to be named later
                        found[name] = entry.stat(follow_symlinks=False)

    try:
        walk(str(root), "", ())
    except OSError as error:
        raise UserError(f"{error.filename}: {(error.strerror or 'unreadable').lower()}") from None
    plain = [n for n, s in found.items() if stat.S_ISREG(s.st_mode) or stat.S_ISLNK(s.st_mode)]
    paths, ignored = _sorted_out(plain)
    empty = _empty(folders, paths)
    labels = ["dataset.json"] if "dataset.json" in plain else []
    files = [(n, found[n].st_size, found[n].st_mtime_ns) for n in [*paths, *labels]]

    def open_(name: str) -> BinaryIO:
        with _damage():
            return (root / name).open("rb")

    def read(name: str) -> bytes:
        with _damage():
            return (root / name).read_bytes()

    return Tree(
        paths,
        files + [(f"{name}/", 0, 0) for name in empty],
        ignored + hidden + sorted(found.keys() - set(plain)),
        empty,
        open_,
        read,
        bool(labels),
    )


def archive(path: pathlib.Path) -> Tree:
    """The tree of a zip file, which is read in place. A single top folder around folders is not part of the paths.

    Raises:
      UserError: if it is no zip file or is encrypted.
    """
    try:
        opened = zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"not a readable zip file ({error})") from None
    members = {m.filename.replace("\\", "/").strip("/"): m for m in opened.infolist()}
    folders = [name for name, m in members.items() if m.is_dir()]
    names = [name for name, m in members.items() if not m.is_dir()]
    for name in names:
        if members[name].flag_bits & 1:
            raise UserError(f"{name} is encrypted; unpack the archive and use folder:")
    images, _ = _sorted_out(names)
    tops = {name.partition("/")[0] for name in images}
    around = f"{min(tops)}/" if len(tops) == 1 else ""
    wrapped = all(name.count("/") > 1 for name in images) or f"{around}dataset.json" in names
    if around.casefold() == "train/" or not wrapped or around[:-1] in images:
        around = ""
    members = {name.removeprefix(around): m for name, m in members.items()}
    paths, ignored = _sorted_out([name.removeprefix(around) for name in names])

    def open_(name: str) -> BinaryIO:
        with _damage():
            if members[name].file_size > _LARGEST:
                raise Unreadable(f"of {members[name].file_size} bytes")
            return opened.open(members[name])  # pyright: ignore[reportReturnType]

    def read(name: str) -> bytes:
        with _damage(), open_(name) as file:
            return file.read()

    return Tree(
        paths,
        [],
        ignored,
        _empty([f.removeprefix(around) for f in folders if f"{f}/" != around], paths),
        open_,
        read,
        "dataset.json" in members,
    )
