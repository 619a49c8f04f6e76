"""Datasets that TensorFlow Datasets prepared, read without TensorFlow. The only module that knows TFDS.

TFDS reads what is prepared as array_record without TensorFlow. Its own code for most datasets needs TensorFlow to
prepare them; of what is not prepared the message of the error has the command.
"""

import contextlib
import difflib
import fnmatch
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpgan.types import UserError


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


class OtherFormat(UserError):
    """A dataset that is prepared, but not as array_record."""


class Request(NamedTuple):
    """What ``NAME``, ``NAME/CONFIG``, ``NAME:VERSION`` or ``NAME/CONFIG:VERSION`` asks for; empty: any."""

    text: str
    name: str
    config: str
    version: str


def parse(text: str) -> Request:
    """Raises a ValueError for what has none of these forms."""
    parts = re.fullmatch(r"([a-zA-Z]\w*)(?:/(\w[\w.+-]*))?(?::([\d.*]+))?", text, re.ASCII)
    if parts is None:
        raise ValueError("must be NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION")
    return Request(text, parts[1], parts[2] or "", parts[3] or "")


def _library() -> Any:
    """TFDS, which takes a while to import. Raises UserError if it is not installed."""
    try:
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        reason = "needs TensorFlow Datasets: pip install tensorflow-datasets array-record"
        raise UserError(f"{reason} ({error.name} is missing)") from None
    return tensorflow_datasets


def find(request: Request) -> Prepared | None:
    """What is prepared as array_record under ``$TFDS_DATA_DIR`` (else ``~/tensorflow_datasets``), or None.

    Without a version the highest that is prepared; without a configuration the only one that is prepared.
    Loads no code of TFDS for it, some of which needs TensorFlow.

    Raises:
      OtherFormat: if it is prepared, but not as array_record.
      UserError: if it has no uint8 images called ``image``, or is damaged.
    """
    root = _data_dir()
    folders = _folders(root, request)
    if not folders:
        return None
    tfds = _library()

    formats = {}
    for folder in folders:
        with _damage(folder):
            _check_files(folder)
            with contextlib.redirect_stdout(io.StringIO()):  # pages about TensorFlow
                builder = tfds.builder_from_directory(folder)
            formats[folder] = {f.value for f in builder.info.available_file_formats()}
            if "array_record" in formats[folder]:
                return _opened(folder, builder)
    folder, found = next(iter(formats.items()))
    given = f"{folder.relative_to(root).parent}:{folder.name}"
    advice = _instruction(given, root.with_name(f"{root.name}_array_record"))
    raise OtherFormat(
        f"{folder} is prepared as {' and '.join(sorted(found))}, which cannot be read without TensorFlow;"
        f" {advice} and set TFDS_DATA_DIR to that folder"
    )


def missing(request: Request, others: Sequence[str] = ()) -> UserError:
    """What to say of a dataset that is not prepared: how to prepare it, or which name is like it.

    Args:
      request: for which ``find`` gives None.
      others: names that can be had without TFDS.
    """
    tfds = _library()

    root = _data_dir()
    known = {*tfds.list_builders(with_community_datasets=False), *others}
    if request.name not in known:
        here = [p.name for p in root.glob("*") if p.is_dir() and not p.name.startswith(".")]
        names = {*known, *here} - {"downloads"}
        near = difflib.get_close_matches(request.name.lower(), names, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        return UserError(f"TFDS knows no dataset of that name, and {root} has none{hint}")
    return UserError(
        f"is not prepared under {root / request.name}, which needs TensorFlow;"
        f" {_instruction(request.text, root)}"
    )


def order(split: str, count: int) -> np.ndarray:
    """The order int64 ``[count]`` in which TFDS stores examples whose keys are their numbers: by a hash of both."""
    keys = [hashlib.md5(f"{split}{i}".encode()).digest() for i in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__), np.int64)


def _folders(root: pathlib.Path, request: Request) -> list[pathlib.Path]:
    """Where a dataset is prepared, the highest version first."""
    name = request.name
    under = f"{request.config}/*" if request.config else "*"
    found = [p.parent for p in root.glob(f"{name}/{under}/dataset_info.json")]
    if not request.config and not found:
        found = [p.parent for p in root.glob(f"{name}/*/*/dataset_info.json")]
    versions = {
        p: tuple(map(int, p.name.split(".")))
        for p in found
        if re.fullmatch(r"\d+\.\d+\.\d+", p.name, re.ASCII)
        and fnmatch.fnmatch(p.name, request.version or "*")
    }
    if len(configs := sorted({p.parent.name for p in versions})) > 1:
        raise UserError(
            f"must name one of its configurations: {', '.join(f'{name}/{c}' for c in configs)}"
        )
    return sorted(versions, key=lambda p: versions[p], reverse=True)


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
    tfds = _library()

    features: Any = builder.info.features
    names = sorted(features) if isinstance(features, tfds.features.FeaturesDict) else []
    if "image" not in names:
        raise UserError(
            f"has no feature 'image', only {', '.join(names) or type(features).__name__}"
        )
    image = features["image"]
    label: Any = features["label"] if "label" in names else None
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
                raise UserError(f"{path} is missing; delete {folder} and have it prepared again")
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
        with _damage(self._folder, "; delete it and have it prepared again"):
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
