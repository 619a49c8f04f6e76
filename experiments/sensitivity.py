"""What each metric sees and what it cannot: real images, degraded in known ways, as samples.

Run:     python -m experiments.sensitivity
             the table of docs/metrics.md: digits, the project's own feature nets
         python -m experiments.sensitivity --dataset=folder:PATH --features=MODULE:FUNCTION
             whether a feature net can be trusted on your data, before any GAN is
Papers:  Lucic et al. 2018, arXiv:1711.10337, section 5.1; Xu et al. 2018, arXiv:1806.07755; Naeem et al. 2020,
         arXiv:2002.09797; Jayasumana et al. 2024, arXiv:2401.09603.

A metric sees a defect if it moves by more than five standard deviations of what it says of other real images, several
draws of them. Along each ladder of growing damage the Fréchet distance must grow.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from bpgan import cli, data
from bpgan.evaluation.evaluate import needs_logits
from bpgan.evaluation.features import FEATURES, Make
from bpgan.evaluation.images import Images, embed
from bpgan.evaluation.table import METRICS, Metric, parse
from bpgan.metrics import classes
from bpgan.metrics.features import Extractor
from bpgan.types import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    dataset: cli.Parsed[data.Name] = cli.field("mnist10k", data.forms, parse=data.parse)
    features: cli.Parsed[Make] = FEATURES
    metrics: cli.Parsed[dict[str, Metric]] = cli.field(
        "fd,kd,prdc,is,vendi,msssim,memorization,class_fd",
        "names separated by commas, MODULE:NAME for your own, or all: cas trains a classifier on every defect",
        parse=parse,
    )
    n: int = cli.field(2000, "images in the place of samples", low=100)
    draws: int = cli.field(10, "sets of real images that tell what is noise", low=2)
    seed: int = cli.field(0, "of subsets and noise", low=0, high=2**32 - 1)


PRESETS = {"smoke": dict(features="pixels", metrics="fd,prdc", n=300, draws=2)}


class Sample(NamedTuple):
    """Images uint8 ``[n, h, w, c]`` and their labels."""

    x: np.ndarray
    y: np.ndarray


def noisy(x: np.ndarray, sd: float, seed: int = 0) -> np.ndarray:
    """With Gaussian noise of ``sd`` gray levels."""
    noise = np.random.default_rng(seed).normal(0, sd, x.shape)
    return np.clip(np.rint(x + noise), 0, 255).astype(np.uint8)


def blurred(x: np.ndarray, sd: float) -> np.ndarray:
    """Convolved with a Gaussian of ``sd`` pixels."""
    from scipy import ndimage

    return np.rint(ndimage.gaussian_filter(x.astype(np.float64), (0, sd, sd, 0))).astype(np.uint8)


def levels(x: np.ndarray, n: int) -> np.ndarray:
    """With ``n`` gray levels."""
    return np.rint(np.rint(x / 255 * (n - 1)) / (n - 1) * 255).astype(np.uint8)


def without_classes(pool: Sample, dropped: int, n: int) -> Sample:
    """The first ``n`` of those that are not of the first ``dropped`` classes."""
    keep = np.flatnonzero(pool.y >= dropped)
    return Sample(pool.x[keep][:n], pool.y[keep][:n])


Defect = Callable[[Sample, Sample, int, np.random.Generator], Sample]


def _one_per_class(pool: Sample, train: Sample, n: int, rng: np.random.Generator) -> Sample:
    del train, rng
    first = np.array([np.flatnonzero(pool.y == c)[0] for c in np.unique(pool.y)])
    rows = first[np.arange(n) % len(first)]
    return Sample(pool.x[rows], pool.y[rows])


def _half_of_the_classes(pool: Sample, train: Sample, n: int, rng: np.random.Generator) -> Sample:
    del train, rng
    return without_classes(pool, (int(pool.y.max()) + 1) // 2, n)


def _noise(pool: Sample, train: Sample, n: int, rng: np.random.Generator) -> Sample:
    del train
    return Sample(rng.integers(0, 256, pool.x[:n].shape, np.uint8), pool.y[:n])


DEFECTS: dict[str, Defect] = {
    "training images": lambda pool, train, n, rng: Sample(train.x[:n], train.y[:n]),
    "one image per class": _one_per_class,
    "noise": _noise,
    "blurred": lambda pool, train, n, rng: Sample(blurred(pool.x[:n], 1.0), pool.y[:n]),
    "half of the classes": _half_of_the_classes,
    "shuffled labels": lambda pool, train, n, rng: Sample(pool.x[:n], rng.permutation(pool.y[:n])),
}
"""``(real images that nothing was trained on, training images, n, rng) -> samples``."""

LADDERS: dict[str, tuple[tuple[float, ...], Callable[[Sample, float, int], Sample]]] = {
    "noise of sd (gray levels)": (
        (8, 16, 32, 64),
        lambda pool, sd, n: Sample(noisy(pool.x[:n], sd), pool.y[:n]),
    ),
    "blur of sd (pixels)": (
        (0.5, 1, 2),
        lambda pool, sd, n: Sample(blurred(pool.x[:n], sd), pool.y[:n]),
    ),
    "classes dropped": ((1, 2, 5, 9), lambda pool, k, n: without_classes(pool, int(k), n)),
    "gray levels": (
        (8, 4, 2),
        lambda pool, k, n: Sample(levels(pool.x[:n], int(k)), pool.y[:n]),
    ),
}
"""Growing damage: ``(rungs, (real images, rung, n) -> samples)``."""


class Sight(NamedTuple):
    """What one feature net sees.

    Attributes:
      real: mean and standard deviation of each metric of real images.
      defects: value of each metric by defect.
      floor: Fréchet distance of real images, the mean, and what ``frechet_bias`` says it is.
      ladders: Fréchet distances by ladder, of undamaged images first.
      covered: by defect, of how many classes of how many the metrics of classes are.
    """

    real: dict[str, tuple[float, float]]
    defects: dict[str, dict[str, float]]
    floor: tuple[float, float]
    ladders: dict[str, list[float]]
    covered: dict[str, tuple[int, int]]

    def sees(self, defect: str, metric: str) -> bool:
        """Whether the metric moves by more than five standard deviations."""
        mean, deviation = self.real[metric]
        value = self.defects[defect].get(metric, np.nan)
        return not abs(value - mean) <= 5 * deviation + 1e-9 * abs(mean)


class _Bench:
    """What samples are measured against, and what could not be measured.

    Attributes:
      metrics: by name.
      left_out: why, by the name of the metric.
    """

    def __init__(self, cfg: Config, extractor: Extractor, test: data.Dataset, train: Sample):
        self.metrics = cfg.metrics.value
        self.left_out: dict[str, str] = {}
        self._extractor, self._seed = extractor, cfg.seed
        self._reference, self._train = self._embed(Sample(*test.arrays())), self._embed(train)

    def _embed(self, sample: Sample) -> Images:
        return embed(sample.x, sample.y, self._extractor, needs_logits(self.metrics))

    def measure(self, sample: Sample, chosen: Mapping[str, Metric]) -> dict[str, float]:
        """The numbers of some metrics, without those that cannot be had."""
        found, fake = {}, self._embed(sample)
        for name, metric in chosen.items():
            try:
                found |= metric(fake, self._reference, self._train, self._seed)
            except (ValueError, UserError) as error:  # images too few or too small, ...
                self.left_out.setdefault(name, cli.message_of(error))
        return found

    def distance(self, sample: Sample) -> float:
        """The Fréchet distance, NaN if there is none."""
        return self.measure(sample, {"fd": METRICS["fd"]}).get("FD", np.nan)

    def covered(self, sample: Sample) -> int:
        """Of how many classes the metrics of classes are."""
        assert self._reference.y is not None
        return len(classes.covered(sample.y, self._reference.y, least=2))

    def tell(self, what: str, start: float) -> None:
        """Prints what has been done since then."""
        took = time.perf_counter() - start
        print(f"  {self._extractor.name}: {what} in {took:.1f} s", flush=True)


def look(cfg: Config, extractor: Extractor) -> Sight:
    """Measures every defect and ladder.

    Half of the training split counts as training images, the other is where fresh real images come from; the reference
    is the test split.

    Raises:
      UserError: if the dataset has no labels or too few images, or their features have no distance.
    """
    train, test = (data.load(cfg.dataset.value, split) for split in ("train", "test"))
    rng = np.random.default_rng(cfg.seed)
    seen, pool = _halves(cfg, train, rng)
    bench = _Bench(cfg, extractor, test, seen)
    draws = _draws(cfg, bench, pool, rng)
    defects, covered = {}, {}
    for name, defect in DEFECTS.items():
        start, sample = time.perf_counter(), defect(pool, seen, cfg.n, rng)
        defects[name] = bench.measure(sample, bench.metrics)
        covered[name] = bench.covered(sample), train.classes
        bench.tell(name, start)
    ladders = {}
    undamaged = bench.distance(Sample(pool.x[: cfg.n], pool.y[: cfg.n]))
    for name, (rungs, make) in LADDERS.items():
        start = time.perf_counter()
        rungs = [rung for rung in rungs if name != "classes dropped" or rung < train.classes]
        ladders[name] = [undamaged, *(bench.distance(make(pool, rung, cfg.n)) for rung in rungs)]
        bench.tell(name, start)
    for name, why in bench.left_out.items():
        print(f"  {extractor.name}: {name} left out: {why}", flush=True)
    real = _spread(draws, cfg.n / len(pool.x))
    shown = {key: value for key, value in real.items() if key in defects["blurred"]}
    floor = real["FD"][0], real["FD-bias"][0]
    return Sight(shown, defects, floor, ladders, covered)


def _draws(
    cfg: Config, bench: _Bench, pool: Sample, rng: np.random.Generator
) -> list[dict[str, float]]:
    """What is said of several sets of real images. Raises a UserError as ``look``."""
    draws, always = [], {name: METRICS[name] for name in ("fd", "bias")}
    for i in range(cfg.draws):
        start, chosen = time.perf_counter(), rng.permutation(len(pool.x))[: cfg.n]
        draws.append(bench.measure(Sample(pool.x[chosen], pool.y[chosen]), bench.metrics | always))
        bench.tell(f"real images, draw {i + 1} of {cfg.draws},", start)
    if not bench.left_out.keys().isdisjoint(always):
        reason = next(iter(bench.left_out.values()))
        raise UserError(reason, argument="features", value=cfg.features)
    return draws


def _halves(cfg: Config, train: data.Dataset, rng: np.random.Generator) -> tuple[Sample, Sample]:
    """Images that count as those of the training, and where fresh ones come from. Raises a UserError as ``look``."""
    if train.classes < 2:
        reason = "has no labels, which some of the defects need"
        raise UserError(reason, argument="dataset", value=cfg.dataset)
    if train.length < 4 * cfg.n:
        reason = f"must be at most a quarter of the {train.length} images"
        raise UserError(reason, argument="n", value=cfg.n)
    x, y = train.read(rng.permutation(train.length)[: max(8 * cfg.n, 10_000)])
    half = len(x) // 2
    return Sample(x[:half], y[:half]), Sample(x[half:], y[half:])


def _spread(draws: list[dict[str, float]], share: float) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of what all draws have; each of them is this share of the images they are from."""
    common = [key for key in draws[0] if all(key in draw for draw in draws)]
    of = {key: np.array([draw[key] for draw in draws]) for key in common}
    # The draws share images: without the correction they would vary too little.
    corrected = np.sqrt(1 - share)
    return {key: (float(v.mean()), float(v.std(ddof=1) / corrected)) for key, v in of.items()}


def table(sight: Sight) -> list[str]:
    """Markdown: a row for each metric, a column for each defect; what a metric does not see is in brackets.

    Over a defect that lacks classes stands how many the metrics of classes cover.
    """
    names = [
        name + f" ({some} of {whole})" * (some < whole)
        for name, (some, whole) in sight.covered.items()
    ]
    lines = [
        f"| metric | real | {' | '.join(names)} |",
        "|---" * (len(sight.defects) + 2) + "|",
    ]
    for metric, (mean, deviation) in sight.real.items():
        cells = []
        for name, found in sight.defects.items():
            value = f"{found[metric]:.3g}" if metric in found else "-"
            cells.append(value if sight.sees(name, metric) else f"({value})")
        lines.append(f"| {metric} | {mean:.3g} ± {deviation:.1g} | {' | '.join(cells)} |")
    return lines


def ladder_lines(sight: Sight) -> list[str]:
    """Markdown: a row for each ladder, and whether the distance grows along it."""
    floor, bias = sight.floor
    lines = ["| ladder | rungs | Fréchet distances | |", "|---|---|---|---|"]
    verdict = "below" if floor < 2 * bias else "ABOVE"
    lines.append(f"| real images | | {floor:.3g} (bias {bias:.3g}) | {verdict} twice the bias |")
    for name, found in sight.ladders.items():
        rungs = ", ".join(["none", *(f"{rung:g}" for rung in LADDERS[name][0])][: len(found)])
        verdict = "monotone" if np.all(np.diff(found) > 0) else "NOT monotone"
        verdict += ", from above three times real images on" * (found[1] >= 3 * floor)
        lines.append(f"| {name} | {rungs} | {', '.join(f'{v:.3g}' for v in found)} | {verdict} |")
    return lines


def run(cfg: Config) -> None:
    """Prints the tables of each feature net and writes ``sensitivity.md``.

    Raises:
      UserError: as ``look``; if the directory cannot be written.
    """
    path = cli.make_folder(cfg.workdir, "workdir", cfg.workdir) / "sensitivity.md"
    text = []
    for extractor in cfg.features.value(cfg.dataset):
        sight = look(cfg, extractor)
        text += [
            f"{cfg.dataset}, {extractor.name}, n = {cfg.n}, seed {cfg.seed}:",
            "",
            *table(sight),
            "",
            *ladder_lines(sight),
            "",
        ]
    print("\n".join(text))
    try:
        path.write_text("\n".join(text), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", argument="workdir", value=path.parent
        ) from None
    print(f"wrote {path}")


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
