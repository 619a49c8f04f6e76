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
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bpgan import data
from bpgan.metrics.features import Extractor
from bpgan.types import UserError
from experiments import _cli as cli
from experiments import evaluate
from experiments.evaluate import METRICS, Images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.Config):
    dataset: str = cli.field("mnist10k", data.FORMS)
    features: str = evaluate.FEATURES
    metrics: str = cli.field(
        "fd,kd,prdc,is,vendi,msssim,memorisation,class_fd",
        "names separated by commas, or all: cas trains a classifier on every defect",
        check=lambda text: evaluate.names_of(text),
    )
    n: int = cli.field(2000, "images in the place of samples", low=100)
    draws: int = cli.field(10, "sets of real images that tell what is noise", low=2)
    seed: int = cli.field(0, "of subsets and noise", low=0, high=2**32 - 1)


PRESETS = {"smoke": dict(features="experiments.evaluate:pixels", metrics="fd,prdc", n=300, draws=2)}


class Sample(NamedTuple):
    """Images uint8 ``[n, h, w, c]`` and their labels."""

    x: np.ndarray
    y: np.ndarray


def noisy(x: np.ndarray, sd: float, seed: int = 0) -> np.ndarray:
    """With Gaussian noise of ``sd`` grey levels."""
    noise = np.random.default_rng(seed).normal(0, sd, x.shape)
    return np.clip(np.rint(x + noise), 0, 255).astype(np.uint8)


def blurred(x: np.ndarray, sd: float) -> np.ndarray:
    """Convolved with a Gaussian of ``sd`` pixels."""
    from scipy import ndimage

    return np.rint(ndimage.gaussian_filter(x.astype(np.float64), (0, sd, sd, 0))).astype(np.uint8)


def levels(x: np.ndarray, n: int) -> np.ndarray:
    """With ``n`` grey levels."""
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
    "noise of sd (grey levels)": (
        (8, 16, 32, 64),
        lambda pool, sd, n: Sample(noisy(pool.x[:n], sd), pool.y[:n]),
    ),
    "blur of sd (pixels)": (
        (0.5, 1, 2),
        lambda pool, sd, n: Sample(blurred(pool.x[:n], sd), pool.y[:n]),
    ),
    "classes dropped": ((1, 2, 5, 9), lambda pool, k, n: without_classes(pool, int(k), n)),
    "grey levels": (
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
    """

    real: dict[str, tuple[float, float]]
    defects: dict[str, dict[str, float]]
    floor: tuple[float, float]
    ladders: dict[str, list[float]]

    def sees(self, defect: str, metric: str) -> bool:
        """Whether the metric moves by more than five standard deviations."""
        mean, deviation = self.real[metric]
        return not abs(self.defects[defect][metric] - mean) <= 5 * deviation + 1e-9 * abs(mean)


def look(cfg: Config, extractor: Extractor) -> Sight:
    """Measures every defect and ladder.

    Half of the training split counts as training images, the other is where fresh real images come from; the reference
    is the test split.

    Raises:
      UserError: if the dataset has no labels or too few images.
    """
    train, test = (data.load(cfg.dataset, split) for split in ("train", "test"))
    if train.classes < 2:
        raise UserError(f"--dataset={cfg.dataset}: has no labels, which some of the defects need")
    if train.length < 4 * cfg.n:
        raise UserError(f"--n={cfg.n}: must be at most a quarter of the {train.length} images")
    names = evaluate.names_of(cfg.metrics)
    rng = np.random.default_rng(cfg.seed)
    rows = rng.permutation(train.length)[: max(8 * cfg.n, 10_000)]
    x, y = train.read(rows)
    half = len(x) // 2
    seen, pool = Sample(x[:half], y[:half]), Sample(x[half:], y[half:])

    def embed(sample: Sample) -> Images:
        return evaluate.embed(sample.x, sample.y, extractor, "is" in names)

    reference, training = embed(Sample(*test.arrays())), embed(seen)

    def measure(sample: Sample, families: list[str]) -> dict[str, float]:
        found, fake = {}, embed(sample)
        for name in families:
            found |= METRICS[name](fake, reference, training, cfg.seed)
        return found

    def progress(what: str, start: float) -> None:
        print(f"  {extractor.name}: {what} in {time.perf_counter() - start:.1f} s", flush=True)

    draws = []
    for i in range(cfg.draws):
        start, chosen = time.perf_counter(), rng.permutation(len(pool.x))[: cfg.n]
        draws.append(measure(Sample(pool.x[chosen], pool.y[chosen]), [*names, "fd", "bias"]))
        progress(f"real images, draw {i + 1} of {cfg.draws},", start)
    defects = {}
    for name, defect in DEFECTS.items():
        start = time.perf_counter()
        defects[name] = measure(defect(pool, seen, cfg.n, rng), names)
        progress(name, start)
    ladders = {}
    undamaged = measure(Sample(pool.x[: cfg.n], pool.y[: cfg.n]), ["fd"])["FD"]
    for name, (rungs, make) in LADDERS.items():
        start = time.perf_counter()
        rungs = [rung for rung in rungs if name != "classes dropped" or rung < train.classes]
        distances = [measure(make(pool, rung, cfg.n), ["fd"])["FD"] for rung in rungs]
        ladders[name] = [undamaged, *distances]
        progress(name, start)
    of = {key: np.array([draw[key] for draw in draws]) for key in draws[0]}
    # The draws share images: without the correction they would vary too little.
    shared = np.sqrt(1 - cfg.n / len(pool.x))
    real = {key: (float(v.mean()), float(v.std(ddof=1) / shared)) for key, v in of.items()}
    measured = defects["blurred"]
    return Sight(
        {key: value for key, value in real.items() if key in measured},
        defects,
        (real["FD"][0], real["FD-bias"][0]),
        ladders,
    )


def table(sight: Sight) -> list[str]:
    """Markdown: a row for each metric, a column for each defect; what a metric does not see is in brackets."""
    lines = [
        f"| metric | real | {' | '.join(sight.defects)} |",
        "|---" * (len(sight.defects) + 2) + "|",
    ]
    for metric, (mean, deviation) in sight.real.items():
        cells = [
            f"{found[metric]:.3g}" if sight.sees(name, metric) else f"({found[metric]:.3g})"
            for name, found in sight.defects.items()
        ]
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
    path = cli.writable(cfg.workdir, f"--workdir={cfg.workdir}") / "sensitivity.md"
    text = []
    for extractor in evaluate.extractors(cfg.features, cfg.dataset):
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
        raise UserError(f"--workdir={path.parent}: cannot be written ({error.strerror})") from None
    print(f"wrote {path}")


if __name__ == "__main__":
    cli.main(Config, run, PRESETS)
