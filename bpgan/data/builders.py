"""Datasets of TensorFlow Datasets, read and prepared without TensorFlow. The only module that knows TFDS.

TFDS reads what is prepared as array_record without TensorFlow, but its own code for the datasets in ``BUILDERS`` needs
TensorFlow to prepare them. Ours makes the same files: same names, versions, features, keys and so order. What it
prepares, TFDS reads; what TFDS prepared, it reads.

A downloaded file is right if its SHA-256 is the one TFDS registers for it (``File.sha256``), or if what it contains has
the digests in ``File.contents``: mirrors pack the same content anew. Those digests are

``fashion_mnist``
    of the files of Debian's package dataset-fashion-mnist, whose content was shown to give the registered digests when
    it is packed with the original gzip headers;
``mnist``
    published next to the registered digests by several independent projects, all of which agree;
``cifar10, cifar100``
    of the members ``*.bin``, as torchvision-ruby verifies them after unpacking the archive with the registered digest;
``kmnist``
    not known to us: its files must be those TFDS registers.

Nothing is unpickled, and archives are read in memory: no path in them is ever followed.
"""

import contextlib
import difflib
import fnmatch
import functools
import gzip
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import shlex
import shutil
import socket
import ssl
import struct
import sys
import tarfile
import urllib.parse
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpgan import files
from bpgan.types import UserError

_STALL = 30.0
"""Seconds without a byte from the server after which a download is given up."""

_CONNECT = 10.0
"""Seconds to wait for a connection, of which three are tried."""

_LARGEST = 1 << 30  # bytes that one file may unpack to; a damaged one could claim any size


class Prepared(NamedTuple):
    """A prepared dataset.

    Attributes:
      directory: where its files are.
      splits: random access by split (``len``, ``[i]``, ``__getitems__([i, ...])``), picklable, to
        ``{"image": uint8 [h, w, c], "label": int}``; ``label`` is missing where it is not a class number. Sizes may
        differ between images. Empty splits are left out.
      class_names: by label; () if unknown.
    """

    directory: pathlib.Path
    splits: dict[str, Sequence[Mapping[str, Any]]]
    class_names: tuple[str, ...]


class File(NamedTuple):
    """A file to download: its SHA-256, and by name that of what is in it (the decompressed .gz, members of a tar)."""

    sha256: str
    contents: Mapping[str, str] = {}


class Spec(NamedTuple):
    """How to prepare a dataset.

    Attributes:
      version: as TFDS counts.
      url: the folder of the files.
      files: by name.
      splits: for each split the names of the contents it is read from.
      read: ``read([bytes, ...]) -> {"image": uint8 [n, h, w, c], label feature: uint8 [n]}`` for these contents.
        Raises ValueError where their structure is wrong.
      shape: of an image.
      examples: by split.
      labels: for each label feature the class names, or how many classes there are.
      class_names: for a label feature the content that lists its names, one a line.
      ids: whether there is a feature ``id``, ``train_00000`` and so on.
    """

    version: str
    url: str
    files: Mapping[str, File]
    splits: Mapping[str, tuple[str, ...]]
    read: Callable[[Sequence[bytes]], dict[str, np.ndarray]]
    shape: tuple[int, int, int]
    examples: Mapping[str, int]
    labels: Mapping[str, int | tuple[str, ...]]
    class_names: Mapping[str, str] = {}
    ids: bool = False


# What is downloaded -------------------------------------------------------------------------------------------------


def _read_idx(contents: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Images and labels from two files of the format idx (magic number, sizes, bytes)."""
    arrays = []
    for data, rank in zip(contents, (3, 1), strict=True):
        if data[:4] != bytes((0, 0, 8, rank)) or len(data) < 4 + 4 * rank:
            raise ValueError(f"not an idx file of bytes of rank {rank}")
        sizes = struct.unpack_from(f">{rank}I", data, 4)
        if len(data) != 4 + 4 * rank + int(np.prod(sizes, dtype=object)):
            raise ValueError(f"has {len(data)} bytes, which is not right for sizes {sizes}")
        arrays.append(np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(sizes))
    return {"image": arrays[0][..., None], "label": arrays[1]}


def _read_cifar(contents: Sequence[bytes], labels: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Files of records: a byte for each label, then the red, the green and the blue pixels of 32 x 32."""
    size = len(labels) + 3072
    for data in contents:
        if len(data) % size:
            raise ValueError(f"has {len(data)} bytes, which is no multiple of {size}")
    records = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, size)
    images = records[:, len(labels) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return {"image": images, **{name: records[:, i] for i, name in enumerate(labels)}}


def _idx_spec(url: str, digests: str, labels: int | tuple[str, ...]) -> Spec:
    """MNIST and what has its form. ``digests``: a line per file, of the file and, if it is known, of its content."""
    names = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    lines = [line.split() for line in digests.strip().splitlines()]
    files = {
        f"{name}.gz": File(line[0], {name: line[1]} if line[1:] else {})
        for name, line in zip(names, lines, strict=True)
    }
    return Spec(
        "3.0.1", url, files, {"train": tuple(names[:2]), "test": tuple(names[2:])}, _read_idx,
        (28, 28, 1), {"train": 60_000, "test": 10_000}, {"label": labels},
    )  # fmt: skip


def _cifar_spec(
    archive: str, sha256: str, contents: str, labels: dict[str, tuple[int, str]]
) -> Spec:
    """CIFAR in its binary version. ``contents``: a line per member, name and digest, the test split last.

    ``labels``: for each label, in the order of a record's bytes, the number of classes and the list of their names.
    """
    members = dict(line.split() for line in contents.strip().splitlines())
    *train, test = members
    return Spec(
        "3.0.2",
        "https://www.cs.toronto.edu/~kriz/",
        {archive: File(sha256, members)},
        {"train": tuple(train), "test": (test,)},
        functools.partial(_read_cifar, labels=tuple(labels)),
        (32, 32, 3),
        {"train": 50_000, "test": 10_000},
        {name: classes for name, (classes, _) in labels.items()},
        {name: listed for name, (_, listed) in labels.items()},
        ids=True,
    )


_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
            "Ankle boot")  # fmt: skip

BUILDERS: dict[str, Spec] = {
    "mnist": _idx_spec(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        """
        440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609 ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
        3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c 65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
        8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6 0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
        f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6 ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2
        """,  # noqa: E501
        10,
    ),
    "fashion_mnist": _idx_spec(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        """
        3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84 c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888
        a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845 bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9
        346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073 5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b
        67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5 0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34
        """,  # noqa: E501
        _CLOTHES,
    ),
    "kmnist": _idx_spec(
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        """
        51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4
        e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17
        edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5
        20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c
        """,
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
    ),
    "cifar10": _cifar_spec(
        "cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        """
        data_batch_1.bin cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5
        data_batch_2.bin a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed
        data_batch_3.bin bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67
        data_batch_4.bin 014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48
        data_batch_5.bin 755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add
        test_batch.bin 8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b
        """,
        {"label": (10, "batches.meta.txt")},
    ),
    "cifar100": _cifar_spec(
        "cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        """
        train.bin f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29
        test.bin d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a
        """,
        {"coarse_label": (20, "coarse_label_names.txt"), "label": (100, "fine_label_names.txt")},
    ),
}  # fmt: skip
"""The datasets that bpgan can download and prepare, by their names in TFDS."""


# Opening ------------------------------------------------------------------------------------------------------------


def open_prepared(name: str, *, mirror: str = "") -> Prepared:
    """A dataset of TFDS that is prepared as array_record under ``$TFDS_DATA_DIR`` (else ``~/tensorflow_datasets``).

    One that is in ``BUILDERS`` and not prepared is downloaded and prepared first: one line on stdout says so, and if
    stderr is a terminal it shows progress. Of processes that want to prepare the same, one does and the others wait.
    What is interrupted, killed or refused leaves nothing that is taken for a whole file or dataset later.

    Args:
      name: ``NAME``, ``NAME/CONFIG``, ``NAME:VERSION`` or ``NAME/CONFIG:VERSION``. Without a version the highest that
        is prepared; without a configuration the only one that is prepared.
      mirror: an http or https URL of a folder with the files, in place of the one they come from.

    Raises:
      UserError: if the name is unknown; if the dataset is not prepared as array_record, and needs TensorFlow for that
        (the message has the command); if it has no uint8 images called ``image``; if a download fails (a server that
        sends nothing for 30 s, or cannot be reached, is given up), or what arrives is not the file it should be; if the
        folder cannot be written.
    """
    parts = re.fullmatch(r"([a-zA-Z]\w*)(?:/(\w[\w.+-]*))?(?::([\d.*]+))?", name, re.ASCII)
    _check_mirror(mirror)
    try:
        if parts is None:
            raise UserError("must be NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION")
        return _open(name, *parts.group(1, 2, 3), mirror=mirror)
    except UserError as error:
        raise UserError(str(error), argument="dataset", value=f"tfds:{name}") from None


def _open(
    full_name: str, name: str, config: str | None, version: str | None, mirror: str
) -> Prepared:
    root = _data_dir()
    if found := _find(root, name, config, version):
        return found
    spec = BUILDERS.get(name)
    if spec and config:
        raise UserError(f"{name} has no configurations")
    if spec and not fnmatch.fnmatch(spec.version, version or "*"):
        raise UserError(
            f"is not prepared under {root / name}, and can be in version {spec.version} only"
        )
    if spec:
        _prepare(root, name, spec, mirror)
        if found := _find(root, name, config, version):
            return found
        raise UserError(
            f"{root / name / spec.version} holds no dataset; delete it and repeat the command"
        )
    import tensorflow_datasets as tfds

    known = {*tfds.list_builders(with_community_datasets=False), *BUILDERS}
    if name not in known:
        here = [p.name for p in root.glob("*") if p.is_dir() and not p.name.startswith(".")]
        near = difflib.get_close_matches(name.lower(), {*known, *here} - {"downloads"}, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"TFDS knows no dataset of that name, and {root} has none{hint}")
    raise UserError(
        f"is not prepared under {root / name}, which needs TensorFlow; {_instruction(full_name, root)}"
    )


def _instruction(full_name: str, root: pathlib.Path) -> str:
    arguments = f'"{full_name}", data_dir={json.dumps(str(root))}, file_format="array_record"'
    code = f"import tensorflow_datasets as tfds; tfds.builder({arguments}).download_and_prepare()"
    return f"in an environment with tensorflow run once: python -c {shlex.quote(code)}"


def _data_dir() -> pathlib.Path:
    given = os.environ.get("TFDS_DATA_DIR") or os.path.join("~", "tensorflow_datasets")
    if "://" in given:
        raise UserError(f"TFDS_DATA_DIR={given}: must be a folder of this machine")
    try:
        return pathlib.Path(given).expanduser().absolute()
    except RuntimeError:  # no $HOME, and nobody of that name or number
        raise UserError(
            f"there is no home directory for {given}; TFDS_DATA_DIR names another folder"
        ) from None


def _find(
    root: pathlib.Path, name: str, config: str | None, version: str | None
) -> Prepared | None:
    """What is prepared under ``root``, or None. Loads no code of TFDS for it, some of which needs TensorFlow."""
    under = f"{config}/*" if config else "*"
    folders = [p.parent for p in root.glob(f"{name}/{under}/dataset_info.json")]
    if not config and not folders:
        folders = [p.parent for p in root.glob(f"{name}/*/*/dataset_info.json")]
    versions = {
        p: tuple(map(int, p.name.split(".")))
        for p in folders
        if re.fullmatch(r"\d+\.\d+\.\d+", p.name, re.ASCII)
        and fnmatch.fnmatch(p.name, version or "*")
    }
    if not versions:
        return None
    if len(configs := sorted({p.parent.name for p in versions})) > 1:
        raise UserError(
            f"must name one of its configurations: {', '.join(f'{name}/{c}' for c in configs)}"
        )
    import tensorflow_datasets as tfds

    formats = {}
    for folder in sorted(versions, key=lambda p: versions[p], reverse=True):
        with _damage(folder):
            _check_files(folder)
            with contextlib.redirect_stdout(io.StringIO()):  # pages about TensorFlow
                builder = tfds.builder_from_directory(folder)
            formats[folder] = {f.value for f in builder.info.available_file_formats()}
            if "array_record" in formats[folder]:
                return _opened(folder, builder)
    folder, found = next(iter(formats.items()))
    advice = (
        "set TFDS_DATA_DIR to another folder and bpgan prepares it there"
        if name in BUILDERS
        else _instruction(
            f"{folder.relative_to(root).parent}:{folder.name}",
            root.with_name(f"{root.name}_array_record"),
        )
        + " and set TFDS_DATA_DIR to that folder"
    )
    raise UserError(
        f"{folder} is prepared as {' and '.join(sorted(found))}, which cannot be read without TensorFlow; {advice}"
    )


@contextlib.contextmanager
def _damage(folder: pathlib.Path, advice: str = "") -> Iterator[None]:
    """Whatever is raised within becomes a UserError: TFDS parses files of several formats, and checks none."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except ImportError:
        raise UserError(f"{folder} has features that need TensorFlow, such as videos") from None
    except Exception as error:
        raise UserError(f"{folder} is damaged ({_first_line(error)}){advice}") from None


def _check_files(folder: pathlib.Path) -> None:
    """Raises a UserError for what is neither a file nor a folder; a pipe would be waited for."""
    for path in folder.rglob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"{path} is no regular file")


def _opened(folder: pathlib.Path, builder: Any) -> Prepared:
    import tensorflow_datasets as tfds

    features: Any = builder.info.features
    names = sorted(features) if isinstance(features, tfds.features.FeaturesDict) else []
    if "image" not in names:
        raise UserError(
            f"has no feature 'image', only {', '.join(names) or type(features).__name__}"
        )
    image = features["image"]
    label = features["label"] if "label" in names else None
    dtype, shape = getattr(image, "np_dtype", None), getattr(image, "shape", None)
    if dtype != np.uint8 or not isinstance(shape, tuple) or len(shape) != 3:
        raise UserError(f"its feature 'image' is {dtype} {shape}, must be uint8 (h, w, c)")
    wanted = {"image": image}
    class_names: tuple[str, ...] = ()
    if isinstance(label, tfds.features.ClassLabel):
        class_names = tuple(label.names) if label.num_classes else ()
    kind: Any = getattr(label, "np_dtype", None)
    if label is not None and label.shape == () and np.issubdtype(kind, np.integer):
        wanted["label"] = label
    splits = {}
    for split, part in builder.info.splits.items():
        for path in part.filepaths if part.num_examples else ():
            if not os.path.exists(path):
                raise UserError(f"{path} is missing; delete {folder} to have it prepared again")
        if part.num_examples:
            records = builder.as_data_source(
                split=split,
                # Of several formats TFDS would take any with random access, parquet as well.
                file_format="array_record",
                deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
            )
            splits[split] = _Examples(records, tfds.features.FeaturesDict(wanted), folder)
    if not splits:
        raise UserError(f"{folder} is prepared, but has no examples")
    return Prepared(folder, splits, class_names)


class _Examples(Sequence):
    """The records of a split, of which only the features asked for are decoded: others may need TensorFlow."""

    def __init__(self, records: Any, features: Any, folder: pathlib.Path):
        self.__setstate__((records, features, folder))

    def __getstate__(self):
        return self._records, self._features, self._folder

    def __setstate__(self, state):
        self._records, self._features, self._folder = state
        logging.getLogger("absl").addFilter(_is_worth_saying)  # in every process

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at ``indices``. Raises a UserError if the files are damaged."""
        with _damage(self._folder, "; delete it to have it prepared again"):
            return [self._decoded(record) for record in self._records.__getitems__(indices)]

    def __repr__(self) -> str:
        return repr(self._records)

    def _decoded(self, record: bytes) -> dict[str, Any]:
        example = self._features.deserialize_example_np(record)
        return {key: int(v) if key == "label" else v for key, v in example.items()}


def _is_worth_saying(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("OpenCV is not installed")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# Preparing ----------------------------------------------------------------------------------------------------------


def _check_mirror(mirror: str) -> None:
    if not mirror:
        return
    try:
        url = urllib.parse.urlsplit(mirror)
        good = url.scheme in ("http", "https") and url.hostname and (url.port or 1)
    except ValueError:
        good = False
    if not good or re.search(r"[\s?#\x00-\x1f]", mirror):
        given = " ".join(mirror.split())
        raise UserError("must be an http or https URL", argument="mirror", value=given)


def _prepare(root: pathlib.Path, name: str, spec: Spec, mirror: str) -> None:
    import tensorflow_datasets as tfds

    base = (mirror or spec.url).rstrip("/")
    downloads = root / "downloads"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{name}.lock", name):
            if (root / name / spec.version).exists():  # another process prepared it meanwhile
                return
            print(f"preparing tfds:{name} in {root / name} ...", flush=True)
            before = _partial(downloads / name)
            try:
                with _timeouts(), _quiet():
                    _builder(name, spec, base, root).download_and_prepare(
                        download_dir=downloads,
                        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                    )
            finally:
                for folder in _partial(downloads / name) - before:
                    shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        where = error.filename or root
        raise UserError(f"cannot write {where}: {error.strerror or _first_line(error)}") from None


def _partial(folder: pathlib.Path) -> set[pathlib.Path]:
    """Where TFDS keeps downloads that are under way. It looks at none of them again."""
    return set(folder.rglob("*.tmp.*"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints what it does, urllib3 logs its retries; of that only progress bars are shown, and these to people."""
    import tensorflow_datasets as tfds

    loggers = [logging.getLogger(name) for name in ("absl", "urllib3")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        tfds.display_progress_bar(enable=sys.stderr.isatty())
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(enable=True)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _locked(path: pathlib.Path, name: str) -> Iterator[None]:
    """Waits until no other process is in here, where the disk has locks."""
    with path.open("a", encoding="utf-8") as file:
        files.lock(file, f"tfds:{name} is being prepared by another process; waiting")
        yield


def _builder(name: str, spec: Spec, base: str, root: pathlib.Path) -> Any:
    """TFDS' builder of a dataset, in our words: its own of the same name needs TensorFlow to unpack and encode."""
    import tensorflow_datasets as tfds

    dataset = name

    class Prepare(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset
        VERSION = tfds.core.Version(spec.version)

        def _info(self):
            features: dict[str, Any] = {"id": tfds.features.Text()} if spec.ids else {}
            features["image"] = tfds.features.Image(shape=spec.shape)
            for label, classes in spec.labels.items():
                features[label] = (
                    tfds.features.ClassLabel(num_classes=classes)
                    if isinstance(classes, int)
                    else tfds.features.ClassLabel(names=classes)
                )
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{dataset} as TFDS defines it, prepared by bpgan without TensorFlow.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage=f"https://www.tensorflow.org/datasets/catalog/{dataset}",
            )

        def _split_generators(self, dl_manager):
            contents: dict[str, bytes] = {}
            for file in (
                spec.files
            ):  # one after the other: a failure leaves no download going on in a thread
                contents |= _download(dl_manager, f"{base}/{file}", file, spec)
            for label, listed in spec.class_names.items():
                lines = contents[listed].decode("ascii", "replace").split("\n")
                features: Any = self.info.features
                features[label].names = [line for line in lines if line]
            return {
                split: self._generate_examples(split, _columns(spec, split, contents))
                for split in spec.splits
            }

        def _generate_examples(self, split, columns):
            images = columns.pop("image")
            for i in range(len(images)):
                example: dict[str, Any] = {key: int(values[i]) for key, values in columns.items()}
                if spec.ids:
                    example["id"] = f"{split}_{i:05d}"
                yield i, {**example, "image": _png(images[i])}

    return Prepare(data_dir=root, file_format="array_record")


def _columns(spec: Spec, split: str, contents: Mapping[str, bytes]) -> dict[str, np.ndarray]:
    """The features of a split, by name. Raises a UserError where they are not what the specification says."""
    what = " and ".join(spec.splits[split])
    try:
        columns = spec.read([contents[part] for part in spec.splits[split]])
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None
    n = spec.examples[split]
    if columns["image"].shape != (n, *spec.shape) or any(
        columns[k].shape != (n,) for k in spec.labels
    ):
        found = {key: values.shape for key, values in columns.items()}
        raise UserError(
            f"{what}: have the shapes {found}, must be {n} images of {spec.shape} and labels"
        )
    for label, classes in spec.labels.items():
        limit = classes if isinstance(classes, int) else len(classes)
        if columns[label].max(initial=0) >= limit:
            raise UserError(
                f"{what}: {label} is up to {columns[label].max()}, must be less than {limit}"
            )
    return columns


def _png(image: np.ndarray) -> bytes:
    """uint8 ``[h, w, 1|3]`` as PNG, without filters: as small as with them for images of this size, and no PIL."""
    h, w, c = image.shape
    rows = np.zeros((h, 1 + w * c), np.uint8)  # the first byte of a row is its filter
    rows[:, 1:] = image.reshape(h, w * c)
    header = struct.pack(">IIBBBBB", w, h, 8, {1: 0, 3: 2}[c], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


# Downloading --------------------------------------------------------------------------------------------------------


def _download(dl_manager: Any, url: str, name: str, spec: Spec) -> dict[str, bytes]:
    """The contents of a file, by name. What is not the right file does not stay among the downloads."""
    import requests
    from tensorflow_datasets.core.download import download_manager, util

    try:
        path = pathlib.Path(dl_manager.download(url))
    except (requests.RequestException, util.DownloadError) as error:
        raise UserError(f"cannot download {url} ({_reason(error)}); {_elsewhere(spec)}") from None
    except download_manager.NonMatchingChecksumError as error:
        # TFDS knows the digests of the addresses it downloads from itself.
        _, found = re.findall(r"checksum='(\w+)'", str(error)) or ("", "unknown")
        raise UserError(_mismatch(url, "", found, spec.files[name].sha256, spec)) from None
    data = path.read_bytes()
    try:
        return _verified(data, url, name, spec)
    except UserError:
        path.unlink()
        path.with_name(f"{path.name}.INFO").unlink(missing_ok=True)
        raise


def _verified(data: bytes, url: str, name: str, spec: Spec) -> dict[str, bytes]:
    """The contents of a file that is the right one. Raises a UserError with the digests for one that is not."""
    file = spec.files[name]
    digest = hashlib.sha256(data).hexdigest()
    try:
        contents = _unpack(data, name)
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        problem = f" (it is damaged: {_first_line(error)})"
        raise UserError(_mismatch(url, "", digest + problem, file.sha256, spec)) from None
    if digest == file.sha256:
        return contents
    if not file.contents:
        raise UserError(_mismatch(url, "", digest, file.sha256, spec))
    for part, expected in file.contents.items():
        if part not in contents:
            raise UserError(
                _mismatch(url, f" (there is no {part} in it)", digest, file.sha256, spec)
            )
        found = hashlib.sha256(contents[part]).hexdigest()
        if found != expected:
            raise UserError(_mismatch(url, f" of {part} in it", found, expected, spec))
    return contents


def _mismatch(url: str, part: str, found: str, expected: str, spec: Spec) -> str:
    return (
        f"{url} is not the file it should be: SHA-256{part} must be {expected}, is {found}; it was removed,"
        f" the same command downloads it again; {_elsewhere(spec)}"
    )


def _elsewhere(spec: Spec) -> str:
    folder = (
        ", or put the files into a folder and use --dataset=idx:FOLDER"
        if spec.read is _read_idx
        else ""
    )
    return f"name another server with --mirror=URL{folder}"


def _unpack(data: bytes, name: str) -> dict[str, bytes]:
    """What a .gz or .tar.gz contains, by name without folders; servers may send it decompressed already."""
    if data[:2] == b"\x1f\x8b":
        with gzip.open(io.BytesIO(data)) as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"unpacks to more than {_LARGEST} bytes")
    if not name.endswith(".tar.gz"):
        return {name.removesuffix(".gz"): data}
    contents = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            if not member.isfile():
                continue
            if member.size > _LARGEST:  # a sparse one may claim any size
                raise ValueError(f"{member.name!r} unpacks to more than {_LARGEST} bytes")
            if file := archive.extractfile(member):
                contents[member.name.rpartition("/")[2]] = file.read()
    return contents


@contextlib.contextmanager
def _timeouts() -> Iterator[None]:
    """Gives the connections of TFDS a timeout, and three tries in place of ten.

    TFDS makes its sessions itself, without timeouts, and has no setting for them: a server that stalls would hold a run
    forever, a name that cannot be resolved for minutes. It asks ``requests.adapters`` for the adapter it mounts; that
    name is what is replaced here, for as long as TFDS prepares. Sessions that others make meanwhile are not touched.
    """
    import requests.adapters
    import urllib3

    original = requests.adapters.HTTPAdapter
    # A server may ask for any pause before the next try.
    retries = urllib3.Retry(2, read=0, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504),
                            respect_retry_after_header=False)  # fmt: skip

    class Adapter(original):
        def __init__(self, **options):
            super().__init__(**{**options, "max_retries": retries})

        def send(self, request, **options):  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().send(request, **{**options, "timeout": (min(_CONNECT, _STALL), _STALL)})

    requests.adapters.HTTPAdapter = Adapter
    try:
        yield
    finally:
        requests.adapters.HTTPAdapter = original


def _reason(error: BaseException) -> str:
    """Why a download failed, in a few words, from the chain of errors that requests and urllib3 make of it."""
    import urllib3.exceptions

    chain: list[BaseException] = [error]
    for e in chain:  # grows as it is walked
        links = [e.__cause__, e.__context__, getattr(e, "reason", None), *e.args]
        chain += [link for link in links if isinstance(link, BaseException) and link not in chain]
    errors = urllib3.exceptions
    reasons = {  # in this order: urllib3 calls any failure to connect a timeout
        socket.gaierror: "there is no server of that name, or no network",
        errors.IncompleteRead: "the connection was closed before the end of the file",
        errors.ReadTimeoutError: f"the server sent nothing for {_STALL:g} s",
        ConnectionRefusedError: "connection refused",
        ConnectionResetError: "connection reset by the server",
        ssl.SSLError: "no secure connection",
        errors.ConnectTimeoutError: f"no connection within {min(_CONNECT, _STALL):g} s",
    }
    for kind, reason in reasons.items():
        if any(isinstance(e, kind) for e in chain):
            return reason
    if status := re.search(r"HTTP code: (\d+)|too many (\d+) error", str(error)):
        return f"HTTP status {status[1] or status[2]}"
    return _first_line(error)
