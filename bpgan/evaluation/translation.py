"""What a translation between two domains of images is worth: errors, realism, labels, and what it hides.

Everything is measured on test images. Beside each number stands what it would be of real images or of answers that
need no training, where there is such a thing: ``NAME/real``, ``NAME/ridge``.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bpgan import cli, data
from bpgan.evaluation import classifier, features
from bpgan.evaluation.images import embed
from bpgan.metrics import scores, translation
from bpgan.metrics.features import Extractor
from bpgan.metrics.frechet import frechet_distance
from bpgan.metrics.translation import Translate

_MOST = 2000
"""Test images."""
_TOLD_APART = 4000
"""Images of each domain that the classifier of domains learns from."""
_EPOCHS = 3.0


class Domain(NamedTuple):
    """Images of a domain: uint8 ``[n, h, w, c]``, and int32 labels ``[n]``, all 0 where they have none."""

    x: np.ndarray
    y: np.ndarray

    @property
    def classes(self) -> int:
        return int(self.y.max(initial=0)) + 1

    def some(self, n: int) -> "Domain":
        """At most n images, evenly spread, for they may be sorted by class."""
        n = min(n, len(self.x))
        rows = np.linspace(0, len(self.x) - 1, n).round().astype(np.int64)
        return Domain(self.x[rows], self.y[rows])


class Sides:
    """Both splits of a domain, read when they are first asked for.

    Args:
      name: of the domain.
      train, test: read a split.
    """

    def __init__(self, name: str, train: Callable[[], Domain], test: Callable[[], Domain]):
        self.name, self._train, self._test = name, train, test

    @functools.cached_property
    def train(self) -> Domain:
        return self._train()

    @functools.cached_property
    def test(self) -> Domain:
        return self._test()

    @functools.cached_property
    def judge(self) -> Extractor | None:
        """A classifier that was trained on its images, which is kept; None of a domain without labels."""
        classes = max(self.train.classes, self.test.classes)
        if classes < 2:
            return None
        splits = [
            data.of_arrays(self.name, split, *part, classes)
            for split, part in (("train", self.train), ("test", self.test))
        ]
        return features.classifier_of(splits[0], splits[1], features.SEEDS[0])


def paired(translate: Translate, a: Sides, b: Sides, *, judged: bool = True) -> dict[str, float]:
    """Of a translation whose right answers are known: row i of b belongs to row i of a.

    Args:
      translate: the translation.
      a, b: inputs and targets.
      judged: whether classifiers are trained and asked.

    Returns:
      ``l1``, ``psnr``, and ``ssim`` where images are large enough, with those of trivial answers (``l1/ridge``, ...);
      with labels ``fd``, the Frechet distance to the real targets, with that of training targets (``fd/real``), and
      ``accuracy``, how often a classifier of targets sees the right class, with that on real targets.
    """
    x, (target, y) = a.test.some(_MOST).x, b.test.some(_MOST)
    out = translate(x)
    found = _errors(out, target, "")
    answers = translation.trivial((a.train.x, b.train.x), x, target.shape[1:])
    for name, answer in answers.items():
        found |= _errors(answer, target, f"/{name}")
    if judged and (judge := b.judge):
        found |= _realism(judge, out, y, b, "fd", "accuracy")
    return found


def unpaired(
    forward: Translate,
    back: Translate | None,
    a: Sides,
    b: Sides,
    answer: Translate | None = None,
    *,
    judged: bool = True,
) -> dict[str, float]:
    """Of a translation from domain a to domain b, and back if there is one.

    Args:
      forward, back: ``a -> b`` and ``b -> a``.
      a, b: images of both domains, which need not belong together.
      answer: the exact map, where it is known.
      judged: whether classifiers are trained and asked.

    Returns:
      ``agreement``: how often a classifier of b sees the label of the input, with that on real images of b; ``fd_b``
      and with ``back`` ``fd_a``, with those of training images; ``told_apart``: the accuracy of a classifier that was
      trained to tell outputs from images of b, 0.5 at best; ``moved``: how far an image is moved, as a multiple of the
      distance that it has to be moved (to its answer, or to a random image of b); ``l1`` to the answer. With ``back``
      ``cycle_a`` and ``cycle_b``, the errors after there and back, and ``hidden``: by how much the first one
      grows if the image in between is coarse (``metrics.translation.coarse``).
    """
    x, y = a.test.some(_MOST)
    out = forward(x)
    found: dict[str, float] = {}
    if judged and (judge := b.judge):
        found |= _realism(judge, out, y, b, "fd_b", "agreement")
    if judged:
        found["told_apart"] = told_apart(
            forward(a.train.some(_TOLD_APART).x), b.train.x, out, b.test.some(_MOST).x
        )
    found |= _distances(x, out, b, answer)
    if back is not None:
        again = back(out)
        found["cycle_a"] = translation.absolute_error(again, x)
        coarse = translation.absolute_error(back(translation.coarse(out, seed=0)), x)
        found["hidden"] = coarse / max(found["cycle_a"], 1 / 255)
        of_b = b.test.some(_MOST)
        returned = back(of_b.x)
        found["cycle_b"] = translation.absolute_error(forward(returned), of_b.x)
        if judged and (judge := a.judge):
            found |= _realism(judge, returned, of_b.y, a, "fd_a", "agreement_back")
    return found


def told_apart(
    fake: np.ndarray, real: np.ndarray, fake_test: np.ndarray, real_test: np.ndarray, seed: int = 0
) -> float:
    """The accuracy, on test images, of a fresh classifier of translated and real images of a domain."""
    n, m = min(len(fake), len(real), _TOLD_APART), min(len(fake_test), len(real_test))
    rng = np.random.default_rng(seed)

    def both(fake: np.ndarray, real: np.ndarray, n: int) -> data.Dataset:
        rows = [x[np.sort(rng.permutation(len(x))[:n])] for x in (fake, real)]
        y = np.repeat(np.arange(2, dtype=np.int32), n)
        return data.of_arrays("domains", "train", np.concatenate(rows), y, 2)

    train, test = both(fake, real, n), both(fake_test, real_test, m)
    experiment = classifier.convolutional(train, test, seed=seed, half_life=_EPOCHS)
    steps = round(_EPOCHS * experiment.source.steps_per_epoch)
    state = cli.train(experiment, seed=seed, steps=steps)
    assert experiment.evaluate is not None
    return experiment.evaluate(state)["test_accuracy"]


def _errors(out: np.ndarray, target: np.ndarray, of: str) -> dict[str, float]:
    found = {
        f"l1{of}": translation.absolute_error(out, target),
        f"psnr{of}": translation.psnr(out, target),
    }
    if min(target.shape[1:3]) >= 11:  # the window of the structural similarity
        found[f"ssim{of}"] = float(scores.ms_ssim(out, target, scales=1).mean())
    return found


def _realism(
    judge: Extractor, out: np.ndarray, y: np.ndarray, domain: Sides, distance: str, accuracy: str
) -> dict[str, float]:
    """The Frechet distance to test images and the accuracy by labels, with those of real images."""
    real = embed(*domain.test.some(_MOST), judge, True)
    fake, train = embed(out, y, judge, True), embed(*domain.train.some(len(out)), judge, False)
    assert real.logits is not None and fake.logits is not None
    return {
        distance: frechet_distance(fake.features, real.features),
        f"{distance}/real": frechet_distance(train.features, real.features),
        accuracy: float(np.mean(fake.logits.argmax(1) == y)),
        f"{accuracy}/real": float(np.mean(real.logits.argmax(1) == real.y)),
    }


def _distances(
    x: np.ndarray, out: np.ndarray, b: Sides, answer: Translate | None
) -> dict[str, float]:
    """How far images are moved as a multiple of how far they have to be, and their errors where these are known."""
    if x.shape != out.shape:
        return {}
    if answer is not None:
        right = answer(x)
        gap = translation.absolute_error(right, x)
        found = {"l1": translation.absolute_error(out, right)}
    else:
        some = np.resize(np.random.default_rng(0).permutation(len(b.test.x)), len(x))
        gap, found = translation.absolute_error(b.test.x[some], x), {}
    return {"moved": translation.absolute_error(out, x) / max(gap, 1 / 255), **found}
