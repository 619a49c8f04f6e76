"""Evaluation of a model while it is trained: what ``--eval_every`` does.

Metrics and feature nets are imported when one is asked for: most runs need none.
"""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from bpgan import cli, data
from bpgan.measures import CONTROLS, Goal
from bpgan.types import Algorithm, UserError, counted, stream

if TYPE_CHECKING:
    from bpgan.evaluation.images import Images
    from bpgan.evaluation.table import Metric
    from bpgan.metrics.features import Extractor


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
    *,
    seed: int = 0,
) -> cli.Experiment:
    """The experiment, evaluated on the images ``held`` out while it trains and on the test split at its end.

    Args:
      experiment: of an algorithm that draws samples.
      dataset: what it is trained on.
      held: images that it is not trained on; None: it is not evaluated.
      metrics: as of ``parse``; None: all of the table that are computed while something trains. The best checkpoint is
        that by the first number of which it is known which way is better.
      seed: of the run, for what it draws before its first step.

    Raises:
      UserError: as ``monitors``.
    """
    if held is None:
        return experiment
    metrics = metrics or _quick()
    found = monitors(experiment.algorithm, dataset, held, metrics, seed=seed)
    title = "\n".join(filter(None, (experiment.title, found.title)))
    goals = (
        Goal("min" if way == "lower" else "max", f"eval/{number}")
        for metric in metrics.values()
        for number, way in metric.better.items()
    )
    return experiment._replace(
        validate=found.validate,
        evaluate=found.evaluate,
        measure=found.measure,
        title=title,
        prefers=next(goals, None),
    )


class Monitors(NamedTuple):
    """What evaluates a model while it is trained; see ``cli.Experiment``."""

    validate: Callable[[Any], dict[str, float]]
    evaluate: Callable[[Any], dict[str, float]]
    measure: dict[str, str]
    title: str = ""


def monitors(
    algorithm: Algorithm,
    dataset: str,
    held: data.Dataset,
    metrics: "dict[str, Metric]",
    n: int = 10_000,
    *,
    seed: int = 0,
) -> Monitors:
    """Of an algorithm that draws samples: metrics of ``n`` of them, in the features of the first net: the classifier of
    the project, EfficientNet-Lite0 where there are no labels.

    ``validate`` compares with ``held``, and ``evaluate`` with the test split: its numbers are those that the experiment
    ``evaluate`` has of the same checkpoint. Beside each stand ``NAME/real``, the same of training images in the place
    of the samples, and ``NAME/untrained``, of what is drawn before the first step; they are computed once.

    Args:
      algorithm: what is trained.
      dataset: what it is trained on.
      held: images that it is not trained on.
      metrics: by name.
      n: how many samples are drawn, and how many training images are used at most.
      seed: of the run.

    Raises:
      UserError: if there are too few images to compare with, or the feature net cannot be had.
    """
    from bpgan.evaluation import features
    from bpgan.metrics.features import effnet

    needed = max(metric.least for metric in metrics.values())
    test = data.load(dataset, "test").length
    for length, what in ((held.length, "held out"), (test, "in the test split")):
        if length < needed:
            need = f"{','.join(metrics)} need {needed}"
            reason = f"{length} images are {what}, {need}; `eval_every` must be 0"
            raise UserError(reason, argument="dataset", value=dataset, beside=["eval_every"])
    labeled = data.load(dataset, "train").classes > 1
    real = min(n, data.load_for_training(dataset, True)[0].length)
    extractor = (
        features.load_classifier(dataset, features.SEEDS[0]) if labeled else effnet.extractor()
    )
    judge = _Judge(algorithm, dataset, held, extractor, metrics, n, seed)
    few = min(held.length, test)
    return Monitors(
        # Other latents than those of the evaluation, which must not be chosen for.
        lambda state: judge.scores(state, "validation", 1),
        lambda state: {f"test/{k}": v for k, v in judge.scores(state, "test", 0).items()},
        {
            "features": extractor.name,
            "features_sha256": extractor.sha256,
            "samples": str(n),
            "real_images": str(real),
            "held_images": str(held.length),
            "test_images": str(test),
        },
        f"Evaluated while it trains, with {extractor.name}: {counted(n, 'sample')} against"
        f" {held.length:,} images held out, at the end against {test:,} of the test split; beside them"
        f" {real:,} training images against the same"
        + f"; {few:,} are few for {n:,} samples: only numbers of the same counts compare"
        * (few < n),
    )


class _Judge:
    """The numbers of a model's samples, and the constants that stand beside them; the arguments are of ``monitors``."""

    def __init__(
        self,
        algorithm: Algorithm,
        dataset: str,
        held: data.Dataset,
        extractor: "Extractor",
        metrics: "dict[str, Metric]",
        n: int,
        seed: int,
    ):
        self._algorithm, self._dataset, self._held = algorithm, dataset, held
        self._extractor, self._metrics, self._n, self._seed = extractor, metrics, n, seed
        self._references: dict[str, Images] = {}
        self._constants: dict[str, dict[str, float]] = {}

    def scores(self, state: Any, split: str, latents: int) -> dict[str, float]:
        """The numbers of ``n`` samples, each with its constants behind it."""
        fake, real = self._draw(state, latents), self._reference(split)
        found: dict[str, float] = {}
        for metric in self._metrics.values():
            found |= metric(fake, real, real, latents)
        if split not in self._constants:
            self._constants[split] = self._beside(real, latents)
        known = found | self._constants[split]
        names = (f"{number}{of}" for number in found for of in ("", *CONTROLS))
        return {name: known[name] for name in names if name in known}

    def _beside(self, real: "Images", latents: int) -> dict[str, float]:
        import jax
        import numpy as np

        from bpgan.evaluation.table import Sets

        start = self._algorithm.init(stream(jax.random.key(self._seed), "init"))
        best = self._trained_on()
        sets = Sets(best, self._draw(start, latents), real, real, best, 1)
        found: dict[str, float] = {}
        for metric in self._metrics.values():
            controls = metric.controls(sets, None, np.random.default_rng(latents))
            for of, fake, against in zip(
                CONTROLS,
                (controls.best, controls.worst),
                (controls.reference, real),
                strict=True,
            ):
                with contextlib.suppress(ValueError, UserError):  # of images it cannot be had of
                    values = metric(fake, against, real, latents)
                    found |= {f"{number}{of}": value for number, value in values.items()}
        return found

    def _draw(self, state: Any, latents: int) -> "Images":
        from bpgan.evaluation import images, samples

        y = samples.draw_labels(self._algorithm, self._dataset, self._n, latents)
        x = cli.draw(self._algorithm, state, seed=latents, n=self._n, labels=y)
        return images.embed(x, None, self._extractor, False)

    def _reference(self, split: str) -> "Images":
        from bpgan.evaluation import images

        if split not in self._references:
            real = self._held if split == "validation" else data.load(self._dataset, split)
            self._references[split] = images.embed_split(real, self._extractor, logits=False)
        return self._references[split]

    def _trained_on(self) -> "Images":
        """As many training images as samples, all if they are fewer."""
        import numpy as np

        from bpgan.evaluation import images

        if "train" not in self._references:
            split, _ = data.load_for_training(self._dataset, True)
            chosen = np.sort(np.random.default_rng(0).permutation(split.length)[: self._n])
            some = images.embed(split.read(chosen)[0], None, self._extractor, False)
            self._references["train"] = some
        return self._references["train"]
