"""Datasets by name: a row each, with the files to download, their SHA-256 and what reads them.

A row of one's own can be used in two ways: ``DATASETS["mine"] = Row(...)``, or on a command line as ``module:NAME``.

A downloaded file is right if its SHA-256 is that of ``File.sha256``, or if what it contains has the digests in
``File.contents``: mirrors pack the same content anew. ``File.sha256`` is what TFDS registers. The contents' are

``fashion_mnist``
    of the files of Debian's package dataset-fashion-mnist, whose content was shown to give the registered digests when
    it is packed with the original gzip headers;
``mnist``
    published next to the registered digests by several independent projects, all of which agree;
``cifar10, cifar100``
    of the members ``*.bin``, as torchvision-ruby verifies them after unpacking the archive with the registered digest;
``kmnist``
    not known to us: its files must be those that TFDS registers.

Nothing is unpickled, and archives are read in memory: no path in them is ever followed.
"""

import fnmatch
import functools
import hashlib
import importlib.resources
import json
import math
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bpgan import download, memory
from bpgan.data import cache, convert, readers, tfds
from bpgan.types import UserError


class File(NamedTuple):
    """A file to download.

    Attributes:
      sha256: of the file.
      size: in bytes, to say how long it takes; 0 if unknown.
      contents: the SHA-256 of what is in it, by name: of the decompressed .gz, or of members of a .tar.gz.
    """

    sha256: str
    size: int = 0
    contents: Mapping[str, str] = {}


class Row(NamedTuple):
    """A dataset that is downloaded when it is first used.

    Attributes:
      urls: the folders, each of which has all files; the next one is tried if one does not give a file.
      files: by name; {} for data that the reader finds elsewhere, whatever the path.
      reader: ``reader(path) -> readers.Raw``, a module-level function; the path is that of the file, or of the folder
        with all of them if there are several.
      class_names: by label; () for those that the reader finds.
      about: where the data come from, and their license.
      version: of the content and of what the reader makes of it: another one is converted anew.
      examples: by split, which is checked; {} if unknown.
      shape: of an image, which is checked; () if unknown or if they differ.
      in_tfds: whether TFDS has the same dataset by this name and version. Then the examples are in its order, and
        ``tfds:NAME`` is this row where nothing is prepared.
    """

    urls: tuple[str, ...]
    files: Mapping[str, File]
    reader: Callable[[str], readers.Raw]
    class_names: tuple[str, ...] = ()
    about: str = ""
    version: str = "1.0.0"
    examples: Mapping[str, int] = {}
    shape: tuple[int, ...] = ()
    in_tfds: bool = False

    @property
    def digest(self) -> str:
        """The SHA-256 of all that the examples depend on."""
        reader = f"{self.reader.__module__}.{self.reader.__qualname__}"
        files = {name: [file.sha256, dict(file.contents)] for name, file in self.files.items()}
        facts = [files, reader, self.class_names, self.version, self.in_tfds]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def of_row(row: Row, name: str, mirror: str = "") -> readers.Raw:
    """A row as readers give what lies on disk; its files are downloaded when its examples are asked for."""
    folder = cache.directory() / "downloads" / f"{plain(name).replace('.', '-')}-{row.digest[:16]}"
    return readers.Raw(folder, [], lambda: _examples(row, name, folder, mirror), row.digest)


def of_tfds(request: tfds.Request, mirror: str = "") -> readers.Raw:
    """What TFDS prepared; or where it has not, the row that has the same examples.

    Raises:
      UserError: if there is neither, or what is prepared is damaged or no dataset of images.
    """
    row = _rows_in_tfds().get(request.name)
    try:
        if found := tfds.find(request):
            return readers.prepared(found)
    except tfds.OtherFormat:
        if row is None:
            raise
    if row is None:
        raise tfds.missing(request, list(_rows_in_tfds()))
    if request.config:
        raise UserError(f"{request.name} has no configurations")
    if not fnmatch.fnmatch(row.version, request.version or "*"):
        raise UserError(f"is not prepared, and can be downloaded in version {row.version} only")
    return of_row(row, request.name, mirror)


def _rows_in_tfds() -> dict[str, Row]:
    return {n: row for n, row in DATASETS.items() if isinstance(row, Row) and row.in_tfds}


def plain(name: str) -> str:
    """A name as it may stand in a file's."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:40]


def _examples(row: Row, name: str, folder: pathlib.Path, mirror: str) -> readers.Examples:
    if any(not (folder / file).is_file() for file in row.files):
        print(f"downloading {name} to {folder} ...", flush=True)
    for file, facts in row.files.items():
        download.fetch(
            [f"{url.rstrip('/')}/{file}" for url in ((mirror,) if mirror else row.urls)],
            folder / file,
            functools.partial(_problem, facts, file),
            size=facts.size,
            advice=_advice(row),
        )
    several = len(row.files) > 1
    found = row.reader(str(folder if several else folder / next(iter(row.files), ""))).examples()
    _check(row, found)
    found = found._replace(class_names=row.class_names or found.class_names)
    return _in_order_of_tfds(found) if row.in_tfds else found


def _advice(row: Row) -> str:
    form = f"{row.reader.__name__}:FOLDER" if row.reader is readers.idx else ""
    folder = f", or put the files into a folder and use `dataset={form}`" if form else ""
    return f"name another server with `mirror=URL`{folder}"


def _problem(file: File, name: str, path: pathlib.Path) -> str:
    """What is wrong with a downloaded file called ``name``; empty if it is the right one."""
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest == file.sha256:
        return ""
    try:
        found = _digests(path, name)
    except UserError as error:
        return f"SHA-256 must be {file.sha256}, is {digest} (it is damaged: {error})"
    for part, expected in file.contents.items():
        if part not in found:
            return f"SHA-256 (there is no {part} in it) must be {file.sha256}, is {digest}"
        if found[part] != expected:
            return f"SHA-256 of {part} in it must be {expected}, is {found[part]}"
    return "" if file.contents else f"SHA-256 must be {file.sha256}, is {digest}"


def _digests(path: pathlib.Path, name: str) -> dict[str, str]:
    """The SHA-256 of what is in a .gz or .tar.gz, by name; servers may send it decompressed already."""
    if name.endswith(".tar.gz"):
        return {part: hashlib.sha256(data).hexdigest() for part, data in readers.members(path)}
    digest = hashlib.sha256()
    for block in readers.content(path):
        digest.update(block)
    return {name.removesuffix(".gz"): digest.hexdigest()}


def _check(row: Row, found: readers.Examples) -> None:
    """Raises a UserError for examples that are not what the row says."""
    test = np.zeros(len(found.labels), bool) if found.test is None else found.test
    counts = {"train": int((~test).sum()), "test": int(test.sum())}
    if row.examples and counts != dict(row.examples):
        raise UserError(f"has {counts} examples, must be {dict(row.examples)}")
    shape = (*(found.size or ()), *((found.channels,) if found.channels else ()))
    if row.shape and shape != row.shape:
        raise UserError(f"has images of {shape}, must be {row.shape}")
    if row.class_names and found.labels.max(initial=0) >= len(row.class_names):
        raise UserError(
            f"has labels up to {found.labels.max()}, must be less than {len(row.class_names)}"
        )


def _in_order_of_tfds(examples: readers.Examples) -> readers.Examples:
    """The same examples as TFDS stores them; all are in memory while they are read."""
    assert examples.test is not None and examples.size and examples.channels
    count = len(examples.labels)
    memory.require(count * math.prod(examples.size) * examples.channels, f"{count:,} images")
    places = [np.flatnonzero(examples.test == part) for part in (False, True)]
    rows = np.concatenate(
        [
            place[tfds.order(split, len(place))]
            for split, place in zip(cache.SPLITS, places, strict=True)
        ]
    )

    def items() -> Iterator[Any]:
        everything = list(examples.items())
        return (everything[i] for i in rows)

    return examples._replace(items=items, labels=examples.labels[rows], test=examples.test[rows])


def mnist10k(split: str) -> tuple[np.ndarray, np.ndarray]:
    """10,000 real digits that are shipped with bpgan, 9,000 of them for training. See ``MNIST10K.md``."""
    x, y = _digits()
    keep = convert.every_tenth(y) == (split == "test")
    return x[keep], y[keep]


def mnist14(split: str) -> tuple[np.ndarray, np.ndarray]:
    """``mnist10k`` with 14 x 14 pixels, each the mean of four: for networks that a CPU trains in a minute."""
    x, y = mnist10k(split)
    means = x.reshape(len(x), 14, 2, 14, 2, -1).mean((2, 4))
    return np.round(means).astype(np.uint8), y


@functools.lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    with importlib.resources.files("bpgan.data").joinpath("mnist10k.npz").open("rb") as file:
        arrays = np.load(file)
        return arrays["x"], arrays["y"]


def _mnist_like(
    url: str, about: str, sizes: str, digests: str, class_names: tuple[str, ...]
) -> Row:
    """MNIST and what has its form.

    Args:
      url: of the folder.
      about: see ``Row``.
      sizes: of the files, in the order of the digests.
      digests: a line for each file: its own and, if it is known, that of its content.
      class_names: by label.
    """
    names = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    lines = [line.split() for line in digests.strip().splitlines()]
    return Row(
        (url,),
        {
            f"{name}.gz": File(line[0], int(size), {name: line[1]} if line[1:] else {})
            for name, size, line in zip(names, sizes.split(), lines, strict=True)
        },
        readers.idx,
        class_names,
        about,
        version="3.0.1",
        examples={"train": 60_000, "test": 10_000},
        shape=(28, 28, 1),
        in_tfds=True,
    )


def _cifar(
    archive: str, size: int, sha256: str, contents: str, reader: Callable[[str], readers.Raw]
) -> Row:
    """CIFAR in its binary version. ``contents``: a line for each member, name and digest."""
    return Row(
        ("https://www.cs.toronto.edu/~kriz/",),
        {archive: File(sha256, size, dict(line.split() for line in contents.strip().splitlines()))},
        reader,
        about="Krizhevsky 2009, Learning multiple layers of features from tiny images; no license is stated",
        version="3.0.2",
        examples={"train": 50_000, "test": 10_000},
        shape=(32, 32, 3),
        in_tfds=True,
    )


DATASETS: dict[str, Row | Callable[[str], Any]] = {
    "mnist10k": mnist10k,
    "mnist14": mnist14,
    "digits": Row(
        (),
        {},
        readers.digits,
        tuple("0123456789"),
        "Alpaydin and Kaynak 1998, Optical recognition of handwritten digits (UCI), the test set; CC BY 4.0",
        shape=(8, 8, 1),
    ),
    "mnist": _mnist_like(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "LeCun, Cortes and Burges, the MNIST database of handwritten digits; CC BY-SA 3.0",
        "9912422 28881 1648877 4542",
        """
        440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609 ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
        3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c 65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
        8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6 0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
        f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6 ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2
        """,  # noqa: E501
        tuple("0123456789"),
    ),
    "fashion_mnist": _mnist_like(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747; MIT license",
        "26421880 29515 4422102 5148",
        """
        3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84 c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888
        a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845 bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9
        346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073 5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b
        67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5 0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34
        """,  # noqa: E501
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
         "Ankle boot"),
    ),
    "kmnist": _mnist_like(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        "Clanuwat et al. 2018, arXiv:1812.01718; CC BY-SA 4.0",
        "18165135 29497 3041136 5120",
        """
        51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4
        e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17
        edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5
        20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c
        """,
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    "cifar10": _cifar(
        "cifar-10-binary.tar.gz",
        170_052_171,
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        """
        data_batch_1.bin cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5
        data_batch_2.bin a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed
        data_batch_3.bin bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67
        data_batch_4.bin 014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48
        data_batch_5.bin 755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add
        test_batch.bin 8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b
        """,
        readers.cifar10,
    ),
    "cifar100": _cifar(
        "cifar-100-binary.tar.gz",
        168_513_733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        """
        train.bin f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29
        test.bin d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a
        """,
        readers.cifar100,
    ),
}  # fmt: skip
"""By name: a row, or a function ``load(split)`` that gives a ``Dataset`` or arrays; see ``datasets.load``.

The text of the command line may name an entry, or ``module:name`` for one that is not in here.
"""
