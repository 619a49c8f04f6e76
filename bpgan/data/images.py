"""Image files as uint8 arrays, and the folders and zip archives they lie in. The only module of data that knows PIL.

PNG, JPEG, WebP, AVIF, BMP, GIF and TIFF; of several frames the first. Rotation by EXIF is applied. Gray of more than 8
bits becomes ``round(255 v / (2^bits - 1))``, where bits is what the option says, or else what the file declares (12 or
16); of 16-bit color, which Pillow has no mode for, the high byte is kept. Transparency is composited on the
background, which is white by default, unless four channels are asked for; padding has the same color. Color becomes
gray by ITU-R 601 luma. All resizing is Pillow's Lanczos filter widened by the scale, which antialiases.
"""

import collections
import contextlib
import io
import os
import pathlib
import stat
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from bpgan import memory
from bpgan.types import UserError, counted

SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif",
            ".tiff")  # fmt: skip
"""A file is an image if its name ends like this, in upper or lower case."""

UNREAD = (
    ".heic .heif .hif .jxl .jp2 .j2k .jpx .jpf .ico .icns .cur .tga .dds .ppm .pgm .pbm .pnm .pfm .pcx .sgi .xbm .xpm"
    " .exr .hdr .fits .dcm .svg .svgz .eps .ai .psd .psb .xcf .kra .wmf .emf"
    " .dng .cr2 .cr3 .crw .nef .nrw .arw .sr2 .srf .orf .rw2 .raf .pef .srw .x3f .raw .rwl .3fr .iiq .mrw"
    " .mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg"
    " .zip .tar .tgz .gz .bz2 .xz .zst .7z .rar .npz .npy .h5 .hdf5 .parquet .tfrecord .lmdb"
).split()
"""Ends of the names of files that may hold images bpgan does not read: other pictures, films, archives, arrays."""

FITS = ("crop", "pad", "stretch")

_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF")
_ORIENTATION, _BITS = 0x0112, 0x0102  # tags of EXIF and TIFF
_LARGEST = 1 << 30  # bytes of one file; a zip may claim any size
_MANY = 1 << 26  # bytes or pixels; of larger images one is in memory at a time
_ALONE = threading.RLock()

_BEGINNINGS = {
    b"ftyphei": "HEIC", b"ftyphev": "HEIC", b"ftypmif1": "HEIC", b"ftypmsf1": "HEIC", b"\xff\x0a": "JPEG XL",
    b"JXL ": "JPEG XL", b"8BPS": "Photoshop's PSD", b"%PDF": "PDF", b"<svg": "SVG", b"<?xml": "XML or SVG",
    b"<html": "a page of HTML", b"<!doctype html": "a page of HTML",
    b"version https://git-lfs": "a pointer of Git LFS, which `git lfs pull` replaces by the image",
}  # fmt: skip
"""What files that are called images often are."""


class Form(NamedTuple):
    """What images are made into.

    Attributes:
      size: ``(h, w)``, by ``fit``. None: as they are.
      channels: 1, 3 or 4. None: as they are.
      background: RGB color of what is transparent and of padding. None: white.
      bits: of the values in gray files of more than 8 bits. None: as the file declares.
    """

    size: tuple[int, int] | None = None
    fit: str = "crop"
    channels: int | None = None
    background: tuple[int, int, int] | None = None
    bits: int | None = None


class Decoded(NamedTuple):
    """An image: ``pixels`` uint8 ``[h, w, c]``, and ``remarks``, what was done to it that the pixels do not show.

    By their kinds: ``frames`` (it has several), ``transparent`` (it was laid on a background nobody chose), ``deep``
    (of more than 8 bits: its greatest value) and ``deep color`` (the same, of which the high bytes were kept).
    """

    pixels: np.ndarray
    remarks: dict[str, int] = {}


def describe_remark(kind: str, count: int, greatest: int) -> str:
    """A remark of one kind about ``count`` images, in words. ``greatest``: of its numbers."""
    images = counted(count, "image")
    bits = greatest.bit_length()
    white = f"; if they hold {bits} bits, ,bits={bits} makes {(1 << bits) - 1:,} white"
    fewer = white if bits < 15 else ""
    return {
        "frames": f"{images} with several frames or pages, of which the first is used",
        "transparent": f"{images} with transparent parts, which are made white; ,background=black is another color",
        "deep": f"{images} of 16 bits with values up to {greatest:,}: 65,535 became 255{fewer}",
        "deep color": f"{images} of 16-bit color, of which the upper 8 bits are kept (up to {greatest >> 8} of 255)",
    }[kind]


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
            raise Unreadable(_unidentified(file)) from None
        with image:
            if image.mode in ("F", "LAB"):
                kind = {"F": "floating-point numbers", "LAB": "CIELAB colors"}[image.mode]
                raise Unreadable(f"mode {image.mode}, {kind}, is not supported")
            yield image


def _unidentified(file: BinaryIO) -> str:
    """Why a file is no image that Pillow can open, by its first bytes."""
    from PIL import features

    file.seek(0)
    head = file.read(64)
    if b"ftypavi" in head[:16] and not features.check("avif"):
        return "AVIF, which this Pillow was built without; Pillow 11.3 or newer from PyPI has it"
    if not head:
        return "not an image but an empty file"
    starts = head.lstrip().lower(), head, head[4:]  # an ISO file begins with a length
    for beginning, kind in _BEGINNINGS.items():
        if any(start.startswith(beginning) for start in starts):
            return f"not an image but {kind}"
    return f"not an image of type {', '.join(_FORMATS)}"


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

    Gray is what is stored as gray or with a palette of grays; transparency does not count.

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
        gray = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
        if image.mode in ("P", "PA") and image.palette is not None:
            colors = np.array(_rgb(image.palette)).reshape(-1, 3)
            gray = bool((colors == colors[:, :1]).all())
        return height, width, 1 if gray else 3


def _rgb(palette: Any) -> list[int]:
    """The colors of a palette, red, green, blue, red, ...; formats store them in half a dozen orders."""
    from PIL import Image

    carrier = Image.new("P", (1, 1))
    carrier.putpalette(palette)
    return carrier.getpalette() or []


def decode(data: bytes, form: Form) -> Decoded:
    """An encoded image in a form, of which the channels must be given.

    Raises:
      Unreadable: if it is no image, damaged, too large to be honest (Pillow's limit of 89 million pixels) or for the
        memory, or of a mode without a meaning in 8 bits.
    """
    from PIL import Image

    with _opened(io.BytesIO(data)) as image, _in_turn(image.width * image.height):
        remarks = {"frames": 1} if _has_frames(image) else {}
        deep_color = any(";16" in str(tile[3:]) for tile in image.tile)  # Pillow's raw mode
        declared = image.tag_v2.get(_BITS, (16,)) if image.format == "TIFF" else (16,)
        image.load()
        orientation = image.getexif().get(_ORIENTATION, 1)
        if image.mode.startswith("I"):
            image, greatest = _eight_bit(np.asarray(image), form.bits, min(16, declared[0]))
            remarks |= {"deep": greatest} if form.bits is None and declared[0] > 12 else {}
        elif deep_color:
            if form.bits not in (None, 16):
                raise Unreadable(f"16-bit color, which bits={form.bits} cannot scale")
            remarks["deep color"] = max(high for _, high in image.convert("RGB").getextrema()) << 8
        image = _plain(image)
        if 2 <= orientation <= 8:
            way = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270",
                   "TRANSVERSE", "ROTATE_90")[orientation - 2]  # fmt: skip
            image = image.transpose(Image.Transpose[way])
        if form.channels != 4 and form.background is None and _is_transparent(image):
            remarks["transparent"] = 1
        return Decoded(_finished(image, form), remarks)


@contextlib.contextmanager
def _in_turn(size: int) -> Iterator[None]:
    """Lets one thread at a time hold an image of many bytes or pixels, if there is memory for it."""
    if size <= _MANY:
        yield
        return
    with _ALONE:
        need, free = 16 * size, memory.available()  # pixels of 4 bytes, and what is made of them
        if need > free:
            raise Unreadable(f"too large for the memory, {memory.shortfall(need, free)}")
        yield


def shaped(array: np.ndarray, form: Form) -> np.ndarray:
    """The same for pixels: uint8 ``[h, w, c]`` with 1, 3 or 4 (the last is opacity) channels."""
    from PIL import Image

    channels = form.channels or array.shape[2]
    if form.size in (None, array.shape[:2]) and channels == array.shape[2]:
        return array
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    return _finished(image, form._replace(channels=channels))


def _has_frames(image: Any) -> bool:
    """Whether there are several. The second picture in a JPEG is a thumbnail, a depth or a brightness map."""
    try:
        return image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # damage behind the first frame
        return False


def _eight_bit(values: np.ndarray, bits: int | None, declared: int) -> tuple[Any, int]:
    """Gray integers ``[h, w]`` of so many bits as an image of mode L, and their greatest."""
    from PIL import Image

    values = values.astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= 1 << (bits or declared):
        raise Unreadable(f"values from {low} to {high}, more than {bits or declared} bits")
    top = (1 << (bits or declared)) - 1
    return Image.fromarray(((values * 510 + top) // (2 * top)).astype(np.uint8)), high


def _plain(image: Any) -> Any:
    """The image in mode L, LA, RGB or RGBA."""
    mode, clear = image.mode, "transparency" in image.info
    if mode == "1":
        return image.convert("LA" if clear else "L")
    if mode in ("P", "PA"):
        return image.convert("RGBA" if clear or mode == "PA" else "RGB")
    if mode in ("L", "LA", "La"):
        return image.convert("LA" if clear or mode != "L" else "L")
    return image.convert("RGBA" if clear or mode in ("RGBA", "RGBa") else "RGB")


def _is_transparent(image: Any) -> bool:
    return image.mode in ("LA", "RGBA") and image.getchannel("A").getextrema()[0] < 255


def _background(form: Form, mode: str) -> tuple[int, ...]:
    """Its color in mode L, RGB or RGBA, where it is transparent."""
    from PIL import Image

    red, green, blue = form.background or (255, 255, 255)
    if mode == "L":
        return tuple(Image.new("RGB", (1, 1), (red, green, blue)).convert("L").tobytes())
    return (red, green, blue, 0)[: len(mode)]


def _finished(image: Any, form: Form) -> np.ndarray:
    """The pixels of an image of mode L, LA, RGB or RGBA in the given form."""
    from PIL import Image

    if form.channels == 4:
        image = image.convert("RGBA")
    else:
        if image.mode in ("LA", "RGBA"):
            mode = "L" if form.channels == 1 and image.mode == "LA" else "RGB"
            paper = Image.new(mode, image.size, _background(form, mode))
            paper.paste(image.convert(mode), mask=image.getchannel("A"))
            image = paper
        image = image.convert("L" if form.channels == 1 else "RGB")
    if form.size is not None and form.size != image.size[::-1]:
        image = _resized(image, *form.size, form.fit, _background(form, image.mode))
    array = np.array(image)
    return array if array.ndim == 3 else array[..., None]


def _resized(image: Any, h: int, w: int, fit: str, background: tuple[int, ...]) -> Any:
    """Resized to ``[h, w]``.

    ``crop``: the greatest centered rectangle of that shape, as if cut from the whole image resized; ``pad``: the whole
    image, centered on the background (transparent, if there is opacity); ``stretch``: the whole image, another shape.
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
    paper = Image.new(image.mode, (w, h), background)
    paper.paste(image.resize((inner_w, inner_h), filter_), ((w - inner_w) // 2, (h - inner_h) // 2))
    return paper


class Tree(NamedTuple):
    """Files in folders: of a directory or of a zip archive.

    Attributes:
      paths: of the images, relative, with ``/``, sorted.
      files: ``(path, size, stamps...)`` of all that counts; another content has another list.
      labels: paths of the files called ``dataset.json``.
      unread: of files that may hold images of kinds bpgan does not read.
      ignored: of hidden files and all others.
      empty: folders without an image in them.
      open: opens the file at a path, to read its beginning. Raises Unreadable.
      read: all its bytes. Raises Unreadable.
      size: how many these are.
      repeated: names that occur several times in an archive; the last one counts.
    """

    paths: list[str]
    files: list[tuple[Any, ...]]
    labels: list[str]
    unread: list[str]
    ignored: list[str]
    empty: list[str]
    open: Callable[[str], BinaryIO]
    read: Callable[[str], bytes]
    size: Callable[[str], int]
    repeated: list[str] = []

    def within(self, folders: tuple[str, ...]) -> "Tree":
        """What is in some folders of it; each is written with a ``/`` at its end."""
        lists = {
            field: [name for name in getattr(self, field) if name.startswith(folders)]
            for field in ("paths", "labels", "unread", "ignored", "empty", "repeated")
        }
        return self._replace(**lists, files=[f for f in self.files if f[0].startswith(folders)])

    def decode(self, path: str, form: Form) -> Decoded:
        """The image at a path in a form; see ``decode``. Raises Unreadable."""
        with _in_turn(self.size(path)):
            return decode(self.read(path), form)


_OF_SYSTEMS = {"__macosx", "@eadir", "$recycle.bin", "#recycle", "#snapshot", "lost+found", "system volume information",
               "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}  # fmt: skip
"""What systems and storage put beside the files of their users; some of it ends in .jpg."""


def _hidden(name: str) -> bool:
    parts = name.casefold().split("/")
    return any(part.startswith(".") or part in _OF_SYSTEMS for part in parts)


class _Sorted(NamedTuple):
    images: list[str]
    labels: list[str]
    unread: list[str]
    ignored: list[str]


def _sorted_out(names: list[str]) -> _Sorted:
    """The names of files by what they are for."""
    found = _Sorted([], [], [], [])
    for name in sorted(names):
        base = name.rpartition("/")[2]
        if _hidden(name):
            found.ignored.append(name)
        elif base.lower().endswith(SUFFIXES):
            found.images.append(name)
        elif base == "dataset.json":
            found.labels.append(name)
        else:
            unread = os.path.splitext(base)[1].lower() in UNREAD
            (found.unread if unread else found.ignored).append(name)
    return found


def _empty(folders: list[str], paths: list[str]) -> list[str]:
    parents = {p[:i] for p in paths for i, letter in enumerate(p) if letter == "/"}
    return sorted(f for f in set(folders) - parents if not _hidden(f))


def _about(entry: os.DirEntry) -> os.stat_result:
    """What is known of a file, or of a link that leads nowhere, which is named later."""
    try:
        return entry.stat()
    except OSError:
        return entry.stat(follow_symlinks=False)


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
                    found[name] = _about(entry)

    try:
        walk(str(root), "", ())
    except OSError as error:
        raise UserError(f"{error.filename}: {(error.strerror or 'unreadable').lower()}") from None
    except RecursionError:
        raise UserError("its folders are nested too deeply") from None
    plain = [n for n, s in found.items() if stat.S_ISREG(s.st_mode) or stat.S_ISLNK(s.st_mode)]
    names = _sorted_out(plain)
    empty = _empty(folders, names.images)

    def open_(name: str) -> BinaryIO:
        with _damage():
            return (root / name).open("rb")

    def read(name: str) -> bytes:
        with _damage():
            return (root / name).read_bytes()

    return Tree(
        names.images,
        [stamp(n, found[n]) for n in names.images + names.labels]
        + [(f"{n}/", 0, 0, 0) for n in empty],
        names.labels,
        names.unread,
        names.ignored + hidden + sorted(found.keys() - set(plain)),
        empty,
        open_,
        read,
        lambda name: found[name].st_size,
    )


def stamp(name: str, about: os.stat_result) -> tuple[str, int, int, int]:
    """What tells a file from one with another content: its name, size and the times of its last changes.

    A program can set the time of modification back, but not the second, that of any change.
    """
    return name, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def archive(path: pathlib.Path) -> Tree:
    """The tree of a zip file, which is read in place.

    Raises:
      UserError: if it is no zip file or is encrypted.
    """
    try:
        opened = zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise UserError(f"not a readable zip file ({error})") from None
    entries = [(m.filename.replace("\\", "/").lstrip("/"), m) for m in opened.infolist()]
    entries = [(name, m) for name, m in entries if name]
    members = {name: m for name, m in entries if not name.endswith("/")}
    for name, member in members.items():
        if member.flag_bits & 1:
            raise UserError(f"{name!r} is encrypted; unpack the archive and use folder:")
    names = _sorted_out(list(members))
    counts = collections.Counter(name for name, _ in entries)

    def open_(name: str) -> BinaryIO:
        with _damage():
            if members[name].file_size > _LARGEST:
                raise Unreadable(f"of {members[name].file_size} bytes")
            return opened.open(members[name])  # pyright: ignore[reportReturnType]

    def read(name: str) -> bytes:
        with _damage(), open_(name) as file:
            return file.read()

    return Tree(
        names.images,
        [],
        names.labels,
        names.unread,
        names.ignored,
        _empty([name.rstrip("/") for name, _ in entries if name.endswith("/")], names.images),
        open_,
        read,
        lambda name: members[name].file_size,
        [name for name in names.images + names.labels if counts[name] > 1],
    )
