"""Evaluates runs, or images from anywhere, against a dataset: distances, diversity, memorization.

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
are drawn anew, as uint8, from latents that training never sees. Classes of the samples and of the dataset are matched
by their names. ``metrics.json`` says of each number all that it depends on (``bpgan/metrics/evaluations.py`` has its
form); that in the directory of a run keeps every evaluation of the run, and the run's report shows it. See
docs/metrics.md for what the numbers mean, and when they lie.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

from bpgan import cli, data, metrics
from bpgan.data import cache
from bpgan.files import decode, replaced, write_json
from bpgan.metrics import classes, evaluations
from bpgan.metrics.features import Extractor, effnet, inception, kept, plug
from bpgan.runtime import records
from bpgan.types import Algorithm, UserError
from bpgan.version import __version__

from . import classifier

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
    if len(set(map(os.path.realpath, paths))) < len(paths):  # of which a deviation would be 0
        raise ValueError("must name every run once")
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
        "FILE.npz for the samples: x, uint8 [n, h, w, c], and y and class_names where they have labels",
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

    def of_classes(self, chosen: np.ndarray) -> "Images":
        """Those of some classes."""
        assert self.y is not None
        return self.take(np.flatnonzero(np.isin(self.y, chosen)))

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
    count = int(max(fake.y.max(), real.y.max())) + 1
    cfg = dataclasses.replace(classifier.Config(), seed=seed, feed="memory", epochs=10.0)
    experiment = classifier.of_data(
        cfg,
        data.of_arrays("samples", "train", fake.x, fake.y, count),
        data.of_arrays("reference", "test", real.x, real.y, count),
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
    "memorization": memorization,
    "class_fd": by_class,
    "accuracy": label_accuracy,
    "cas": classification,
}
"""By the names of ``--metrics``: ``(samples, reference, training images, seed) -> {name: value}``, empty where a metric
cannot be had, of samples without labels for example."""

PIXELS = ("msssim", "cas")
"""Those that look at the images themselves: their names carry no feature net."""

COVERED: dict[str, Callable[[Any, Any], np.ndarray]] = {
    "msssim": lambda fake, real: classes.covered(fake, least=2),
    "class_fd": lambda fake, real: classes.covered(fake, real, least=2),
    "accuracy": lambda fake, real: classes.covered(fake),
    "cas": lambda fake, real: classes.covered(fake, real),
}
"""Those that look at classes: ``(labels of the samples, labels of the reference) -> classes that the number is of``."""

WHILE_TRAINING = {"fd": 2, "kd": 2, "prdc": 6}
"""Those of ``--eval_every``: quick ones that need neither labels nor the training images, and how many images they need
to compare with. Of prdc that is one more than the neighbors it looks for."""


class Candidate(NamedTuple):
    """Images to evaluate, and what an untrained model would have given in their place.

    Attributes:
      name: run directory or name of the samples.
      x, y: uint8 ``[n, h, w, c]``, and labels ``[n]`` or None.
      untrained: uint8 ``[n, h, w, c]``.
      facts: of these images, for metrics.json.
      called: what the classes of the labels are called.
      turned: uint8 ``[m, k, h, w, c]``, the same m latents under each of k labels; None without labels.
    """

    name: str
    x: np.ndarray
    y: np.ndarray | None
    untrained: np.ndarray
    facts: dict[str, Any]
    called: classes.Classes
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
        reason = f"must be of a model of images, and is of {run.name}"
        raise UserError(reason, argument="run", value=path)
    y = labels_of(algorithm, dataset, n, seed)
    x = cli.drawn(algorithm, run.state, seed=seed, n=n, labels=y)
    start = cli.trained(run.experiment, seed=run.config.seed, steps=0)
    untrained = cli.drawn(algorithm, start, seed=seed, n=n, labels=y)
    # Where the data are now is no property of the samples.
    flags = sorted(change for change in changes if not change.startswith("dataset="))
    facts = {
        "experiment": run.name,
        "training_seed": run.config.seed,
        "checkpoint": checkpoint,
        "step": run.step,
        "flags": " ".join(flags),
        "samples_sha256": "",
    }
    turned, m = None, max(_TURNED // max(algorithm.classes, 1), 1)
    if y is not None and turn:
        labels = (np.full(m, label, np.int32) for label in range(algorithm.classes))
        # In batches of what is kept: of many classes that is a few each.
        drawn = [
            cli.drawn(algorithm, run.state, seed=seed, n=m, labels=label, batch=min(m, 500))
            for label in labels
        ]
        turned = np.stack(drawn, axis=1)
    named = classes_of(data.load(dataset, "train"))
    return Candidate(path, x, y, untrained, facts, named, turned), dataset


def classes_of(split: data.Dataset) -> classes.Classes:
    """What a dataset calls its classes."""
    named = len(split.class_names) == split.classes
    return classes.Classes(split.classes, split.class_names if named else ())


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
    facts = {
        "experiment": "",
        "training_seed": None,
        "checkpoint": "",
        "step": None,
        "flags": "",
        "samples_sha256": _sha256(split.sha256 for split in splits),
    }
    return Candidate(name, x, labels, noise, facts, classes_of(splits[0]))


def _sha256(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


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
    """The features of a classifier trained on a dataset, which is kept by the content of the data and its settings.

    Trained in the same way it is the same net, so a damaged one is trained again. Several processes of one run use the
    same one: if one of them has none, or another, they train it together.

    Raises:
      UserError: if there are no labels, or such a net cannot be trained on these data.
    """
    from bpgan.metrics.features import classifier as features
    from bpgan.runtime import distributed

    train = data.load(dataset, "train")
    if train.classes < 2:
        raise UserError(
            f"{dataset} has no labels to train it on; effnet needs none",
            argument="features",
            value="classifier",
        )
    epochs, halving = (12.0, 3.0) if train.length < 20_000 else (4.0, 1.0)
    flags = [f"--epochs={epochs}", f"--lr_half_life={halving}", f"--seed={seed}", "--notensorboard"]
    cfg = cli.resolve(classifier.Config, classifier.PRESETS, flags)
    key = zlib.crc32(f"{__version__} {cfg}".encode())
    path = cache.directory() / "features" / f"{train.sha256[:16]}-{key:08x}.npz"
    say = functools.partial(print, flush=True) if distributed.is_lead() else lambda *_, **__: None

    def found() -> Extractor | None:
        params = features.load(path, train.shape, classes=train.classes)
        net = params and features.extractor(params, classes=train.classes, name=f"classifier{seed}")
        marks = distributed.agree(1 + int(net.sha256[:7], 16) if net else 0)
        return net if marks.all() and (marks == marks[0]).all() else None

    net = found()
    if net is None:
        lead = distributed.is_lead()
        with kept.turn(path.with_suffix(".lock")) if lead else contextlib.nullcontext():
            # Of the runs of a sweep, which ask for it together, the first one trains it.
            net = found()
            if net is None:
                if os.path.lexists(path):
                    say(f"warning: {path} is damaged; it is made again", file=sys.stderr)
                say(f"training the feature net of seed {seed} on {dataset}, once: {path}")
                params = _trained(dataclasses.replace(cfg, dataset=dataset))
                net = features.extractor(params, classes=train.classes, name=f"classifier{seed}")
                if lead and (reason := features.save(path, params)):
                    say(f"warning: {path} cannot be written ({reason})", file=sys.stderr)
    test = of_dataset(data.load(dataset, "test"), net, logits=True)
    assert test.logits is not None and test.y is not None
    accuracy = np.mean(test.logits.argmax(1) == test.y)
    say(f"feature net of seed {seed}: accuracy {accuracy:.4f} on the test split")
    return net


def _trained(cfg: classifier.Config) -> Any:
    """The parameters of a classifier after its training, in 32 bits whatever the run that asks for it has."""
    try:
        with jax.enable_x64(False):
            experiment = classifier.build(cfg)
            steps = round(cfg.epochs * experiment.source.steps_per_epoch)
            tell = _telling("training the feature net", steps, "steps")
            state = cli.trained(experiment, seed=cfg.seed, steps=steps, progress=tell)
            return jax.device_get(state.params)
    except UserError as error:
        reason = f"the net could not be trained on {cfg.dataset} ({cli.message_of(error)})"
        raise UserError(reason, argument="features", value="classifier") from None


def _telling(what: str, total: int, unit: str) -> Callable[[int], None]:
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


def embed(x: np.ndarray, y: np.ndarray | None, extractor: Extractor, logits: bool) -> Images:
    """Images with their features, and their logits if wanted and there are any; tells the time left if that is long."""

    def all_of(function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        parts, tell = [], _telling(extractor.name, len(x), "images")
        for i in range(0, len(x), _CHUNK):
            parts.append(np.asarray(function(x[i : i + _CHUNK])))
            tell(min(i + _CHUNK, len(x)))
        return np.concatenate(parts)

    scores = all_of(extractor.logits) if extractor.logits and logits else None
    return Images(x, y, all_of(extractor.function), scores)


def of_dataset(split: data.Dataset, extractor: Extractor, logits: bool) -> Images:
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


class Monitors(NamedTuple):
    """What evaluates a model while it is trained; see ``cli.Experiment``."""

    validate: Callable[[Any], dict[str, float]]
    evaluate: Callable[[Any], dict[str, float]]
    measure: dict[str, str]


def monitors(
    algorithm: Algorithm,
    dataset: str,
    validation: data.Dataset,
    names: Sequence[str],
    n: int = 10_000,
) -> Monitors:
    """Of an ``Experiment`` that draws samples: the metrics ``names`` of ``n`` of them, in the features of the first
    net: the classifier of the project, EfficientNet-Lite0 where there are no labels.

    ``validate`` compares with ``validation``, ``evaluate`` with the test split, as the evaluate experiment does, whose
    numbers of the same checkpoint are the same.

    Raises:
      UserError: if there are too few images to compare with, or the feature net cannot be had.
    """
    needed = max(WHILE_TRAINING[name] for name in names)
    test = data.load(dataset, "test").length
    for length, what in ((validation.length, "held out"), (test, "in the test split")):
        if length < needed:
            need = f"{','.join(names)} need {needed}"
            reason = f"{length} images are {what}, {need}; --eval_every must be 0"
            raise UserError(reason, argument="dataset", value=dataset, beside=["eval_every"])
    labeled = data.load(dataset, "train").classes > 1
    extractor = _classifier(dataset, SEEDS[0]) if labeled else effnet.extractor()

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

    return Monitors(
        # Other latents than those of the evaluation, which must not be chosen for.
        lambda state: scores(state, "validation", 1),
        lambda state: {f"test/{k}": v for k, v in scores(state, "test", 0).items()},
        {"features": extractor.name, "features_sha256": extractor.sha256},
    )


class Sets(NamedTuple):
    """What a number is computed of: the images of a candidate and all that stands beside them.

    Attributes:
      fake, untrained: the samples, and what an untrained model draws.
      train, real: the training images and the reference.
      best: as many training images as samples, all if they are fewer.
      classes: how many the data have.
    """

    fake: Images
    untrained: Images
    train: Images
    real: Images
    best: Images
    classes: int


def evaluate(
    candidates: Sequence[Candidate],
    dataset: str,
    extractor: Extractor,
    names: Sequence[str],
    seed: int,
) -> list[evaluations.Row]:
    """A row for each metric of each candidate, as ``bpgan.metrics.evaluations`` describes it.

    ``real`` is the metric of as many training images, all if they are fewer, in the place of the samples; of the test
    images' one half against the other where the metric looks at the training images itself.

    Raises:
      UserError: if a candidate has other classes than the dataset, and a metric of classes is asked for; or images of
        another shape.
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
        y, by = _matched(candidate, splits["train"], names)
        sets = Sets(
            _embedded(candidate, y, extractor, logits),
            embed(candidate.untrained, y, extractor, logits),
            train,
            real,
            train.take(np.sort(rng.permutation(len(train.x))[: len(candidate.x)])),
            splits["train"].classes,
        )
        if y is None:
            sets = sets._replace(best=sets.best._replace(y=None))
        facts = {
            "of": candidate.name,
            **candidate.facts,
            "matched_by": by,
            "n": len(candidate.x),
            "seed": seed,
            "reference": f"{dataset} test",
            "reference_images": len(real.x),
            "reference_sha256": splits["test"].sha256,
            "train_images": len(train.x),
            "train_sha256": splits["train"].sha256,
            "real_images": len(sets.best.x),
            "quantization": "uint8",
            "versions": _versions(),
        }
        for name in names:
            rows += [
                row | facts for row in _measured(name, sets, extractor, candidate.name, seed, rng)
            ]
    return rows


def _matched(
    candidate: Candidate, split: data.Dataset, names: Sequence[str]
) -> tuple[np.ndarray | None, str]:
    """The labels of a candidate in the numbers of the dataset, None if either has none or they play no part; and by
    what they were matched: ``name``, ``number`` or ""."""
    if candidate.y is None or split.classes < 2 or COVERED.keys().isdisjoint(names):
        return None, ""
    try:
        found = classes.match(candidate.y, candidate.called, classes_of(split))
    except ValueError as error:
        others = ",".join(name for name in METRICS if name not in COVERED)
        raise UserError(
            f"{candidate.name}: {error}, {split.name}; --metrics={others} need no classes"
        ) from None
    if found.doubt:
        print(f"warning: {candidate.name}: classes are {found.doubt}", file=sys.stderr, flush=True)
    return found.labels, found.by


def _embedded(
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


def _measured(
    name: str, sets: Sets, extractor: Extractor, of: str, seed: int, rng: np.random.Generator
) -> list[evaluations.Row]:
    """The rows of one metric, without the facts of the candidate ``of``; none, and why, if it cannot be had."""
    if name == "accuracy" and sets.fake.y is not None and not extractor.of_data:
        print(f"  {extractor.name}: {name} left out: it is no classifier of the data", flush=True)
        return []
    begin, covered = time.perf_counter(), None
    best, against, worst = sets.best, sets.real, sets.untrained
    if name in COVERED and sets.fake.y is not None:
        covered = COVERED[name](sets.fake.y, sets.real.y)
        if not len(covered):
            print(f"  {of}: {name} left out: no class has images enough", flush=True)
            return []
    # Of cas, a class that is missing is a fault of the samples.
    if covered is not None and name != "cas":
        best = best.of_classes(covered)
    if name == "memorization":
        best, against = against.take(slice(0, None, 2)), against.take(slice(1, None, 2))
    if name == "cas" and sets.fake.y is not None:  # its control: labels that say nothing
        worst = sets.fake._replace(y=rng.permutation(sets.fake.y))
    try:
        values = METRICS[name](sets.fake, sets.real, sets.train, seed)
        floor = METRICS[name](best, against, sets.train, seed)
        ceiling = METRICS[name](worst, sets.real, sets.train, seed)
    except (ValueError, UserError) as error:  # too few images, or small ones; features not finite
        print(f"  {of}: {name} left out: {cli.message_of(error)}", flush=True)
        return []
    if not values:
        lacking = "the samples have no labels" if name in COVERED else "the net is no classifier"
        print(f"  {of}: {name} left out: {lacking}", flush=True)
        return []
    took = time.perf_counter() - begin
    print(f"  {of}: {name} with {extractor.name} in {took:.1f} s", flush=True)
    pixels = name in PIXELS
    return [
        {
            "metric": metric if pixels else _named(metric, extractor),
            "value": value,
            "real": floor.get(metric),
            "untrained": ceiling.get(metric),
            "classes": None if covered is None else len(covered),
            "of_classes": None if covered is None else sets.classes,
            "features": "" if pixels else extractor.name,
            "features_sha256": "" if pixels else extractor.sha256,
            "preprocessing": "" if pixels else extractor.preprocessing,
        }
        for metric, value in values.items()
    ]


def _versions() -> str:
    packages = ((name, metadata.version(name)) for name in ("jax", "numpy", "scipy"))
    return ", ".join(f"{name} {version}" for name, version in (("bpgan", __version__), *packages))


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each metric: value (mean and standard deviation over candidates), real and untrained beside it.

    And, of a metric of classes, how many it is of.
    """
    lines = [f"{'metric':34s} {'value':>22s} {'real':>12s} {'untrained':>12s}"]
    for metric in dict.fromkeys(row["metric"] for row in rows):
        found = [row for row in rows if row["metric"] == metric]
        text = cli.mean_of([row["value"] for row in found])
        bounds = []
        for column in ("real", "untrained"):
            known = [row[column] for row in found if row[column] is not None]
            bounds.append(f"{statistics.fmean(known):12.4g}" if known else f"{'-':>12s}")
        counts = sorted({row["classes"] for row in found if row.get("classes") is not None})
        ends = " to ".join(dict.fromkeys(str(count) for count in (*counts[:1], *counts[-1:])))
        of = f"  of {ends} of {found[0]['of_classes']} classes" if counts else ""
        lines.append(f"{metric:34s} {text:>22s} {' '.join(bounds)}{of}")
    return lines


def run(cfg: Config) -> None:
    """Evaluates, prints the table and writes ``metrics.json``; a run's directory that cannot take it is a warning.

    Raises:
      UserError: for runs or samples that cannot be read, or do not fit the dataset, and for a ``--workdir`` or
        ``--save`` that cannot be written.
    """
    from bpgan.report import page as report
    from bpgan.runtime import images

    out, file = _checked(cfg)
    candidates, dataset = _candidates(cfg)
    if cfg.save:
        save(file, candidates[0])
    rows: list[evaluations.Row] = []
    names = names_of(cfg.metrics)
    for extractor in extractors(cfg.features, dataset):
        rows += evaluate(candidates, dataset, extractor, names, cfg.seed)
        names = [name for name in names if name not in PIXELS]
    if not rows:
        raise UserError("none can be had of these images", argument="metrics", value=cfg.metrics)
    first = rows[0]
    for row in {row["of"]: row for row in rows if row["checkpoint"]}.values():
        flags = f", {row['flags']}" if row["flags"] else ""
        print(f"{row['of']}: checkpoint of step {row['step']} ({row['checkpoint']}){flags}")
    print(
        f"{first['n']:,} samples against {first['reference_images']:,} images of {first['reference']};"
        f" real: {first['real_images']:,} training images instead; seed {cfg.seed}"
    )
    print("\n".join(table(rows)))
    kept_there = any(os.path.samefile(os.path.expanduser(path), out) for path in runs_of(cfg.run))
    where = ""
    try:
        images.save_png(out / "samples.png", images.image_grid(candidates[0].x[:100]))
        if not kept_there:  # or it would replace all that is kept there
            write_json(out / "metrics.json", rows)
            where = f"; the numbers are in {out / 'metrics.json'}"
            print(f"wrote {out / 'metrics.json'}", flush=True)
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from None
    for path in runs_of(cfg.run):
        folder = pathlib.Path(path).expanduser()
        try:
            count = _add(folder / "metrics.json", [row for row in rows if row["of"] == path])
            print(f"added to {report.write_report(folder)}, which has {count} numbers now")
        except (OSError, UserError) as error:  # of a disk that is read-only, of a damaged log
            print(f"warning: not added to the report of {path} ({error}){where}", file=sys.stderr)


def _checked(cfg: Config) -> tuple[pathlib.Path, pathlib.Path]:
    """The directory and the file that are written, ``--workdir`` and ``--save``.

    Raises:
      UserError: for flags that do not go together, and for places that cannot be written.
    """
    if bool(cfg.run) == bool(cfg.samples):
        raise UserError("--run or --samples is needed, and not both")
    if cfg.samples and cfg.checkpoint != Config.checkpoint:
        reason = "of --run only; has no effect on --samples"
        raise UserError(reason, argument="checkpoint", value=cfg.checkpoint)
    if cfg.samples and cfg.flags:
        reason = "of --run only; must be empty with --samples"
        raise UserError(reason, argument="flags", value=cfg.flags)
    if cfg.samples and not cfg.dataset:
        raise UserError("is needed with --samples", argument="dataset")
    if cfg.save and len(runs_of(cfg.run)) > 1:
        reason = "holds the samples of one run; --run must name one"
        raise UserError(reason, argument="save", value=cfg.save)
    out = cli.writable(cfg.workdir, "workdir", cfg.workdir)
    file = pathlib.Path(cfg.save).expanduser()
    if cfg.save:
        cli.writable(file.parent, "save", cfg.save)
        if file.is_dir():
            raise UserError("cannot be written (Is a directory)", argument="save", value=cfg.save)
    return out, file


def _candidates(cfg: Config) -> tuple[list[Candidate], str]:
    """What is evaluated, and the name of the dataset it is compared with.

    Raises:
      UserError: as ``of_run``; if ``--dataset`` does not say which of several datasets it is.
    """
    if cfg.samples:
        return [of_samples(cfg.samples, cfg.n, cfg.seed)], cfg.dataset
    options = cfg.checkpoint, cfg.n, cfg.seed, cli.assignments(cfg.flags)
    turn = "accuracy" in names_of(cfg.metrics)
    pairs = [of_run(path, *options, turn=turn) for path in runs_of(cfg.run)]
    trained_on = {dataset for _, dataset in pairs}
    if not cfg.dataset and len(trained_on) > 1:
        reason = (
            f"trained on different data ({', '.join(sorted(trained_on))}); name one by --dataset"
        )
        raise UserError(reason, argument="run", value=cfg.run)
    return [candidate for candidate, _ in pairs], cfg.dataset or trained_on.pop()


def save(path: pathlib.Path, samples: Candidate) -> None:
    """Writes samples as the datasets ``npz:FILE`` are read. Raises a UserError if the disk does not take them."""
    arrays: dict[str, Any] = {"x": samples.x} | ({} if samples.y is None else {"y": samples.y})
    if samples.y is not None and samples.called.names:
        arrays["class_names"] = np.array(samples.called.names)
    try:
        with replaced(path) as temporary, temporary.open("xb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise UserError(reason, argument="save", value=path) from None
    print(f"wrote {len(samples.x):,} samples to {path}", flush=True)


def _add(path: pathlib.Path, rows: Sequence[evaluations.Row]) -> int:
    """Adds an evaluation to those of a run; returns how many numbers there are now.

    What is no such file, or has rows that are none, is set aside; the rows that are sound are kept.

    Raises:
      OSError: if the disk does not take them.
      UserError: if something else lies where the file should be.
    """
    with kept.turn(path.parent):  # of several that evaluate the run at the same time
        old, damaged = _read(path)
        if damaged:
            names = (f"{path.name}.damaged{n or ''}" for n in itertools.count())
            aside = next(p for p in map(path.with_name, names) if not os.path.lexists(p))
            os.rename(path, aside)
            print(f"warning: {path} {damaged}; it is now {aside}", file=sys.stderr, flush=True)
        rows = evaluations.merged(old, rows)
        write_json(path, rows)
    return len(rows)


def _read(path: pathlib.Path) -> tuple[list[evaluations.Row], str]:
    """The sound rows of a ``metrics.json``, and what is wrong with the rest; empty if nothing is.

    One row that the report cannot read would keep it from showing any.
    """

    if not path.exists():
        return [], ""
    if not path.is_file():
        raise UserError(f"{path} is no file")
    try:
        rows = decode(path.read_bytes(), list[Any])
    except ValueError as error:
        return [], f"is damaged ({error})"
    sound = [row for row in rows if records.is_evaluation(row) and evaluations.is_row(row)]
    return sound, "" if len(sound) == len(rows) else "has rows that this version did not write"


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
