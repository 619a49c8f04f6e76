"""Metrics at their published size, 10,000 images: ours against what others compute them with.

- the nearest neighbors of 10,000 rows among 10,000 others, against scikit-learn's brute force, in float32;
- the Fréchet distance of features that are given, against the same with SciPy's ``sqrtm``, as pytorch-fid has it.

The programs take turns on all cores; wall time, medians over the rounds. Needs scikit-learn.

    python -m benchmarks.metrics [--rounds=N] [--json=PATH]
"""

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
from sklearn.neighbors import NearestNeighbors

from bpgan import metrics

ROWS = 10_000


def with_sqrtm(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance as the formula is written."""
    means, covariances = zip(*((x.mean(0), np.cov(x, rowvar=False)) for x in (a, b)), strict=True)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1])
    difference = means[0] - means[1]
    trace = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root.real)
    return float(difference @ difference + trace)


def brute(queries: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """Distances by scikit-learn."""
    finder = NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=-1).fit(rows)
    return finder.kneighbors(queries)[0]


def cases() -> dict[str, tuple[Callable, Callable]]:
    """``{name: (ours, theirs)}``; their answers are compared first."""
    rng = np.random.default_rng(0)

    def features(f: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        mix = rng.normal(size=(f, f)) / np.sqrt(f)
        one, other = (rng.normal(size=(ROWS, f)) @ mix + shift for shift in (0, 0.1))
        return one.astype(dtype), other.astype(dtype)

    found = {}
    for f in (128, 2048):
        a, b = features(f, np.float32)
        found[f"5 nearest of {ROWS:,} among {ROWS:,}, {f} features"] = (
            lambda a=a, b=b: metrics.nearest(a, b, 5)[0],
            lambda a=a, b=b: brute(a, b, 5),
        )
    a, b = features(2048, np.float64)
    found[f"Fréchet distance of {ROWS:,}, 2048 features"] = (
        lambda: metrics.frechet_distance(a, b),
        lambda: with_sqrtm(a, b),
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    answers = []
    print(f"{'':58s} {'ours':>8s} {'theirs':>8s} {'ratio':>7s} {'difference':>11s}")
    for name, pair in cases().items():
        first = [np.asarray(program()) for program in pair]  # compiles, too
        difference = float(np.max(np.abs(first[0] - first[1]) / (np.abs(first[1]) + 1e-9)))
        seconds: tuple[list, list] = ([], [])
        for _ in range(args.rounds):
            for program, times in zip(pair, seconds, strict=True):
                start = time.perf_counter()
                np.asarray(program())
                times.append(time.perf_counter() - start)
        ours, theirs = map(statistics.median, seconds)
        ratio = statistics.median(t / o for o, t in zip(*seconds, strict=True))
        print(
            f"{name:58s} {ours:7.2f}s {theirs:7.2f}s {ratio:6.1f}x {difference:11.1e}", flush=True
        )
        answers.append({"case": name, "seconds": seconds, "ratio": ratio, "difference": difference})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{platform.processor() or platform.machine()}; peak memory of everything {peak:.1f} GB")
    if args.json:
        args.json.write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    main()
