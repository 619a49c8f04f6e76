"""Images, rows of the table of datasets, and files that a server has for them."""

import gzip
import hashlib
import struct

import numpy as np

from bpgan.data import known

FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


ROWS = {n: row for n, row in known.DATASETS.items() if isinstance(row, known.Row) and row.files}
"""What is downloaded."""


def random_bytes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def made_digits(counts=(40, 24)) -> tuple[dict[str, bytes], dict]:
    """Files of the form of MNIST's, and per split the images and labels in them."""
    rng = np.random.default_rng(3)
    contents, arrays = {}, {}
    for split, names, n in (("train", FILES[:2], counts[0]), ("test", FILES[2:], counts[1])):
        x = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        y = rng.permutation(np.arange(n) % 10).astype(np.uint8)
        contents |= {names[0]: idx(x), names[1]: idx(y)}
        arrays[split] = x[..., None], y
    return {f"{k}.gz": gzip.compress(raw, mtime=0) for k, raw in contents.items()}, arrays


def row_of(files: dict[str, bytes], urls=(), *, contents=True, **changes) -> known.Row:
    """MNIST's row, for these files in place of the real ones."""
    table = {
        name: known.File(
            sha(raw), len(raw), {name[:-3]: sha(gzip.decompress(raw))} if contents else {}
        )
        for name, raw in files.items()
    }
    row = ROWS["mnist"]._replace(files=table, examples={"train": 40, "test": 24}, **changes)
    return row._replace(urls=urls or row.urls)
