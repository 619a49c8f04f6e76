"""R-precision: whether an image is nearer to its own caption than to others.

Xu et al. 2018 (AttnGAN), arXiv:1711.10485, Sec. 4.1: of each image, the captions are ranked by the cosine of their
embeddings with the image's, and the share of images is counted whose own caption comes first among 100. An embedding
that knows nothing has 1 %. The embedding must not have been trained with the generator that it judges.
"""

import numpy as np
from jaxtyping import Float, Int

OTHERS = 99
"""Captions beside the true one."""


def candidates(
    meaning: Int[np.ndarray, " n"], others: int = OTHERS, seed: int = 0
) -> Int[np.ndarray, "n c"]:
    """For each caption its own row, and behind it rows of other meanings, each once, drawn at random.

    Args:
      meaning: of each caption; those of the same number are not told apart.
      others: how many; the same caption may stand in several rows, if it is that of several images.
      seed: of the choice.

    Raises:
      ValueError: if too few captions have another meaning.
    """
    rng, rows = np.random.default_rng(seed), np.arange(len(meaning))
    found = np.empty((len(meaning), 1 + others), np.int64)
    for i in rows:
        different = rows[meaning != meaning[i]]
        if len(different) < others:
            raise ValueError(f"{len(different)} captions differ from caption {i}, need {others}")
        found[i, 0], found[i, 1:] = i, rng.choice(different, others, replace=False)
    return found


def hits(
    images: Float[np.ndarray, "n f"],
    texts: Float[np.ndarray, "m f"],
    candidates: Int[np.ndarray, "n c"],
) -> Float[np.ndarray, " n"]:
    """Whether the first candidate of each image has the greatest cosine; 1 / k where k candidates share it.

    Args:
      images, texts: embeddings of any norm.
      candidates: rows of ``texts``, the true one first.
    """
    images, texts = _unit(images), _unit(texts)
    cosines = np.einsum("nf,ncf->nc", images, texts[candidates])
    best = np.isclose(cosines, cosines.max(axis=1, keepdims=True), rtol=0, atol=1e-9)
    return best[:, 0] / best.sum(axis=1)


def r_precision(
    images: Float[np.ndarray, "n f"],
    texts: Float[np.ndarray, "m f"],
    candidates: Int[np.ndarray, "n c"],
) -> float:
    """The mean of ``hits``: 1 is perfect, ``1 / c`` is chance. Of real pairs it is the ceiling for generated ones."""
    return float(np.mean(hits(images, texts, candidates)))


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
