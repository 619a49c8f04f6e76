"""Datasets by name, read whole into memory as uint8.

``mnist10k``
    10,000 real MNIST digits, shipped with bpgan; needs no network. Origin and licence: ``bpgan/data/MNIST10K.md``.
    It is a part of the MNIST training set with a split of its own, so results on it are not results on MNIST.
``npz:FILE``
    Arrays ``x`` (uint8, [n, h, w] or [n, h, w, c]) and, optionally, integer labels ``y`` [n].
``tfds:NAME``
    A dataset of TensorFlow Datasets that is already prepared as array_record (TensorFlow itself is not needed).
"""

import importlib.resources
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bpgan.types import UserError


class Dataset(NamedTuple):
    """Images uint8 ``[n, h, w, c]``, labels int32 ``[n]`` in ``range(classes)``."""

    x: np.ndarray
    y: np.ndarray
    classes: int


def _every_tenth(x: np.ndarray, y: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The fixed split of datasets that have none: of the examples sorted by class, every tenth is a test example.

    Stable and stratified: each class gives a tenth of its members, to within one.
    """
    test = np.zeros(len(x), bool)
    test[np.argsort(y, kind="stable")[9::10]] = True
    keep = test if split == "test" else ~test
    return x[keep], y[keep]


def _mnist10k(argument: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    del argument
    with importlib.resources.files("bpgan.data").joinpath("mnist10k.npz").open("rb") as file:
        arrays = np.load(file)
        return _every_tenth(arrays["x"], arrays["y"], split)


def _npz(path: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays)
            x = arrays["x"] if "x" in names else None
            y = arrays["y"] if "y" in names else None
    except FileNotFoundError:
        raise UserError(f"--dataset=npz:{path}: no such file") from None
    except Exception as error:  # NumPy raises a dozen types for as many kinds of damage
        raise UserError(f"--dataset=npz:{path}: not a readable .npz file ({error})") from None
    if x is None:
        raise UserError(f"--dataset=npz:{path}: no array 'x' in it, only {names}")
    if x.ndim and len(x) < 10:
        raise UserError(f"--dataset=npz:{path}: {len(x)} examples, need at least 10")
    y = np.zeros(x.shape[:1], np.int32) if y is None else y
    _check(f"npz:{path}", x, y)
    return _every_tenth(x, y, split)


def _check(name: str, x: np.ndarray, y: np.ndarray) -> None:
    """Raises a UserError unless these are images and their labels."""
    if (
        x.dtype != np.uint8
        or x.ndim not in (3, 4)
        or min(x.shape) < 1
        or (x.ndim == 4 and x.shape[3] not in (1, 3, 4))
    ):
        raise UserError(
            f"--dataset={name}: 'x' is {x.dtype}{list(x.shape)},"
            " must be uint8 [n, h, w] or [n, h, w, c] with 1, 3 or 4 channels"
        )
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise UserError(
            f"--dataset={name}: 'y' is {y.dtype}{list(y.shape)}, must be integers [{len(x)}]"
        )
    if y.min() < 0 or y.max() >= len(x):
        raise UserError(
            f"--dataset={name}: labels go from {y.min()} to {y.max()}, must be class numbers from 0"
        )


def _tfds(name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    data_dir = os.environ.get("TFDS_DATA_DIR")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.is_prepared():
            raise UserError(
                f"--dataset=tfds:{name}: not prepared under {builder.data_dir}; prepare it once with"
                f" file_format='array_record', or point TFDS_DATA_DIR at a prepared copy"
            )
        records = builder.as_data_source(split=split)  # pyright: ignore[reportCallIssue]
        examples = [(record["image"], record.get("label", 0)) for record in records]
    except UserError:
        raise
    except tfds.core.DatasetNotFoundError:
        raise UserError(
            f"--dataset=tfds:{name}: TFDS knows no dataset of that name (TFDS_DATA_DIR={data_dir})"
        ) from None
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--dataset=tfds:{name}: {first_line}") from None
    shapes = {np.shape(image) for image, _ in examples}
    if len(shapes) != 1:
        raise UserError(f"--dataset=tfds:{name}: images of one size are needed, found {shapes}")
    x, y = np.stack([i for i, _ in examples]), np.array([label for _, label in examples])
    _check(f"tfds:{name}", x, y)
    return x, y


DATASETS: dict[str, Callable[[str, str], tuple[np.ndarray, np.ndarray]]] = {
    "mnist10k": _mnist10k,
    "npz": _npz,
    "tfds": _tfds,
}
"""Readers by the part of the name before the colon: ``(rest of the name, split) -> (x, y)``."""


def load(name: str, split: str = "train") -> Dataset:
    """Reads a split of a dataset into memory.

    Args:
      name: ``mnist10k``, ``npz:FILE`` or ``tfds:NAME``.
      split: ``train`` or ``test``.

    Raises:
      UserError: if the dataset is unknown, missing, unreadable or of the wrong form.
    """
    kind, colon, argument = name.partition(":")
    if kind not in DATASETS or (kind == "mnist10k") == bool(colon):
        raise UserError(f"--dataset={name}: must be mnist10k, npz:FILE or tfds:NAME")
    x, y = DATASETS[kind](argument, split)
    x = np.ascontiguousarray(x if x.ndim == 4 else x[..., None])
    return Dataset(x, y.astype(np.int32), int(y.max()) + 1)
