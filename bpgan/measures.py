"""What is known of a measure by its name, which way it is better, what is looked for, and means over runs."""

import math
import re
import statistics
from collections.abc import Sequence
from typing import NamedTuple

_DIRECTIONS = {
    # Distances and errors.
    "FD": -1, "nFD": -1, "FD-inf": -1, "KD": -1, "class-FD": -1, "w2": -1, "reverse_kl": -1, "distance": -1,
    "factor": -1, "loss": -1, "train_mse": -1, "logit_error": -1, "copies-%": -1, "samples/duplicates": -1,
    # Shares, scores and bounds. Of std_ratio and samples/variance 1 is best, and what goes wrong makes them smaller.
    "precision": 1, "recall": 1, "density": 1, "coverage": 1, "accuracy": 1, "label-accuracy": 1, "CAS": 1, "IS": 1,
    "elbo": 1, "iwae": 1, "active_units": 1, "modes": 1, "high_quality": 1, "std_ratio": 1, "samples/variance": 1,
    # What would be taken for one of these by the beginning of its name, and is best at some value between.
    "FD-bias": 0, "class-FD-worst/mean": 0, "label-accuracy-swapped": 0,
}  # fmt: skip

CONTROLS = ("/real", "/untrained")
"""Behind the name of a number: the same of real images in the place of samples, and of an untrained model."""


def direction(metric: str) -> int:
    """1 if more of it is better, -1 if less is, 0 if neither is known.

    The loss of one of two players (``d/loss``) has no direction: it falls as well if the other one gives up. Nor has
    what is best at a value of real images (``Vendi-of-1000``), what trades off against another (``kl``), a logit or a
    clock.

    Args:
      metric: may say of what it is, before it (``best/test/FD``), and how it was measured, behind it: ``precision-k3``,
        ``FID-Inception-tf1``, ``FD-classifier0 (best checkpoint)``.
    """
    name = re.sub(r"^((best|eval|test)[/_])+", "", metric.partition(" (")[0])
    if name.endswith(CONTROLS):
        return 0
    name = name.replace("FID", "FD").replace("KID", "KD")  # one measure, in the features of one net
    while name and name not in _DIRECTIONS:
        name = name.rpartition("-")[0]
    return _DIRECTIONS.get(name, 0)


class Goal(NamedTuple):
    """What is looked for: the least or the greatest value of a metric.

    Attributes:
      mode: ``min`` or ``max``.
      metric: its name, as it is logged.
    """

    mode: str
    metric: str

    @classmethod
    def parse(cls, text: str) -> "Goal":
        """The goal that is written ``min:METRIC`` or ``max:METRIC``.

        Raises:
          ValueError: for anything else.
        """
        match = re.fullmatch(r"(min|max):(\S+)", text)
        if not match:
            raise ValueError("must be min:METRIC or max:METRIC")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.mode}:{self.metric}"

    @property
    def sign(self) -> int:
        """What a value is multiplied by so that less is better."""
        return 1 if self.mode == "min" else -1


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of finite numbers of any size.

    Both are NaN of no number; the deviation also of one number. If one is not finite, the mean is infinite or NaN.
    """
    if not values:
        return math.nan, math.nan
    if not all(map(math.isfinite, values)):
        return sum(values), math.nan
    _, exponent = math.frexp(max(map(abs, values)))
    scaled = [math.ldexp(v, -exponent) for v in values]  # exact, and no sum of them overflows
    mean = _times_two_to(exponent, statistics.fmean(scaled))
    spread = statistics.stdev(scaled) if len(values) > 1 else math.nan
    return mean, _times_two_to(exponent, spread)


def mean_of(values: Sequence[float]) -> str:
    """For a table: the mean, and of several finite values their standard deviation; empty if there is none."""
    if not values:
        return ""
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.4g}" if math.isnan(deviation) else f"{mean:.4g} ± {deviation:.2g}"


def _times_two_to(exponent: int, value: float) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf
