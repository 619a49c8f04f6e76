"""Images that occur several times in a dataset.

Images are duplicates if all their pixels are equal. ``n`` equal images are ``n - 1`` copies. If they have ``k`` labels,
``k - 1`` of the copies have another label, and so at least that many labels are wrong, or the classes are not disjoint.
"""

import hashlib
from typing import Any, NamedTuple

import numpy as np

from bpgan.data.datasets import Dataset

LISTED = 100
"""Sets of duplicates that dataset.json lists, those with several labels first."""

BLOCK = 32 << 20
"""Bytes of images that are in memory at once."""


class Prints(NamedTuple):
    """Of each image of a split, in order: a hash of its pixels, uint64 ``[n, 2]``, and its label, int32 ``[n]``."""

    pixels: np.ndarray
    labels: np.ndarray


def prints(dataset: Dataset) -> Prints:
    """Reads a split block by block."""
    block = max(1, BLOCK // int(np.prod(dataset.shape)))
    pixels = np.empty((dataset.length, 2), np.uint64)
    labels = np.empty(dataset.length, np.int32)
    for start in range(0, dataset.length, block):
        rows = np.arange(start, min(start + block, dataset.length))
        x, labels[rows] = dataset.read(rows)
        hashes = b"".join(hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in x)
        pixels[rows] = np.frombuffer(hashes, np.uint64).reshape(-1, 2)
    return Prints(pixels, labels)


def find(train: Prints, test: Prints) -> dict[str, Any]:
    """Copies within and between the splits.

    Returns:
      ``train`` and ``test``: ``copies``, of which ``other_label`` have another label than those they are copies of;
      ``test_in_train``: ``images`` of the test split that are in the training split, of which ``other_label`` are there
      with other labels only; ``sets``: the first ``LISTED`` sets of equal images, by indices and labels.
    """
    both = np.concatenate([train.pixels, test.pixels])
    labels = np.concatenate([train.labels, test.labels])
    in_test = np.arange(len(both)) >= len(train.labels)
    # By number: images with the same number are equal, and so are images and labels with the same pair.
    image = np.unique(both, axis=0, return_inverse=True)[1].ravel()
    pair = np.unique(np.stack([image, labels], axis=1), axis=0, return_inverse=True)[1].ravel()

    def within(part: np.ndarray) -> dict[str, int]:
        images, pairs = len(np.unique(image[part])), len(np.unique(pair[part]))
        return {"copies": int(part.sum()) - images, "other_label": pairs - images}

    known = np.isin(image[in_test], image[~in_test])
    agreed = np.isin(pair[in_test], pair[~in_test])
    return {
        "train": within(~in_test),
        "test": within(in_test),
        "test_in_train": {"images": int(known.sum()), "other_label": int((known & ~agreed).sum())},
        "sets": _sets(image, labels, len(train.labels)),
    }


def _sets(image: np.ndarray, labels: np.ndarray, train: int) -> list[dict[str, list[int]]]:
    """Indices (in their splits) and labels of the images that have the same number."""
    order = np.argsort(image, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(image[order])) + 1) if len(order) else []
    groups = [group for group in groups if len(group) > 1]
    groups.sort(key=lambda group: (len(np.unique(labels[group])) == 1, group[0]))
    return [
        {
            "train": group[group < train].tolist(),
            "test": (group[group >= train] - train).tolist(),
            "labels": np.unique(labels[group]).tolist(),
        }
        for group in groups[:LISTED]
    ]
