"""The rows of all metrics of all candidates, in the features of one net; ``rows`` has their form."""

import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from bpgan import cli, data
from bpgan.evaluation.images import Images, embed, embed_split, together
from bpgan.evaluation.rows import Row
from bpgan.evaluation.samples import Candidate, classes_of, sha256_of
from bpgan.evaluation.table import METRICS, Metric, Sets
from bpgan.metrics import classes
from bpgan.metrics.features import Extractor
from bpgan.types import UserError
from bpgan.version import __version__


def evaluate(
    candidates: Sequence[Candidate],
    dataset: str,
    extractor: Extractor,
    metrics: Mapping[str, Metric],
    seed: int,
    reference: str = "test",
) -> list[Row]:
    """A row for each number of each candidate.

    ``real`` is the metric of as many real images, all if they are fewer, in the place of the samples: of training
    images, or of test images where the training images are the reference; of the reference's one half against the
    other where the metric looks at the training images itself. Each ``Metric`` says what stands beside its numbers.

    Args:
      candidates: what is evaluated.
      dataset: what it is compared with, by name.
      extractor: the feature net.
      metrics: by name, as ``table.parse`` gives them.
      seed: of subsets.
      reference: ``test`` or ``train``, a split of the dataset, or the name of another dataset, of which all images are
        taken.

    Raises:
      UserError: if a candidate or the reference has other classes than the dataset, and a metric of classes is asked
        for; or images of another shape; or if the reference is the dataset itself.
    """
    splits = {split: data.load(dataset, split) for split in ("train", "test")}
    logits = needs_logits(metrics)
    train = embed_split(splits["train"], extractor, logits)
    against = _reference_of(reference, splits, extractor, metrics)
    real, others = against.images, against.others
    rng = np.random.default_rng(seed)
    rows = []
    for candidate in candidates:
        if candidate.x.shape[1:] != real.x.shape[1:]:
            ours, theirs = candidate.x.shape[1:], real.x.shape[1:]
            raise UserError(f"{candidate.name}: images are {ours}, those of {dataset} {theirs}")
        y, by = _match(candidate.name, candidate.y, candidate.called, splits["train"], metrics)
        best = others.take(np.sort(rng.permutation(len(others.x))[: len(candidate.x)]))
        sets = Sets(
            _embed_candidate(candidate, y, extractor, logits),
            embed(candidate.untrained, y, extractor, logits),
            train,
            real,
            best if y is not None else best._replace(y=None),
            splits["train"].classes,
            against.others_name,
        )
        facts = {
            "of": candidate.name,
            **candidate.facts,
            "matched_by": by,
            "n": len(candidate.x),
            "seed": seed,
            "reference": against.name,
            "reference_images": len(real.x),
            "reference_sha256": "" if candidate.private else against.sha256,
            "train_images": len(train.x),
            "train_sha256": "" if candidate.private else splits["train"].sha256,
            "quantization": "uint8",
            "versions": _versions(),
        }
        for name, metric in metrics.items():
            if "unseen" in metric.needs and reference == "train":
                _leave_out(name, candidate.name, "the reference is the training images themselves")
                continue
            found = _measure(name, metric, sets, extractor, candidate.name, seed, rng)
            rows += [row | facts for row in found]
    return rows


class _Reference(NamedTuple):
    """What samples are compared with, and the real images that stand in their place, each with its name."""

    images: Images
    name: str
    sha256: str
    others: Images
    others_name: str


def _reference_of(
    reference: str,
    splits: Mapping[str, data.Dataset],
    extractor: Extractor,
    metrics: Mapping[str, Metric],
) -> _Reference:
    logits = needs_logits(metrics)

    def images_of(split: data.Dataset) -> Images:
        return embed_split(split, extractor, logits)

    train, test = splits["train"], splits["test"]
    if reference in splits:
        chosen, other = (test, train) if reference == "test" else (train, test)
        name, others = f"{chosen.name} {reference}", f"{other.name} {other.split}"
        return _Reference(images_of(chosen), name, chosen.sha256, images_of(other), others)
    parts = [data.load(reference, split) for split in ("train", "test")]
    if {part.sha256 for part in parts} & {train.sha256, test.sha256}:
        reason = f"holds images of `dataset={train.name}`; must be train, test or another dataset"
        raise UserError(reason, argument="reference", value=reference)
    if parts[0].shape != train.shape:
        reason = f"its images are {parts[0].shape}, those of {train.name} {train.shape}"
        raise UserError(reason, argument="reference", value=reference)
    whole = together([images_of(part) for part in parts])
    y, _ = _match(reference, whole.y, classes_of(parts[0]), train, metrics)
    sha256 = sha256_of(part.sha256 for part in parts)
    name = f"{parts[0].name} train and test"
    return _Reference(whole._replace(y=y), name, sha256, images_of(train), f"{train.name} train")


def needs_logits(metrics: Mapping[str, Metric]) -> bool:
    """Whether one of the metrics needs logits."""
    return any(not each.needs.isdisjoint({"logits", "classes"}) for each in metrics.values())


def name_of(number: str, extractor: Extractor) -> str:
    """With the feature net; only distances in the published Inception net's features are FID and KID."""
    if extractor.inception:
        number = number.replace("FD", "FID").replace("KD", "KID")
    return f"{number}-{extractor.name}"


def _match(
    name: str,
    y: np.ndarray | None,
    called: classes.Classes,
    split: data.Dataset,
    metrics: Mapping[str, Metric],
) -> tuple[np.ndarray | None, str]:
    """Labels of images in the numbers of the dataset, None if either has none or they play no part; and by what they
    were matched: ``name``, ``number`` or ""."""
    of_classes = any(metric.covers for metric in metrics.values())
    if y is None or split.classes < 2 or not of_classes:
        return None, ""
    try:
        found = classes.match(y, called, classes_of(split))
    except ValueError as error:
        others = ",".join(each for each, metric in METRICS.items() if not metric.covers)
        raise UserError(
            f"{name}: {error}, {split.name}; `metrics={others}` need no classes"
        ) from None
    if found.doubt:
        print(f"warning: {name}: classes are {found.doubt}", file=sys.stderr, flush=True)
    return found.labels, found.by


def _embed_candidate(
    candidate: Candidate, y: np.ndarray | None, extractor: Extractor, logits: bool
) -> Images:
    """The samples with their features and, by a classifier of the data, what it sees in turned latents."""
    fake = embed(candidate.x, y, extractor, logits)
    if candidate.turned is None or fake.logits is None or not extractor.of_data:
        return fake
    m, k = candidate.turned.shape[:2]
    flat = candidate.turned.reshape(m * k, *candidate.x.shape[1:])
    seen = embed(flat, None, extractor, True).logits
    assert seen is not None  # as of the samples
    return fake._replace(turned=seen.argmax(1).reshape(m, k))


def _measure(
    name: str,
    metric: Metric,
    sets: Sets,
    extractor: Extractor,
    of: str,
    seed: int,
    rng: np.random.Generator,
) -> list[Row]:
    """The rows of one metric, without the facts of the candidate ``of``; none, and why, if it cannot be had."""

    def leave_out(why: str, what: str = of) -> list[Row]:
        return _leave_out(name, what, why)

    begin, covered, fake = time.perf_counter(), None, sets.fake
    if "classes" in metric.needs and fake.y is not None and not extractor.of_data:
        return leave_out("it is no classifier of the data", extractor.name)
    if lacking := metric.lacks(fake, sets.real):
        return leave_out(lacking)
    if metric.covers and fake.y is not None:
        assert sets.real.y is not None  # what its classes were matched with
        covered = metric.covers(fake.y, sets.real.y)
        if not len(covered):
            return leave_out("no class has images enough")
    controls = metric.controls(sets, covered, rng)
    try:
        values = metric(fake, sets.real, sets.train, seed)
        floor = metric(controls.best, controls.reference, sets.train, seed)
        ceiling = metric(controls.worst, sets.real, sets.train, seed)
    except (ValueError, UserError) as error:  # too few images, or small ones; features not finite
        return leave_out(cli.message_of(error))
    took = time.perf_counter() - begin
    print(f"  {of}: {name} with {extractor.name} in {took:.1f} s", flush=True)
    pixels = metric.of_pixels
    return [
        {
            "metric": number if pixels else name_of(number, extractor),
            "value": value,
            "real": floor.get(number),
            "untrained": ceiling.get(number),
            "real_of": controls.best_of,
            "real_images": len(controls.best.x),
            "real_reference_images": len(controls.reference.x),
            "better": metric.better.get(number, ""),
            "classes": None if covered is None else len(covered),
            "of_classes": None if covered is None else sets.classes,
            "features": "" if pixels else extractor.name,
            "features_sha256": "" if pixels else extractor.sha256,
            "preprocessing": "" if pixels else extractor.preprocessing,
        }
        for number, value in values.items()
    ]


def _leave_out(metric: str, what: str, why: str) -> list[Row]:
    """No rows, and a line that says why."""
    print(f"  {what}: {metric} left out: {why}", flush=True)
    return []


def _versions() -> str:
    packages: list[tuple[str, Any]] = [("bpgan", __version__)]
    packages += [(name, metadata.version(name)) for name in ("jax", "numpy", "scipy")]
    return ", ".join(f"{name} {version}" for name, version in packages)
