"""The table of metrics, and what is true of each: what it needs, which way is better, what stands beside its numbers.

To add one, enter a ``Metric`` into ``METRICS``, or name it by ``--metrics=module:name``: a ``Metric`` of your own, or a
function ``(samples, reference, training images, seed) -> number`` or ``{name: number}``.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from bpgan import cli, data, metrics
from bpgan.evaluation import classifier
from bpgan.evaluation.images import Images
from bpgan.lookup import describe, find
from bpgan.metrics import classes
from bpgan.types import UserError

Need = Literal["labels", "logits", "classes", "latents", "train", "unseen"]
"""What a metric needs beside the features of the samples and of the reference.

``labels``
    Of the samples and of the reference.
``logits``
    A feature net that is a classifier, of whatever classes.
``classes``
    A feature net that is a classifier of the data's own classes.
``latents``
    What such a net sees in the same latents under every label (``Images.turned``), where labels made the samples.
``train``
    The training images.
``unseen``
    A reference that is not the training images themselves.
"""


class Sets(NamedTuple):
    """What a number is computed of: the images of a candidate and all that stands beside them.

    Attributes:
      fake, untrained: the samples, and what an untrained model draws.
      train, real: the training images and the reference.
      best: as many real images as samples, all if they are fewer: training images, or test images where the training
        images are the reference.
      classes: how many the data have.
      best_of: whose images ``best`` are, such as ``mnist10k train``.
    """

    fake: Images
    untrained: Images
    train: Images
    real: Images
    best: Images
    classes: int
    best_of: str = ""


class Controls(NamedTuple):
    """What a metric's controls are computed of: ``best`` against ``reference``, and ``worst`` against the reference.

    ``best_of`` says whose images ``best`` are.
    """

    best: Images
    reference: Images
    worst: Images
    best_of: str = ""


def beside(sets: Sets, covered: np.ndarray | None, rng: np.random.Generator) -> Controls:
    """Real images, of the classes that the number is of, and what an untrained model draws."""
    del rng
    best = sets.best if covered is None else sets.best.of_classes(covered)
    return Controls(best, sets.real, sets.untrained, sets.best_of)


def halves(sets: Sets, covered: np.ndarray | None, rng: np.random.Generator) -> Controls:
    """One half of the reference against the other: of a metric that looks at the training images itself."""
    del covered, rng
    real = sets.real
    return Controls(
        real.take(slice(0, None, 2)),
        real.take(slice(1, None, 2)),
        worst=sets.untrained,
        best_of="the other half of the reference",
    )


def permuted_labels(sets: Sets, covered: np.ndarray | None, rng: np.random.Generator) -> Controls:
    """Real images of all classes, for a missing one is a fault of the samples; and labels that say nothing."""
    del covered
    assert sets.fake.y is not None
    worst = sets.fake._replace(y=rng.permutation(sets.fake.y))
    return Controls(sets.best, sets.real, worst, sets.best_of)


@dataclasses.dataclass(frozen=True)
class Metric:
    """One or several numbers of a set of images.

    Attributes:
      function: ``(samples, reference, training images, seed) -> {name: number}``. Raises ValueError for images that it
        cannot be had of, which are then left out.
      better: whether ``higher`` or ``lower`` is better, by the name of the number. One that is not there is best at
        some value between, or at that of real images.
      needs: see ``Need``. Where that is missing, the function is not called.
      of_pixels: whether it looks at the images themselves, so that its name carries no feature net.
      least: images that it needs to compare with.
      while_training: whether ``--eval_every`` computes it: it is quick, and needs nothing else.
      covers: ``(labels of the samples, labels of the reference) -> classes that the number is of``; None if classes do
        not matter.
      controls: ``(sets, covered classes or None, rng) -> Controls``, what ``real`` and ``untrained`` are computed of.
    """

    function: Callable[[Images, Images, Images, int], Mapping[str, float]]
    better: Mapping[str, Literal["higher", "lower"]] = dataclasses.field(default_factory=dict)
    needs: frozenset[Need] = frozenset()
    of_pixels: bool = False
    least: int = 2
    while_training: bool = False
    covers: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    controls: Callable[[Sets, np.ndarray | None, np.random.Generator], Controls] = beside

    def lacks(self, fake: Images, real: Images) -> str:
        """What is missing, in words; empty if nothing is."""
        if "labels" in self.needs and (fake.y is None or real.y is None):
            return "the samples have no labels"
        if not self.needs.isdisjoint({"logits", "classes"}) and fake.logits is None:
            return "the net is no classifier"
        return ""

    def __call__(self, fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
        """The numbers by name; none if what it needs is missing.

        Args:
          fake, real: the samples, and what they are compared with.
          train: what the model was trained on.
          seed: of subsets.
        """
        if self.lacks(fake, real):
            return {}
        values = self.function(fake, real, train, seed)
        return {number: float(value) for number, value in values.items()}


def needs(*names: Need) -> frozenset[Need]:
    """For ``Metric.needs``."""
    return frozenset(names)


def frechet(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """The distance, and the same as a fraction of the variance of the reference, which no scale of features changes."""
    distance = metrics.frechet_distance(real.features, fake.features)
    variance = real.features.var(axis=0, ddof=1, dtype=np.float64).sum()
    return {"FD": distance, "nFD": distance / variance}


def bias(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """What the distance of so many images would be on average if they were of the same distribution."""
    cov = metrics.gaussian(real.features).cov
    return {"FD-bias": metrics.frechet_bias(cov, len(real.features), len(fake.features))}


def infinite(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """The distance extrapolated to infinitely many samples."""
    return {"FD-inf": metrics.frechet_infinity(real.features, fake.features, seed=seed).value}


def kernel(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """The kernel distance, without bias at any number of images."""
    return {"KD": metrics.kernel_distance(real.features, fake.features)}


def manifold(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """Precision, recall, density, coverage."""
    precision, recall = metrics.precision_recall(real.features, fake.features, k=3)
    density, coverage = metrics.density_coverage(real.features, fake.features, k=5)
    return {
        "precision-k3": precision,
        "recall-k3": recall,
        "density-k5": density,
        "coverage-k5": coverage,
    }


def score(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """The Inception score, of whatever classifier the feature net is."""
    assert fake.logits is not None
    return {"IS": metrics.inception_score(fake.logits)[0]}


def diversity(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """The effective number of different images, of 1,000 or as many as both samples and training images are."""
    n = min(1000, len(fake.features), len(train.features))
    return {f"Vendi-of-{n}": metrics.vendi_score(_some(fake.features, n, seed))}


def memorization(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """Whether samples are nearer to the training images than the reference is."""
    sets = fake.features, train.features, real.features
    ratio = metrics.neighbor_ratio(*sets)
    as_many = min(len(fake.features), len(real.features))
    pair = (_some(each.features, as_many, seed) for each in (real, fake))
    return {
        "C_T": metrics.data_copying(*sets, seed=seed).score,
        "NN-ratio": ratio.ratio,
        "copies-%": 100 * ratio.copies,
        "authentic-%": metrics.authenticity(*sets).fake,
        "1-NN-accuracy": metrics.two_sample_accuracy(*pair).overall,
    }


def _some(features: np.ndarray, n: int, seed: int) -> np.ndarray:
    """``n`` rows at random, all if there are no more: the first ones of a dataset may be all of one class."""
    return features[np.random.default_rng(seed).permutation(len(features))[:n]]


def similarity(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """Of random pairs of one class, or of any where there are no labels; the lower, the more diverse."""
    labels = np.zeros(len(fake.x), np.int32) if fake.y is None else fake.y
    name = metrics.ms_ssim_name(fake.x.shape)
    return {name: metrics.ms_ssim_diversity(fake.x, labels, seed=seed)}


def by_class(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """The distance within each class, averaged: unlike that of all images, it sees labels that are wrong."""
    assert fake.y is not None and real.y is not None
    distances = [
        metrics.frechet_distance(real.features[real.y == c], fake.features[fake.y == c])
        for c in classes.covered(fake.y, real.y, least=2)
    ]
    if not distances:
        return {}
    mean = statistics.fmean(distances)
    return {"class-FD": mean, "class-FD-worst/mean": max(distances) / mean}


def label_accuracy(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """Share of the samples that the feature net, a classifier of the data, takes for what they were asked to be.

    And for what others were asked to be, which is chance unless the classes are uneven; and how many classes it sees in
    one latent under every label, which is one if the labels are ignored.
    """
    assert fake.y is not None and fake.logits is not None
    seen, others = fake.logits.argmax(1), np.random.default_rng(seed).permutation(fake.y)
    found = {
        "label-accuracy": float(np.mean(seen == fake.y)),
        "label-accuracy-swapped": float(np.mean(seen == others)),
    }
    if fake.turned is not None:
        found["classes-per-latent"] = statistics.fmean(len(set(row)) for row in fake.turned)
    return found


def classification(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """Accuracy on real images of a classifier trained on the samples (Ravuri and Vinyals 2019, arXiv:1905.10887)."""
    assert fake.y is not None and real.y is not None
    count = int(max(fake.y.max(), real.y.max())) + 1
    experiment = classifier.convolutional(
        data.of_arrays("samples", "train", fake.x, fake.y, count),
        data.of_arrays("reference", "test", real.x, real.y, count),
        seed=seed,
        half_life=3.0,
        feed="memory",
    )
    assert experiment.evaluate is not None
    steps = round(10.0 * experiment.source.steps_per_epoch)
    state = cli.train(experiment, seed=seed, steps=steps)
    return {"CAS": experiment.evaluate(state)["test_accuracy"]}


METRICS: dict[str, Metric] = {
    "fd": Metric(frechet, {"FD": "lower", "nFD": "lower"}, while_training=True),
    "bias": Metric(bias),
    "fd_inf": Metric(infinite, {"FD-inf": "lower"}),
    "kd": Metric(kernel, {"KD": "lower"}, while_training=True),
    "prdc": Metric(
        manifold,
        dict.fromkeys(("precision-k3", "recall-k3", "density-k5", "coverage-k5"), "higher"),
        least=6,  # one more than the neighbors it looks for
        while_training=True,
    ),
    "is": Metric(score, {"IS": "higher"}, needs("logits")),
    "vendi": Metric(diversity, needs=needs("train")),
    "msssim": Metric(
        similarity, of_pixels=True, covers=lambda fake, real: classes.covered(fake, least=2)
    ),
    "memorization": Metric(
        memorization, {"copies-%": "lower"}, needs("train", "unseen"), controls=halves
    ),
    "class_fd": Metric(
        by_class,
        {"class-FD": "lower"},
        needs("labels"),
        covers=lambda fake, real: classes.covered(fake, real, least=2),
    ),
    "accuracy": Metric(
        label_accuracy,
        {"label-accuracy": "higher"},
        needs("labels", "classes", "latents"),
        covers=lambda fake, real: classes.covered(fake),
    ),
    "cas": Metric(
        classification,
        {"CAS": "higher"},
        needs("labels"),
        of_pixels=True,
        covers=lambda fake, real: classes.covered(fake, real),
        controls=permuted_labels,
    ),
}
"""By the names of ``--metrics``. What is entered while a program runs is found as well."""


def parse(text: str) -> dict[str, Metric]:
    """The metrics that ``--metrics`` names, by those names: ``all``, or some, separated by commas.

    Raises:
      ValueError: for what is not in ``METRICS`` and is no ``module:name``, saying what is allowed.
    """
    if text == "all":
        return dict(METRICS)
    return {name: METRICS.get(name) or _own(name) for name in text.split(",")}


def _own(text: str) -> Metric:
    """``module:name``, a metric or a function of the user's own, whose mistakes are told by its name."""
    if ":" not in text:
        allowed = f"{','.join(METRICS)}, or module:name of your own"
        raise ValueError(f"{text!r} is not a metric; must be all or some of {allowed}")
    found = find(METRICS, text, "a metric")
    metric = found if isinstance(found, Metric) else Metric(found)
    if not callable(metric.function):
        raise ValueError(f"{text!r} is no metric and no function")

    def function(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
        try:
            values = metric.function(fake, real, train, seed)
        except (ValueError, UserError):  # images that it cannot be had of
            raise
        except Exception as error:  # whatever the function does
            raise UserError(f"{text}: failed ({describe(error)})") from error
        return _numbers(values, text)

    return dataclasses.replace(metric, function=function)


def _numbers(values: Any, text: str) -> dict[str, float]:
    """What a user's metric gave, by name; a number alone is called as the function is."""
    name = text.rpartition(":")[2].rpartition(".")[2]
    named = values if isinstance(values, Mapping) else {name: values}
    try:
        return {str(name): float(value) for name, value in named.items()}
    except (TypeError, ValueError):
        reason = f"gave {values!r:.60}; must be a number or {{name: number}}"
        raise UserError(f"{text}: {reason}") from None
