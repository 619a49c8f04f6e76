"""Weights of published networks: PyTorch files read without PyTorch, downloads that are checked.

A PyTorch file is a pickle beside raw arrays, and unpickling runs whatever code the file names. Here a pickle may name
nothing but tensors, their storages and dictionaries; all else is refused unread.
"""

import collections
import hashlib
import io
import os
import pathlib
import pickle
import struct
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from bpgan.types import UserError

_LEGACY = 0x1950A86A20F9469CFC6C
"""The first object of a file in the format before PyTorch 1.6."""

_STORAGES: dict[str, Any] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, shape, strides
            )
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError(f"it refers to {kind!r}")
        return _Storage(str(key), dtype)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch state dict, in the format of today (zip) or that before PyTorch 1.6.

    Tensors may share storages and be stored permuted; the arrays are contiguous copies in their logical order.

    Raises:
      UserError: if the file is missing, damaged, or holds anything else than a dictionary of tensors.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            tensors, load = _open_zip(file) if zipfile.is_zipfile(file) else _open_legacy(file)
            if not isinstance(tensors, dict):
                raise pickle.UnpicklingError(f"it holds a {type(tensors).__name__}, no state dict")
            # Such as module versions; in both formats attributes of the dictionary, never values of it.
            others = [key for key, value in tensors.items() if not isinstance(value, _Tensor)]
            if others:
                raise pickle.UnpicklingError(f"{others[0]!r} is no tensor")
            return {str(key): _array(tensor, load) for key, tensor in tensors.items()}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a damaged pickle raises anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: is no file of PyTorch weights ({first})") from None


def _open_zip(file: Any) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    index = next((name for name in names if name.endswith("/data.pkl")), None)
    if index is None:
        raise pickle.UnpicklingError("it has no data.pkl")
    root = index.removesuffix("data.pkl")
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
    tensors = _Unpickler(io.BytesIO(archive.read(index))).load()
    arrays: dict[str, np.ndarray] = {}

    def load(storage: _Storage) -> np.ndarray:
        if storage.key not in arrays:
            dtype = storage.dtype.newbyteorder(">" if order == b"big" else "<")
            arrays[storage.key] = np.frombuffer(archive.read(f"{root}data/{storage.key}"), dtype)
        return arrays[storage.key]

    return tensors, load


def _open_legacy(file: Any) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    file.seek(0)
    if _Unpickler(file).load() != _LEGACY:
        raise pickle.UnpicklingError("its first bytes are of no such file")
    _Unpickler(file).load()  # version of the protocol
    _Unpickler(file).load()  # sizes of C types
    tensors = _Unpickler(file).load()
    keys = _Unpickler(file).load()
    values = tensors.values() if isinstance(tensors, dict) else ()
    dtypes = {t.storage.key: t.storage.dtype for t in values if isinstance(t, _Tensor)}
    arrays = {}
    for key in map(str, keys):
        (count,) = struct.unpack("<q", file.read(8))
        raw = file.read(count * dtypes[key].itemsize)
        arrays[key] = np.frombuffer(raw, dtypes[key].newbyteorder("<"), count)
    return tensors, lambda storage: arrays[storage.key]


def _array(tensor: _Tensor, load: Callable[[_Storage], np.ndarray]) -> np.ndarray:
    storage, offset = load(tensor.storage), tensor.offset
    last = offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, storage.dtype)
    if offset < 0 or min(tensor.strides, default=0) < 0 or last >= len(storage):
        raise ValueError("a tensor reaches beyond its storage")
    strides = [s * storage.itemsize for s in tensor.strides]
    view = np.lib.stride_tricks.as_strided(storage[offset:], tensor.shape, strides, writeable=False)
    return np.array(view, dtype=tensor.storage.dtype, order="C")


def sha256(path: str | os.PathLike) -> str:
    """The hash of a file.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def download(url: str, path: str | os.PathLike, prefix: str) -> pathlib.Path:
    """Fetches a file unless it is there; it appears under its name only whole and with the right hash.

    Args:
      url: where it is published.
      path: where it is kept.
      prefix: of its SHA-256 in hexadecimal digits.

    Raises:
      UserError: if it cannot be had, or is another file.
    """
    path = pathlib.Path(path)
    if path.exists() and sha256(path).startswith(prefix):
        return path
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=30) as answer, temporary.open("wb") as file:
            total, done, shown = int(answer.headers.get("Content-Length") or 0), 0, 0
            while block := answer.read(1 << 20):
                file.write(block)
                done += len(block)
                if done - shown >= 1 << 24:
                    shown = done
                    print(f"  {path.name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB", flush=True)
        if total and done != total:
            raise UserError(f"{url}: broke off after {done} of {total} bytes")
        if not (found := sha256(temporary)).startswith(prefix):
            raise UserError(f"{url}: sha256 is {found[:12]}..., must begin with {prefix}")
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise UserError(f"{url}: cannot be downloaded to {path} ({reason})") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def folded(
    state: dict[str, np.ndarray], conv: str, norm: str, *, eps: float
) -> dict[str, np.ndarray]:
    """A convolution and the batch norm behind it, with its running statistics, as one convolution with a bias.

    ``gamma (w * x - mean) / sqrt(var + eps) + beta``, folded in float64.

    Args:
      state: of PyTorch, kernels ``[out, in, h, w]``.
      conv, norm: names of the two layers.
      eps: of the batch norm.

    Returns:
      ``kernel`` f32[h, w, in, out] and ``bias`` f32[out].
    """
    kernel = state[f"{conv}.weight"].astype(np.float64)
    gamma, beta, mean, var = (
        state[f"{norm}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(var + eps)
    return {
        "kernel": (kernel.transpose(2, 3, 1, 0) * scale).astype(np.float32),
        "bias": (beta - mean * scale).astype(np.float32),
    }


def expect(state: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]], path: Any) -> None:
    """Raises a UserError unless ``state`` has the arrays that a network needs, in their shapes."""
    for name, shape in shapes.items():
        found = state[name].shape if name in state else "missing"
        if found != shape:
            raise UserError(f"{path}: is of another network ({name} is {found}, must be {shape})")
