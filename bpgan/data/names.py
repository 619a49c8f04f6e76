"""What a dataset is called: ``NAME``, ``KIND:ARGUMENT`` or ``module:name``, and the options that may follow."""

import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from bpgan import lookup
from bpgan.data import images, known, readers, sides, tfds


class Kind(NamedTuple):
    """A kind of data that users have.

    Attributes:
      argument: what follows the colon.
      reader: ``reader(what parse returns) -> readers.Raw``.
      parse: of what follows the colon.
      of_pictures: whether each image is a file of its own, which may be unreadable, or hold fewer bits than 16.
      published: whether what follows is a name of what others publish; the reader takes a ``mirror`` of it, too.
    """

    argument: str
    reader: Callable[..., readers.Raw]
    parse: Callable[[str], Any] = str
    of_pictures: bool = False
    published: bool = False


KINDS: dict[str, Kind] = {
    "npz": Kind("FILE", readers.npz),
    "idx": Kind("PATH", readers.idx),
    "folder": Kind("PATH", readers.folder, of_pictures=True),
    "zip": Kind("FILE", readers.archive, of_pictures=True),
    "tfds": Kind("NAME", known.of_tfds, tfds.parse, published=True),
}


SIDES: dict[str, Kind] = {
    "pairs": Kind("A_DIR,B_DIR", sides.by_name, of_pictures=True),
    "halves": Kind("DIR", sides.side_by_side, of_pictures=True),
    "arrays": Kind("FILE", sides.arrays),
}
"""Where one side of pairs is read from; no datasets by themselves (see ``pairs.parse``)."""


def kind_of(name: "Name") -> Kind:
    """The kind of a name that has one."""
    return SIDES[name.kind] if name.kind in SIDES else KINDS[name.kind]


def forms() -> str:
    """All ways to name a dataset, with the entries that ``DATASETS`` and ``KINDS`` have now."""
    kinds = [f"{name}:{kind.argument}" for name, kind in KINDS.items()]
    return f"{', '.join([*known.DATASETS, *kinds])} or module:name of your own"


class Name(NamedTuple):
    """The name of a dataset, read.

    Attributes:
      text: as the user wrote it.
      kind: an entry of ``KINDS`` or ``SIDES``; empty: an entry of ``DATASETS``, or an object of the user's own code.
      argument: what follows the kind; or the name of the entry or object.
      source: what the kind's reader takes; or the entry or object, a ``known.Row`` or a function.
      form: what images are made into.
      skip: whether files that cannot be read are left out.
    """

    text: str
    kind: str
    argument: str
    source: Any
    form: images.Form = images.Form()
    skip: bool = False


def parse(text: str) -> Name:
    """Reads the name of a dataset. Looks at no data, but imports the module of one of the user's own.

    Raises:
      ValueError: if it is none, saying what is allowed.
    """
    word, colon, rest = text.partition(":")
    kind = KINDS.get(word) if colon else None
    argument, form, skip = options(rest if kind else text)
    source = None if kind else _find(argument)
    if not kind and not isinstance(source, known.Row):
        if not callable(source):
            raise ValueError(f"is a {type(source).__name__}, must be a data.Row or a function")
        if argument != text:
            raise ValueError(f"{argument} takes no options")
    for option, given in {"skip=unreadable": skip, "bits": form.bits}.items():
        if given and not (kind and kind.of_pictures):
            able = " and ".join(name for name, each in KINDS.items() if each.of_pictures)
            raise ValueError(f"{option}: only for {able}")
    source = kind.parse(argument) if kind else source
    return Name(text, word if kind else "", argument, source, form, skip)


def parse_or_none(text: str) -> Name | None:
    """As ``parse``; None of an empty text."""
    return parse(text) if text else None


def _find(name: str) -> Any:
    """The entry of ``DATASETS``, or the object of the user's own code. Raises a ValueError if there is none."""
    try:
        return lookup.find(known.DATASETS, name, "a dataset")
    except ValueError as error:
        cause, module = error.__cause__, name.partition(":")[0]
        if cause is None or isinstance(cause, ModuleNotFoundError) and cause.name == module:
            reason = f" ({cause})" if cause else ""
            raise ValueError(f"must be {forms()}{reason}") from None
        raise


_OPTIONS = {
    "size": "size=H or size=HxW",
    "fit": "fit=crop|pad|stretch",
    "channels": "channels=1|3|4",
    "background": "background=white",
    "bits": "bits=12",
    "skip": "skip=unreadable",
}


def options(text: str) -> tuple[str, images.Form, bool]:
    """``(argument, form, skip)`` of what follows a kind. Raises ValueError.

    Only options that exist are split off, so that a path may have commas in it.
    """
    found: dict[str, str] = {}
    while True:
        rest, _, last = text.rpartition(",")
        key, equals, value = last.partition("=")
        if key not in _OPTIONS or not rest or not equals:
            break
        if key in found:
            raise ValueError(f"{key}= is given twice")
        found[key] = value
        text = rest
    like = re.search(r",\s*\w+\s*=[^,/]*$", text)
    if like and not os.path.exists(os.path.expanduser(text)):
        *others, last = _OPTIONS.values()
        raise ValueError(f"no option {like[0]!r}; there are {', '.join(others)} and {last}")
    for key, allowed in {"fit": images.FITS, "channels": "134", "skip": ["unreadable"]}.items():
        if found.get(key, allowed[0]) not in tuple(allowed):
            raise ValueError(f"{key}={found[key]}: must be {' or '.join(allowed)}")
    if "fit" in found and "size" not in found:
        raise ValueError(f"fit={found['fit']}: needs size=")
    form = images.Form(
        _parse_size(found["size"]) if "size" in found else None,
        found.get("fit", "crop"),
        int(found["channels"]) if "channels" in found else None,
        _parse_color(found["background"]) if "background" in found else None,
        _parse_bits(found["bits"]) if "bits" in found else None,
    )
    return text, form, "skip" in found


def _parse_size(text: str) -> tuple[int, int]:
    size = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text, re.ASCII)
    height, width = (int(size[1]), int(size[2] or size[1])) if size else (0, 0)
    if not (1 <= height <= 16384 and 1 <= width <= 16384):
        raise ValueError(f"size={text}: must be H or HxW, height and width in 1 to 16384")
    return height, width


def _parse_color(text: str) -> tuple[int, int, int]:
    """Red, green and blue."""
    gray = {"white": 255, "black": 0}.get(
        text, int(text) if re.fullmatch("[0-9]{1,3}", text) else 256
    )
    if gray <= 255:
        return gray, gray, gray
    if not re.fullmatch("#?[0-9a-fA-F]{6}", text):
        raise ValueError(
            f"background={text}: must be white, black, a gray from 0 to 255 or a color such as ff8800"
        )
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


def _parse_bits(text: str) -> int:
    if text not in map(str, range(9, 17)):
        raise ValueError(f"bits={text}: must be in 9 to 16")
    return int(text)
