"""Sets of images with their features, which are computed in parts and kept where the feature net is known."""

import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpgan import data
from bpgan.data import cache
from bpgan.metrics.features import Extractor, kept
from bpgan.version import __version__

_CHUNK = 500  # images between two looks at the clock


class Images(NamedTuple):
    """A set of images and what a feature net makes of it.

    Attributes:
      x: uint8 ``[n, h, w, c]``.
      y: int32 labels ``[n]``; None if they have none.
      features: ``[n, f]``.
      logits: ``[n, k]``; None if the net is no classifier.
      turned: classes ``[m, k]`` that the net, a classifier, sees in the same m latents under each of the k labels;
        None of images that no labels made.
    """

    x: np.ndarray
    y: np.ndarray | None
    features: np.ndarray
    logits: np.ndarray | None
    turned: np.ndarray | None = None

    def of_classes(self, chosen: np.ndarray) -> "Images":
        """Those of some classes."""
        assert self.y is not None
        return self.take(np.flatnonzero(np.isin(self.y, chosen)))

    def take(self, rows: Any) -> "Images":
        """Some of the images, by indices or a slice."""
        y, logits = (None if part is None else part[rows] for part in (self.y, self.logits))
        return Images(self.x[rows], y, self.features[rows], logits)


def together(parts: Sequence[Images]) -> Images:
    """Several sets as one; without labels or logits if one of them has none."""

    def joined(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
        found = [each for each in arrays if each is not None]
        return np.concatenate(found) if len(found) == len(parts) else None

    x, features = (
        np.concatenate(each) for each in zip(*[(p.x, p.features) for p in parts], strict=True)
    )
    return Images(x, joined([p.y for p in parts]), features, joined([p.logits for p in parts]))


def embed(x: np.ndarray, y: np.ndarray | None, extractor: Extractor, logits: bool) -> Images:
    """Images with their features, and their logits if wanted and there are any; tells the time left if that is long."""

    def all_of(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        parts, tell = [], progress(extractor.name, len(x), "images")
        for i in range(0, len(x), _CHUNK):
            parts.append(np.asarray(function(x[i : i + _CHUNK])))
            tell(min(i + _CHUNK, len(x)))
        return np.concatenate(parts)

    scores = all_of(extractor.logits) if extractor.logits and logits else None
    return Images(x, y, all_of(extractor.function), scores)


def embed_split(split: data.Dataset, extractor: Extractor, logits: bool) -> Images:
    """The same of a split of a dataset; features of nets whose weights are known are kept beside the converted data.

    Images of one class have no labels.
    """
    x, labels = split.arrays()
    y = labels if split.classes > 1 else None
    if not extractor.sha256:
        return embed(x, y, extractor, logits)
    recipe = zlib.crc32(f"{extractor.preprocessing} {__version__}".encode())
    name = f"{split.sha256[:16]}-{extractor.sha256[:16]}-{recipe:08x}.npz"
    path = cache.directory() / "features" / name
    arrays = kept.load(path) or {}
    features, scores = arrays.get("features"), arrays.get("logits")
    if features is None or scores is None or not len(features) == len(scores) == len(x):
        print(f"features of {split.length:,} images of {split.name} {split.split}", flush=True)
        found = embed(x, y, extractor, True)
        features = found.features
        scores = np.zeros((len(x), 0)) if found.logits is None else found.logits
        kept.save(path, {"features": features, "logits": scores})  # or else they cost time again
    return Images(x, y, features, scores if logits and scores.shape[-1] else None)


def progress(what: str, total: int, unit: str) -> Callable[[int], None]:
    """``tell(done)`` prints, every ten seconds, how far something is and how long it will take."""
    start = said = time.perf_counter()

    def tell(done: int) -> None:
        nonlocal said
        now = time.perf_counter()
        if now - said > 10 and done < total:
            said, rate = now, done / (now - start)
            left = (total - done) / rate
            print(
                f"  {what}: {done:,} of {total:,} {unit}, {rate:.0f}/s, {left:.0f} s left",
                flush=True,
            )

    return tell
