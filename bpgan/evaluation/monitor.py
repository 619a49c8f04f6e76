"""Evaluation of a model while it is trained: what ``--eval_every`` does.

Metrics and feature nets are imported when one is asked for: most runs need none.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from bpgan import cli, data
from bpgan.measures import Goal
from bpgan.types import Algorithm, UserError

if TYPE_CHECKING:
    from bpgan.evaluation.images import Images
    from bpgan.evaluation.table import Metric


def parse(text: str) -> "dict[str, Metric]":
    """As ``table.parse``, of the metrics that are computed while something trains.

    Raises:
      ValueError: for others, saying what is allowed.
    """
    from bpgan.evaluation import table

    found = table.parse(text)
    if slow := [name for name, metric in found.items() if not metric.while_training]:
        allowed = f"must be some of {', '.join(_quick())}"
        raise ValueError(f"{', '.join(slow)}: not computed while something trains; {allowed}")
    return found


def _quick() -> "dict[str, Metric]":
    """All of the table that are computed while something trains."""
    from bpgan.evaluation.table import METRICS

    return {name: metric for name, metric in METRICS.items() if metric.while_training}


def monitor(
    experiment: cli.Experiment,
    dataset: str,
    held: data.Dataset | None,
    metrics: "dict[str, Metric] | None" = None,
) -> cli.Experiment:
    """The experiment, evaluated on the images ``held`` out while it trains and on the test split at its end.

    Args:
      experiment: of an algorithm that draws samples.
      dataset: what it is trained on.
      held: images that it is not trained on; None: it is not evaluated.
      metrics: as of ``parse``; None: all of the table that are computed while something trains. The best checkpoint is
        that by the first number of which it is known which way is better.

    Raises:
      UserError: as ``monitors``.
    """
    if held is None:
        return experiment
    metrics = metrics or _quick()
    found = monitors(experiment.algorithm, dataset, held, metrics)
    goals = (
        Goal("min" if way == "lower" else "max", f"eval/{number}")
        for metric in metrics.values()
        for number, way in metric.better.items()
    )
    return experiment._replace(**found._asdict(), prefers=next(goals, None))


class Monitors(NamedTuple):
    """What evaluates a model while it is trained; see ``cli.Experiment``."""

    validate: Callable[[Any], dict[str, float]]
    evaluate: Callable[[Any], dict[str, float]]
    measure: dict[str, str]


def monitors(
    algorithm: Algorithm,
    dataset: str,
    held: data.Dataset,
    metrics: "dict[str, Metric]",
    n: int = 10_000,
) -> Monitors:
    """Of an algorithm that draws samples: metrics of ``n`` of them, in the features of the first net: the classifier of
    the project, EfficientNet-Lite0 where there are no labels.

    ``validate`` compares with ``held``, and ``evaluate`` with the test split: its numbers are those that the experiment
    ``evaluate`` has of the same checkpoint.

    Raises:
      UserError: if there are too few images to compare with, or the feature net cannot be had.
    """
    from bpgan.evaluation import features, images, samples
    from bpgan.metrics.features import effnet

    needed = max(metric.least for metric in metrics.values())
    test = data.load(dataset, "test").length
    for length, what in ((held.length, "held out"), (test, "in the test split")):
        if length < needed:
            need = f"{','.join(metrics)} need {needed}"
            reason = f"{length} images are {what}, {need}; `eval_every` must be 0"
            raise UserError(reason, argument="dataset", value=dataset, beside=["eval_every"])
    labeled = data.load(dataset, "train").classes > 1
    extractor = (
        features.load_classifier(dataset, features.SEEDS[0]) if labeled else effnet.extractor()
    )

    @functools.cache
    def reference(split: str) -> "Images":
        real = held if split == "validation" else data.load(dataset, split)
        return images.embed_split(real, extractor, logits=False)

    def scores(state: Any, split: str, seed: int) -> dict[str, float]:
        y = samples.draw_labels(algorithm, dataset, n, seed)
        x = cli.draw(algorithm, state, seed=seed, n=n, labels=y)
        fake, real = images.embed(x, None, extractor, False), reference(split)
        found: dict[str, float] = {}
        for metric in metrics.values():
            found |= metric(fake, real, real, seed)
        return found

    return Monitors(
        # Other latents than those of the evaluation, which must not be chosen for.
        lambda state: scores(state, "validation", 1),
        lambda state: {f"test/{k}": v for k, v in scores(state, "test", 0).items()},
        {"features": extractor.name, "features_sha256": extractor.sha256},
    )
