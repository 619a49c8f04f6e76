"""Evaluates runs, or images from anywhere, against a dataset: distances, diversity, memorisation.

Run:     python -m experiments.evaluate --run=runs/mnist_gan/default
         python -m experiments.evaluate --run=runs/a,runs/b,runs/c
             several training seeds: mean and standard deviation
         python -m experiments.evaluate --run=runs/mnist_gan/default_eval_every=1ep --checkpoint=best
             the checkpoint that a run with --eval_every found best on data held out of its training
         python -m experiments.evaluate --samples=folder:PATH --dataset=tfds:fashion_mnist
         python -m experiments.evaluate --run=runs/mnist_gan/default --n=5000 --save=samples.npz
             keeps the samples, too: --samples=npz:samples.npz reads them, and so does --dataset of every experiment
Papers:  Heusel et al. 2017, arXiv:1706.08500; Binkowski et al. 2018, arXiv:1801.01401; Kynkaanniemi et al. 2019,
         arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797; Meehan et al. 2020, arXiv:2004.05675.

The reference is the test split, which no run has seen. Beside each value stand the same metric of real images in the
place of the samples, which no generator should beat, and that of an untrained one (of noise, for --samples). Samples
are drawn anew, as uint8, from latents that training never sees. ``metrics.json``, also in the directory of each run,
whose report shows it, says of each number all that it depends on; see docs/metrics.md for what the numbers mean, and
when they lie.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import statistics
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from bpgan import data, metrics
from bpgan.data import cache
from bpgan.metrics.features import Extractor, effnet, inception, plug
from bpgan.types import Algorithm, UserError
from bpgan.version import __version__
from experiments import _cli as cli
from experiments import classifier

SEEDS = (0, 1)
"""Of the classifiers whose features are used: distances change by a third from one to the other."""


_CHUNK = 500  # images between two looks at the clock
_TURNED = 2000  # images of the same latents under all labels

INCEPTION = ("inception", *(f"inception-{preset}" for preset in inception.PRESETS))


def _features(text: str) -> None:
    if ":" not in text and text not in ("classifier", "effnet", *INCEPTION):
        raise ValueError(
            f"must be classifier, effnet, {', '.join(INCEPTION)} (:FILE) or MODULE:FUNCTION"
        )


def _checkpoint(text: str) -> None:
    if text not in ("newest", "best") and not text.isdecimal():
        raise ValueError("must be newest, best or a step")


def _save(text: str) -> None:
    if text and not text.endswith(".npz"):
        raise ValueError("must be FILE.npz")


def runs_of(text: str) -> list[str]:
    """The directories that ``--run`` names. Raises ValueError, saying what is allowed."""
    paths = text.split(",") if text else []
    if not all(paths):
        raise ValueError("must be run directories, separated by commas")
    return paths


def names_of(text: str) -> list[str]:
    """The metrics that ``--metrics`` names. Raises ValueError, saying what is allowed."""
    names = list(METRICS) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(
            f"{unknown[0]!r} is not a metric; must be all or some of {','.join(METRICS)}"
        )
    return names


FEATURES: str = cli.field(
    "classifier",
    "classifier (trained on the dataset if need be), effnet (ImageNet), inception-tf1, -torch or -clean (:FILE of the"
    " weights, downloaded without it), or MODULE:FUNCTION, images -> features",
    check=_features,
)
"""The flag of every experiment that compares images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    run: str = cli.field(
        "",
        "run directory; several, separated by commas: training seeds of one setting",
        check=runs_of,
    )
    checkpoint: str = cli.field(
        "newest", "of the runs: newest, best (by their --keep) or a step", check=_checkpoint
    )
    samples: str = cli.field("", "images instead of a run: npz:FILE, folder:PATH or zip:FILE")
    dataset: str = cli.field("", f"what to compare with; empty: the run's own; {data.FORMS}")
    features: str = FEATURES
    metrics: str = cli.field(
        "all", "all, or names separated by commas", check=lambda text: names_of(text)
    )
    n: int = cli.field(10_000, "samples to draw, or to use of --samples", low=10)
    flags: str = cli.field(
        "",
        "flags that are to be other than the runs', for the samples: truncation=0.7 samples_of=draw; dataset=FORM where"
        " the data of the runs have moved to",
        check=cli.assignments,
    )
    save: str = cli.field(
        "",
        "FILE.npz for the samples that are evaluated: x, uint8 [n, h, w, c], and y where they have labels",
        restart_safe=True,
        check=_save,
    )
    seed: int = cli.field(0, "of latents and subsets", low=0, high=2**32 - 1)


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

    def take(self, rows: Any) -> "Images":
        """Some of the images, by indices or a slice."""
        y, logits = (None if part is None else part[rows] for part in (self.y, self.logits))
        return Images(self.x[rows], y, self.features[rows], logits)


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
    return {"KD": metrics.kernel_distance(real.features, fake.features)}


def manifold(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    precision, recall = metrics.precision_recall(real.features, fake.features, k=3)
    density, coverage = metrics.density_coverage(real.features, fake.features, k=5)
    return {
        "precision-k3": precision,
        "recall-k3": recall,
        "density-k5": density,
        "coverage-k5": coverage,
    }


def score(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    if fake.logits is None:
        return {}
    return {"IS": metrics.inception_score(fake.logits)[0]}


def _some(features: np.ndarray, n: int, seed: int) -> np.ndarray:
    """``n`` rows at random, all if there are no more: the first ones of a dataset may be all of one class."""
    return features[np.random.default_rng(seed).permutation(len(features))[:n]]


def diversity(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """The effective number of different images, of 1,000 or as many as both samples and training images are."""
    n = min(1000, len(fake.features), len(train.features))
    return {f"Vendi-of-{n}": metrics.vendi_score(_some(fake.features, n, seed))}


def memorisation(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """Whether samples are nearer to the training images than the reference is."""
    sets = fake.features, train.features, real.features
    ratio = metrics.neighbour_ratio(*sets)
    as_many = min(len(fake.features), len(real.features))
    pair = (_some(each.features, as_many, seed) for each in (real, fake))
    return {
        "C_T": metrics.data_copying(*sets, seed=seed).score,
        "NN-ratio": ratio.ratio,
        "copies-%": 100 * ratio.copies,
        "authentic-%": metrics.authenticity(*sets).fake,
        "1-NN-accuracy": metrics.two_sample_accuracy(*pair).overall,
    }


def similarity(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """Of random pairs of one class, or of any where there are no labels; the lower, the more diverse."""
    labels = np.zeros(len(fake.x), np.int32) if fake.y is None else fake.y
    name = metrics.ms_ssim_name(fake.x.shape)
    return {name: metrics.ms_ssim_diversity(fake.x, labels, seed=seed)}


def by_class(fake: Images, real: Images, train: Images, seed: int) -> dict[str, float]:
    """The distance within each class, averaged: unlike that of all images, it sees labels that are wrong."""
    if fake.y is None or real.y is None:
        return {}
    distances = [
        metrics.frechet_distance(real.features[real.y == c], fake.features[fake.y == c])
        for c in np.unique(real.y)
        if min(np.sum(real.y == c), np.sum(fake.y == c)) > 1
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
    if fake.y is None or fake.logits is None:
        return {}
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
    if fake.y is None or real.y is None:
        return {}
    classes = int(max(fake.y.max(), real.y.max())) + 1
    cfg = classifier.Config(seed=seed, feed="memory", epochs=10.0)
    experiment = classifier.of_data(
        cfg,
        data.of_arrays("samples", "train", fake.x, fake.y, classes),
        data.of_arrays("reference", "test", real.x, real.y, classes),
    )
    steps = round(cfg.epochs * experiment.source.steps_per_epoch)
    assert experiment.evaluate is not None
    state = cli.trained(experiment, seed=seed, steps=steps)
    return {"CAS": experiment.evaluate(state)["test_accuracy"]}


METRICS: dict[str, Callable[[Images, Images, Images, int], dict[str, float]]] = {
    "fd": frechet,
    "bias": bias,
    "fd_inf": infinite,
    "kd": kernel,
    "prdc": manifold,
    "is": score,
    "vendi": diversity,
    "msssim": similarity,
    "memorisation": memorisation,
    "class_fd": by_class,
    "accuracy": label_accuracy,
    "cas": classification,
}
"""By the names of ``--metrics``: ``(samples, reference, training images, seed) -> {name: value}``, empty where a metric
cannot be had, of samples without labels for example."""

PIXELS = ("msssim", "cas")
"""Those that look at the images themselves: their names carry no feature net."""

WHILE_TRAINING = {"fd": 2, "kd": 2, "prdc": 6}
"""Those of ``--eval_every``: quick ones that need neither labels nor the training images, and how many images they need
to compare with. Of prdc that is one more than the neighbours it looks for."""


class Candidate(NamedTuple):
    """Images to evaluate, and what an untrained model would have given in their place.

    Attributes:
      name: run directory or name of the samples.
      x, y: uint8 ``[n, h, w, c]``, and labels ``[n]`` or None.
      untrained: uint8 ``[n, h, w, c]``.
      facts: step, training seed and the like, for metrics.json.
      turned: uint8 ``[m, k, h, w, c]``, the same m latents under each of k labels; None without labels.
    """

    name: str
    x: np.ndarray
    y: np.ndarray | None
    untrained: np.ndarray
    facts: dict[str, Any]
    turned: np.ndarray | None = None


def of_run(
    path: str,
    checkpoint: str,
    n: int,
    seed: int,
    changes: Sequence[str] = (),
    *,
    turn: bool = True,
) -> tuple[Candidate, str]:
    """Samples of a run's checkpoint, its flags with these changes, and the name of the dataset it was trained on.

    With ``turn`` the same latents under every label, too, if there are labels.

    Raises:
      UserError: as ``cli.restored``, or if the run draws no images.
    """
    run = cli.restored(path, checkpoint, changes)
    algorithm, dataset = run.experiment.algorithm, vars(run.config).get("dataset", "")
    if algorithm.sample is None or not dataset:
        raise UserError(f"--run={path}: must be of a model of images, and is of {run.name}")
    y = labels_of(algorithm, dataset, n, seed)
    x = cli.drawn(algorithm, run.state, seed=seed, n=n, labels=y)
    start = cli.trained(run.experiment, seed=run.config.seed, steps=0)
    untrained = cli.drawn(algorithm, start, seed=seed, n=n, labels=y)
    facts = {"experiment": run.name, "step": run.step, "training_seed": run.config.seed}
    facts |= {"flags": list(changes)} if changes else {}
    turned, m = None, max(_TURNED // max(algorithm.classes, 1), 1)
    if y is not None and turn:
        labels = (np.full(m, label, np.int32) for label in range(algorithm.classes))
        # In batches of what is kept: of many classes that is a few each.
        drawn = [
            cli.drawn(algorithm, run.state, seed=seed, n=m, labels=label, batch=min(m, 500))
            for label in labels
        ]
        turned = np.stack(drawn, axis=1)
    return Candidate(path, x, y, untrained, facts, turned), dataset


def labels_of(algorithm: Algorithm, dataset: str, n: int, seed: int) -> np.ndarray | None:
    """Labels ``[n]`` in the proportions of the training data, in random order; None if the algorithm takes none."""
    if not algorithm.classes:
        return None
    counts = np.asarray(data.load(dataset, "train").counts)
    quantiles = (np.arange(n) + 0.5) / n * counts.sum()
    labels = np.searchsorted(np.cumsum(counts), quantiles, side="right").astype(np.int32)
    return np.random.default_rng(seed).permutation(labels)


def of_samples(name: str, n: int, seed: int) -> Candidate:
    """Both splits of a dataset of images as samples; noise stands for the untrained model."""
    splits = [data.load(name, split) for split in ("train", "test")]
    rng = np.random.default_rng(seed)
    total = sum(split.length for split in splits)
    rows = np.sort(rng.permutation(total)[:n])
    first = rows < splits[0].length
    parts = [splits[0].read(rows[first]), splits[1].read(rows[~first] - splits[0].length)]
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    labels = y if splits[0].classes > 1 else None
    noise = rng.integers(0, 256, x.shape, np.uint8)
    return Candidate(name, x, labels, noise, {"sha256": [split.sha256 for split in splits]})


def extractors(text: str, dataset: str) -> list[Extractor]:
    """The feature nets that ``--features`` names; classifiers are trained if they have not been yet.

    Raises:
      UserError: if there are no labels to train one on, or the weights cannot be had.
    """
    if text == "classifier":
        return [_classifier(dataset, seed) for seed in SEEDS]
    if text == "effnet":
        return [effnet.extractor()]
    name, _, file = text.partition(":")
    if name in INCEPTION:
        path = pathlib.Path(file).expanduser() if file else inception.download(cache.directory())
        return [inception.extractor(path, name.partition("-")[2] or "tf1")]
    return [plug(text)]


def _named(metric: str, extractor: Extractor) -> str:
    """With the feature net; only distances in the published Inception net's features are FID and KID."""
    if extractor.inception:
        metric = metric.replace("FD", "FID").replace("KD", "KID")
    return f"{metric}-{extractor.name}"


@functools.cache
def _classifier(dataset: str, seed: int) -> Extractor:
    """The features of a run of the classifier experiment, kept by the content of its data and its settings."""
    from bpgan.metrics.features import classifier as features
    from bpgan.runtime import report

    train = data.load(dataset, "train")
    if train.classes < 2:
        raise UserError(
            f"--features=classifier: {dataset} has no labels to train it on; effnet needs none"
        )
    epochs, halving = (12.0, 3.0) if train.length < 20_000 else (4.0, 1.0)
    flags = [f"--epochs={epochs}", f"--lr_half_life={halving}", f"--seed={seed}", "--notensorboard"]
    cfg = cli.resolve(classifier.Config, classifier.PRESETS, flags)
    key = zlib.crc32(f"{__version__} {cfg}".encode())
    folder = cache.directory() / "features" / f"{train.sha256[:16]}-{key:08x}"
    result = folder / "result.json"
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".lock")
    with file.open("w", encoding="utf-8") as lock:  # the runs of a sweep ask for it together
        fcntl.flock(lock, fcntl.LOCK_EX)
        if report.read_json(result).get("status") != "done":  # or damaged
            print(
                f"training the feature net of seed {seed} on {dataset}, once: {folder}", flush=True
            )
            argv = [f"--dataset={dataset}", f"--workdir={folder}", *flags]
            code = cli.run(classifier.Config, classifier.build, classifier.PRESETS, argv)
            if code == cli.INTERRUPTED:
                raise cli.Interrupted
            if code != cli.DONE:
                raise UserError(f"--features=classifier: the net could not be trained on {dataset}")
    accuracy = report.read_json(result)["metrics"]["test_accuracy"]
    state = cli.restored(folder, changes=[f"dataset={dataset}"]).state  # then under another name
    print(f"feature net of seed {seed}: accuracy {accuracy:.4f} on the test split")
    name = f"classifier{seed}"
    return features.extractor(state.params, classes=max(train.classes, 2), name=name)


def embed(x: np.ndarray, y: np.ndarray | None, extractor: Extractor, logits: bool) -> Images:
    """Images with their features, and their logits if wanted and there are any; tells the time left if that is long."""

    def all_of(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        parts, start, said = [], time.perf_counter(), time.perf_counter()
        for i in range(0, len(x), _CHUNK):
            parts.append(np.asarray(function(x[i : i + _CHUNK])))
            done, now = min(i + _CHUNK, len(x)), time.perf_counter()
            if now - said > 10 and done < len(x):
                said, rate = now, done / (now - start)
                print(
                    f"  {extractor.name}: {done:,} of {len(x):,} images, {rate:.0f}/s,"
                    f" {(len(x) - done) / rate:.0f} s left",
                    flush=True,
                )
        return np.concatenate(parts)

    scores = all_of(extractor.logits) if extractor.logits and logits else None
    return Images(x, y, all_of(extractor.function), scores)


def of_dataset(split: data.Dataset, extractor: Extractor, logits: bool) -> Images:
    """The same of a split of a dataset; features of nets whose weights are known are kept beside the converted data."""
    x, y = split.arrays()
    if not extractor.sha256:
        return embed(x, y, extractor, logits)
    recipe = zlib.crc32(f"{extractor.preprocessing} {__version__}".encode())
    name = f"{split.sha256[:16]}-{extractor.sha256[:16]}-{recipe:08x}.npz"
    path = cache.directory() / "features" / name
    try:
        with np.load(path) as kept:
            features, scores = kept["features"], kept["logits"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        features, scores = np.zeros(0), np.zeros(0)
    if len(features) != len(x):
        print(f"features of {split.length:,} images of {split.name} {split.split}", flush=True)
        found = embed(x, y, extractor, True)
        features = found.features
        scores = np.zeros((len(x), 0)) if found.logits is None else found.logits
        with contextlib.suppress(OSError):  # a full disk costs time, and nothing else
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{os.getpid()}-{path.name}")
            np.savez(temporary, features=features, logits=scores)
            os.replace(temporary, path)
    return Images(x, y, features, scores if logits and scores.shape[-1] else None)


def monitors(
    algorithm: Algorithm,
    dataset: str,
    validation: data.Dataset,
    names: Sequence[str],
    n: int = 10_000,
) -> tuple[Callable[[Any], dict[str, float]], Callable[[Any], dict[str, float]]]:
    """``(validate, evaluate)`` of an ``Experiment`` that draws samples: the metrics ``names`` of ``n`` of them, in the
    features of the first net: the classifier of the project, EfficientNet-Lite0 where there are no labels.

    ``validate`` compares with ``validation``, ``evaluate`` with the test split, as the evaluate experiment does, whose
    numbers of the same checkpoint are the same.

    Raises:
      UserError: if there are too few images to compare with, or the feature net cannot be had.
    """
    needed = max(WHILE_TRAINING[name] for name in names)
    test = data.load(dataset, "test").length
    for length, what in ((validation.length, "held out"), (test, "in the test split")):
        if length < needed:
            raise UserError(
                f"--eval_every: must be 0 for --dataset={dataset}: {length} images are {what},"
                f" {','.join(names)} need {needed}"
            )
    labelled = data.load(dataset, "train").classes > 1
    extractor = _classifier(dataset, SEEDS[0]) if labelled else effnet.extractor()

    @functools.cache
    def reference(split: str) -> Images:
        images = validation if split == "validation" else data.load(dataset, split)
        return of_dataset(images, extractor, logits=False)

    def scores(state: Any, split: str, seed: int) -> dict[str, float]:
        y = labels_of(algorithm, dataset, n, seed)
        x = cli.drawn(algorithm, state, seed=seed, n=n, labels=y)
        fake, real = embed(x, None, extractor, False), reference(split)
        found = {}
        for name in names:
            found |= METRICS[name](fake, real, real, seed)
        return found

    def evaluate(state: Any) -> dict[str, float]:
        return {f"test/{k}": v for k, v in scores(state, "test", 0).items()}

    # Other latents than those of the evaluation, which must not be chosen for.
    return lambda state: scores(state, "validation", 1), evaluate


def evaluate(
    candidates: Sequence[Candidate],
    dataset: str,
    extractor: Extractor,
    names: Sequence[str],
    seed: int,
) -> list[dict[str, Any]]:
    """A row for each metric of each candidate: ``metric``, ``value``, ``real``, ``untrained`` and what it depends on.

    ``real`` is the metric of as many training images, all if they are fewer, in the place of the samples; of the test
    images' one half against the other where the metric looks at the training images itself.
    """
    splits = {split: data.load(dataset, split) for split in ("train", "test")}
    logits = not {"is", "accuracy"}.isdisjoint(names)
    train, real = (of_dataset(splits[split], extractor, logits) for split in ("train", "test"))
    rng = np.random.default_rng(seed)
    rows = []
    for candidate in candidates:
        if candidate.x.shape[1:] != real.x.shape[1:]:
            raise UserError(
                f"{candidate.name}: images are {candidate.x.shape[1:]}, those of {dataset} {real.x.shape[1:]}"
            )
        n = len(candidate.x)
        fake = embed(candidate.x, candidate.y, extractor, logits)
        untrained = embed(candidate.untrained, candidate.y, extractor, logits)
        if candidate.turned is not None and fake.logits is not None and extractor.of_data:
            m, k = candidate.turned.shape[:2]
            flat = candidate.turned.reshape(m * k, *candidate.x.shape[1:])
            seen = embed(flat, None, extractor, True).logits
            assert seen is not None  # as of the samples
            fake = fake._replace(turned=seen.argmax(1).reshape(m, k))
        subset = train.take(np.sort(rng.permutation(len(train.x))[:n]))
        if fake.y is None:
            subset = subset._replace(y=None)
        for name in names:
            if name == "accuracy" and fake.y is not None and not extractor.of_data:
                print(
                    f"  {extractor.name}: {name} left out: it is no classifier of the data",
                    flush=True,
                )
                continue
            begin = time.perf_counter()
            best, against, worst = subset, real, untrained
            if name == "memorisation":
                best, against = real.take(slice(0, None, 2)), real.take(slice(1, None, 2))
            if name == "cas" and fake.y is not None:  # its control: labels that say nothing
                worst = fake._replace(y=rng.permutation(fake.y))
            try:
                values = METRICS[name](fake, real, train, seed)
                floor = METRICS[name](best, against, train, seed)
                ceiling = METRICS[name](worst, real, train, seed)
            except ValueError as error:  # too few images, features that are not finite, ...
                print(f"  {candidate.name}: {name} left out: {error}", flush=True)
                continue
            for metric, value in values.items():
                rows.append(
                    {
                        "metric": metric if name in PIXELS else _named(metric, extractor),
                        "value": value,
                        "real": floor.get(metric),
                        "untrained": ceiling.get(metric),
                        "of": candidate.name,
                        **candidate.facts,
                        "features": {
                            "name": extractor.name,
                            "sha256": extractor.sha256,
                            "preprocessing": extractor.preprocessing,
                        },
                        "samples": n,
                        "real_images": len(subset.x),
                        "reference": f"{dataset} test",
                        "reference_images": len(real.x),
                        "reference_sha256": splits["test"].sha256,
                        "train_images": len(train.x),
                        "seed": seed,
                        "quantisation": "uint8",
                        "versions": _versions(),
                    }
                )
            took = time.perf_counter() - begin
            print(f"  {candidate.name}: {name} with {extractor.name} in {took:.1f} s", flush=True)
    return rows


def _versions() -> dict[str, str]:
    return {"bpgan": __version__} | {p: metadata.version(p) for p in ("jax", "numpy", "scipy")}


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each metric: value (mean and standard deviation over candidates), real and untrained beside it."""
    lines = [f"{'metric':34s} {'value':>22s} {'real':>12s} {'untrained':>12s}"]
    for metric in dict.fromkeys(row["metric"] for row in rows):
        found = [row for row in rows if row["metric"] == metric]
        text = cli.mean_of([row["value"] for row in found])
        bounds = []
        for column in ("real", "untrained"):
            known = [row[column] for row in found if row[column] is not None]
            bounds.append(f"{statistics.fmean(known):12.4g}" if known else f"{'-':>12s}")
        lines.append(f"{metric:34s} {text:>22s} {' '.join(bounds)}")
    return lines


def run(cfg: Config) -> None:
    """Evaluates, prints the table and writes ``metrics.json``; a run's directory that cannot take it is a warning.

    Raises:
      UserError: for runs or samples that cannot be read, or do not fit the dataset, and for a ``--workdir`` or
        ``--save`` that cannot be written.
    """
    from bpgan.runtime import report

    if bool(cfg.run) == bool(cfg.samples):
        raise UserError("--run or --samples is needed, and not both")
    if cfg.samples and cfg.checkpoint != Config.checkpoint:
        raise UserError(f"--checkpoint={cfg.checkpoint}: of --run only; has no effect on --samples")
    if cfg.samples and cfg.flags:
        raise UserError(f"--flags={cfg.flags}: of --run only; must be empty with --samples")
    if cfg.samples and not cfg.dataset:
        raise UserError("--dataset: is needed with --samples")
    if cfg.save and len(runs_of(cfg.run)) > 1:
        raise UserError(f"--save={cfg.save}: holds the samples of one run; --run must name one")
    out = cli.writable(cfg.workdir, f"--workdir={cfg.workdir}")
    file = pathlib.Path(cfg.save).expanduser()
    if cfg.save:
        cli.writable(file.parent, f"--save={cfg.save}")
        if file.is_dir():
            raise UserError(f"--save={cfg.save}: cannot be written (Is a directory)")
    if cfg.run:
        options = cfg.checkpoint, cfg.n, cfg.seed, cli.assignments(cfg.flags)
        turn = "accuracy" in names_of(cfg.metrics)
        pairs = [of_run(path, *options, turn=turn) for path in runs_of(cfg.run)]
        candidates, trained_on = [pair[0] for pair in pairs], {pair[1] for pair in pairs}
        if not cfg.dataset and len(trained_on) > 1:
            raise UserError(
                f"--run: trained on different data ({', '.join(sorted(trained_on))}); name one by --dataset"
            )
        dataset = cfg.dataset or trained_on.pop()
    else:
        candidates, dataset = [of_samples(cfg.samples, cfg.n, cfg.seed)], cfg.dataset
    if cfg.save:
        save(file, candidates[0])
    rows = []
    names = names_of(cfg.metrics)
    for extractor in extractors(cfg.features, dataset):
        rows += evaluate(candidates, dataset, extractor, names, cfg.seed)
        names = [name for name in names if name not in PIXELS]
    if not rows:
        raise UserError(f"--metrics={cfg.metrics}: none can be had of these images")
    first = rows[0]
    print(
        f"{first['samples']:,} samples against {first['reference_images']:,} images of {first['reference']};"
        f" real: {first['real_images']:,} training images instead; seed {cfg.seed}"
    )
    print("\n".join(table(rows)))
    try:
        report.save_png(out / "samples.png", report.image_grid(candidates[0].x[:100]))
        _write(out / "metrics.json", rows)
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    print(f"wrote {out / 'metrics.json'}", flush=True)
    for path in runs_of(cfg.run):
        folder = pathlib.Path(path).expanduser()
        try:
            _write(folder / "metrics.json", [row for row in rows if row["of"] == path])
            print(f"added to {report.write_report(folder)}")
        except (OSError, UserError) as error:  # of a disk that is read-only, of a damaged log
            where = f"the numbers are in {out / 'metrics.json'}"
            print(f"warning: not added to the report of {path} ({error}); {where}", file=sys.stderr)


def save(path: pathlib.Path, samples: Candidate) -> None:
    """Writes samples as the datasets ``npz:FILE`` are read. Raises a UserError if the disk does not take them."""
    arrays: dict[str, Any] = {"x": samples.x} | ({} if samples.y is None else {"y": samples.y})
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"--save={path}: cannot be written ({error.strerror})") from None
    print(f"wrote {len(samples.x):,} samples to {path}", flush=True)


def _write(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


PRESETS = {
    "smoke": dict(
        samples="mnist10k",
        dataset="mnist10k",
        metrics="fd",
        n=500,
        features="experiments.evaluate:pixels",
    )
}


def pixels(images: np.ndarray) -> np.ndarray:
    """Every fourth pixel as features: for trying out, and an example of ``--features=MODULE:FUNCTION``."""
    return images[:, ::4, ::4].reshape(len(images), -1).astype(np.float64)


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
