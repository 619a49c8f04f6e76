"""Feature nets: what turns images into the vectors that metrics compare.

A number is comparable with another one only if both came from the same net on the same preprocessing, so an
``Extractor`` carries its name, the hash of its weights and what it does to an image, and every report shows them.
"""

import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from bpgan.types import UserError


class Extractor(NamedTuple):
    """A feature net.

    Attributes:
      name: part of the name of every number made with it.
      sha256: of its weights; empty if it has none.
      preprocessing: what happens to an image before the net, in words.
      function: images uint8 ``[n, h, w, c]`` -> features float ``[n, f]``.
      logits: images uint8 ``[n, h, w, c]`` -> class scores ``[n, k]``; None if the net is no classifier.
      of_data: whether those are the classes of the dataset.
      inception: whether it is the Inception network with the published weights, whose distances are called FID and KID.
      traced: ``(function, logits)`` of images as floats in [-1, 1], to be compiled and differentiated with what is
        around them; None where there are none.
    """

    name: str
    sha256: str
    preprocessing: str
    function: Callable[[np.ndarray], np.ndarray]
    logits: Callable[[np.ndarray], np.ndarray] | None = None
    of_data: bool = False
    inception: bool = False
    traced: tuple[Callable[..., Array], Callable[..., Array]] | None = None


def in_batches(
    function: Callable[[np.ndarray], np.ndarray], images: np.ndarray, batch: int
) -> np.ndarray:
    """``function`` of all images, called with ``batch`` of them at a time; the last are filled up, so it compiles once.

    Args:
      function: ``[batch, h, w, c] -> [batch, f]``, each row of its own.
      images: ``[n, h, w, c]``.
      batch: images per call.
    """

    def rows() -> Iterator[np.ndarray]:
        for i in range(0, len(images), batch):
            part = images[i : i + batch]
            filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
            yield np.asarray(function(filled))[: len(part)]

    return np.concatenate(list(rows()))


def images_at_a_time(accelerator: int) -> int:
    """How many images a large network sees in one call: on a CPU two, whose activations stay in its caches."""
    return 2 if jax.default_backend() == "cpu" else accelerator


def plug(function: Callable[[np.ndarray], np.ndarray], path: str) -> Extractor:
    """A user's own ``images uint8 [n, h, w, c] -> features [n, f]``.

    Args:
      function: the user's.
      path: the name of the extractor and of the function in messages, such as ``package.module:function``.

    Raises:
      ValueError: if it is no function.
      UserError: later, if it fails or returns something else.
    """
    if not callable(function):
        raise ValueError("is not a function")

    widths: set[int] = set()

    def checked(images: np.ndarray) -> np.ndarray:
        try:
            features = np.asarray(function(images))
        except Exception as error:  # whatever the function does
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"{path}: failed ({reason}, {where.filename}:{where.lineno})"
            ) from error
        matrix = features.ndim == 2 and len(features) == len(images) and features.shape[1] > 0
        if not matrix or features.dtype.kind not in "fiub":
            raise UserError(
                f"{path}: gave {features.dtype}{list(features.shape)} for {len(images)} images;"
                " must be numbers [n, f]"
            )
        widths.add(features.shape[1])
        if len(widths) > 1:
            first = next(iter(widths - {features.shape[1]}))
            raise UserError(
                f"{path}: gave {features.shape[1]} features of an image, and {first} of one before"
            )
        return features

    return Extractor(path, "", "its own", checked)
