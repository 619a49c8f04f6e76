"""What arrays a metric takes: each check returns the arrays, or raises a ValueError that says what they must be."""

import numpy as np


def check_matrix(array: np.ndarray, name: str) -> np.ndarray:
    """A finite matrix with at least one row and one column; ``name`` is what the message calls it."""
    array = np.asarray(array)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be a matrix [n, f] that is not empty, not {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array


def check_pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two finite matrices with as many columns and at least two rows each."""
    x, y = check_matrix(x, "x"), check_matrix(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have as many columns, not {x.shape[1]} and {y.shape[1]}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"x and y need at least 2 rows each, not {len(x)} and {len(y)}")
    return x, y


def check_sets(*sets: np.ndarray) -> list[np.ndarray]:
    """Real matrices with as many columns, of numbers whose squares do not overflow; at least float32."""
    arrays = [np.asarray(x) for x in sets]
    for x in arrays:
        if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "fiub":
            raise ValueError(f"features must be real numbers [n, f], not {x.dtype} {x.shape}")
        # Squares of larger numbers overflow; NaN fails every comparison.
        if not (-1e150 < float(x.min()) and float(x.max()) < 1e150):
            raise ValueError("features must be finite (and below 1e150 in size)")
    if len({x.shape[1] for x in arrays}) > 1:
        widths = ", ".join(str(x.shape[1]) for x in arrays)
        raise ValueError(f"the sets must have as many features each, not {widths}")
    return [
        x.astype(np.float32) if x.dtype.kind in "b" or x.dtype.itemsize < 4 else x for x in arrays
    ]
