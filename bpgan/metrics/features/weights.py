"""Weights of published networks: PyTorch files read without PyTorch, downloads that are checked.

A PyTorch file is a pickle beside raw arrays. Python's own reader of pickles runs whatever code the file names, and
takes whatever memory it asks for: six bytes are enough for gigabytes. The reader here knows the few instructions that
make a dictionary of tensors, calls nothing, and builds nothing much larger than the file; all else is refused.
"""

import hashlib
import io
import math
import mmap
import os
import pathlib
import pickle
import pickletools
import stat
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from bpgan.download import fetch
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


_DICTIONARY = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"

_TIMES = 8
"""The tensors of a file may take this many times its size, because some share their numbers (tied weights)."""


class _Name(NamedTuple):
    """What a pickle names of a module, as pickletools has it; nothing is imported."""

    text: str


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _named(module: Any, name: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(name, str):
        raise pickle.UnpicklingError("it names what has no name")
    text = f"{module} {name}"
    if text in (_DICTIONARY, _TENSOR, _PARAMETER) or (module == "torch" and name in _STORAGES):
        return _Name(text)
    raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a tensor")


def _called(function: Any, arguments: Any) -> Any:
    """What the few functions that a file may name make of their arguments."""
    if function == _Name(_DICTIONARY):
        return {}
    if function == _Name(_PARAMETER):
        return arguments[0]
    if function != _Name(_TENSOR):
        raise pickle.UnpicklingError("it calls what is no function")
    storage, offset, shape, strides, *_ = arguments
    sound = isinstance(storage, _Storage) and len(shape) == len(strides)
    if not sound or any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
        raise pickle.UnpicklingError("it has a tensor of no shape")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _stored(pid: Any) -> _Storage:
    kind, numbers, key, *_ = pid
    if kind != "storage" or not isinstance(numbers, _Name) or not isinstance(key, str):
        raise pickle.UnpicklingError("it refers to something else than numbers")
    return _Storage(key, np.dtype(_STORAGES[numbers.text.removeprefix("torch ")]))


def _filled(container: Any, items: list[Any]) -> None:
    """Puts items into a list; or into a dictionary, whose keys and values they are in turn."""
    if isinstance(container, list):
        container += items
        return
    if not isinstance(container, dict) or not all(isinstance(key, str) for key in items[::2]):
        raise pickle.UnpicklingError("it has a dictionary whose keys are not text")
    container.update(zip(items[::2], items[1::2], strict=True))


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _unpickled(file: Any) -> Any:
    """The object whose pickle begins where ``file`` is; the file is behind it then.

    It is made of dictionaries with text for keys, lists, tuples, constants and tensors. An instruction that PyTorch
    does not write is refused, and one out of place raises whatever it raises.
    """
    stack: list[Any] = []
    marked: list[list[Any]] = []  # what lies under each mark
    memo: dict[int, Any] = {}
    value: Any
    for instruction, value, _ in pickletools.genops(file):
        match instruction.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name]())
            case name if name in _VALUES:
                stack.append(value)
            case name if name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "MARK":
                marked.append(stack)
                stack = []
            case "TUPLE":
                stack = [*marked.pop(), tuple(stack)]
            case "SETITEMS" | "APPENDS":
                items, stack = stack, marked.pop()
                _filled(stack[-1], items)
            case "SETITEM" | "APPEND" as name:
                count = 2 if name == "SETITEM" else 1
                items = [stack.pop() for _ in range(count)][::-1]
                _filled(stack[-1], items)
            case "GLOBAL":
                stack.append(_named(*value.split(" ", 1)))
            case "STACK_GLOBAL":
                stack[-2:] = [_named(*stack[-2:])]
            case "BINPERSID":
                stack[-1] = _stored(stack[-1])
            case "REDUCE":
                stack[-2:] = [_called(*stack[-2:])]
            case "BUILD":  # attributes of a dictionary, such as module versions
                stack.pop()
            case "STOP":
                return stack.pop()
            case name:
                raise pickle.UnpicklingError(f"it has the instruction {name}, of no tensor")
    raise pickle.UnpicklingError("it ends early")


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a PyTorch state dict, in the format of today (zip) or that before PyTorch 1.6.

    Tensors may share storages and be stored permuted; the arrays are contiguous copies in their logical order.

    Raises:
      UserError: if the file is missing, damaged, or holds anything else than a dictionary of tensors.
    """
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            tensors, load = (_open_zip if zipfile.is_zipfile(file) else _open_legacy)(file, size)
            if not isinstance(tensors, dict):
                raise pickle.UnpicklingError(f"it holds a {type(tensors).__name__}, no state dict")
            # Such as module versions; in both formats attributes of the dictionary, never values of it.
            others = [key for key, value in tensors.items() if not isinstance(value, _Tensor)]
            if others:
                raise pickle.UnpicklingError(f"{others[0]!r:.60} is no tensor")
            needed = sum(math.prod(t.shape) * t.storage.dtype.itemsize for t in tensors.values())
            if needed > _TIMES * size:
                raise ValueError(f"its tensors would take {needed:,} bytes, and it has {size:,}")
            return {key: _array(tensor, load) for key, tensor in tensors.items()}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UserError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: is no file of PyTorch weights ({first})") from None


def _opened(path: str | os.PathLike) -> io.BufferedReader:
    """The file, open. Raises UserError if it cannot be read, or may never end, as a pipe."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"{path}: is no regular file")
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _open_zip(file: BinaryIO, size: int) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    index = next((name for name in names if name.endswith("/data.pkl")), None)
    if index is None:
        raise pickle.UnpicklingError("it has no data.pkl")
    root = index.removesuffix("data.pkl")

    def member(name: str) -> bytes:
        found = archive.getinfo(name)
        if found.compress_type != zipfile.ZIP_STORED or found.file_size > size:
            raise ValueError(f"{name} is compressed, which PyTorch does not do")
        return archive.read(found)

    order = member(f"{root}byteorder") if f"{root}byteorder" in names else b"little"
    tensors = _unpickled(io.BytesIO(member(index)))
    arrays: dict[str, np.ndarray] = {}

    def load(storage: _Storage) -> np.ndarray:
        if storage.key not in arrays:
            dtype = storage.dtype.newbyteorder(">" if order == b"big" else "<")
            arrays[storage.key] = np.frombuffer(member(f"{root}data/{storage.key}"), dtype)
        return arrays[storage.key]

    return tensors, load


def _open_legacy(file: BinaryIO, size: int) -> tuple[Any, Callable[[_Storage], np.ndarray]]:
    # Read from memory: of a file, Python makes room for as many bytes as are asked for, before it looks.
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        if _unpickled(view) != _LEGACY:
            raise pickle.UnpicklingError("its first bytes are of no such file")
        _unpickled(view)  # version of the protocol
        _unpickled(view)  # sizes of C types
        tensors = _unpickled(view)
        keys = _unpickled(view)
        values = tensors.values() if isinstance(tensors, dict) else ()
        dtypes = {t.storage.key: t.storage.dtype for t in values if isinstance(t, _Tensor)}
        arrays = {}
        for key in keys:
            (count,) = struct.unpack("<q", view.read(8))
            if not 0 <= count <= size:
                raise ValueError(f"{count:,} numbers in a file of {size:,} bytes")
            raw = view.read(count * dtypes[key].itemsize)
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
        with _opened(path) as file:
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

    def problem(path: pathlib.Path) -> str:
        found = sha256(path)
        return "" if found.startswith(prefix) else f"SHA-256 must begin with {prefix}, is {found}"

    return fetch([url], path, problem)


def fold_batch_norm(
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
