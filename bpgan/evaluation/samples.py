"""Images to evaluate: samples of a run's checkpoint, or images from files."""

import hashlib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bpgan import cli, data
from bpgan.files import replaced
from bpgan.metrics import classes
from bpgan.types import Algorithm, UserError

TURNED = 2000  # images of the same latents under all labels


class Candidate(NamedTuple):
    """Images to evaluate, and what an untrained model would have given in their place.

    Attributes:
      name: run directory or name of the samples.
      x, y: uint8 ``[n, h, w, c]``, and labels ``[n]`` or None.
      untrained: uint8 ``[n, h, w, c]``.
      facts: of these images, for the rows.
      called: what the classes of the labels are called.
      turned: uint8 ``[m, k, h, w, c]``, the same m latents under each of k labels; None without labels.
      private: whether they are of a run whose images must not show, neither they nor their hashes.
    """

    name: str
    x: np.ndarray
    y: np.ndarray | None
    untrained: np.ndarray
    facts: dict[str, Any]
    called: classes.Classes
    turned: np.ndarray | None = None
    private: bool = False


def of_run(
    path: str,
    checkpoint: str,
    n: int,
    seed: int,
    changes: Sequence[str] = (),
    *,
    turn: bool = True,
    trust: bool = False,
    ema: float | None = None,
) -> tuple[Candidate, str]:
    """Samples of a run's checkpoint, and the name of the dataset it was trained on.

    Args:
      path: the run directory.
      checkpoint: ``newest``, ``best`` or a step; see ``cli.restore``.
      n: how many samples.
      seed: of latents and labels.
      changes: flags that are to be other than the run's, ``NAME=VALUE``.
      turn: whether to draw the same latents under every label, too, if there are labels.
      trust: whether code outside bpgan that the run names is imported.
      ema: relative width of the average that draws; None: the run's own.

    Raises:
      UserError: as ``cli.restore``, or if the run draws no images.
    """
    run = cli.restore(path, checkpoint, changes, trust=trust, ema=ema)
    refuse_translation(path, run)
    if run.average:
        print(f"{path}: {run.average}", flush=True)
    algorithm, dataset = run.experiment.algorithm, vars(run.config).get("dataset", "")
    if algorithm.sample is None or not dataset or algorithm.picture is not None:
        reason = f"must be of a model of images, and is of {run.name}"
        raise UserError(reason, argument="run", value=path)
    y = draw_labels(algorithm, dataset, n, seed)
    x = cli.draw(algorithm, run.state, seed=seed, n=n, labels=y)
    start = cli.train(run.experiment, seed=run.config.seed, steps=0)
    untrained = cli.draw(algorithm, start, seed=seed, n=n, labels=y)
    # Where the data are now is no property of the samples.
    located = cli.locates_data(type(run.config))
    flags = [change for change in changes if change.partition("=")[0] not in located]
    flags = sorted(flags + ([] if ema is None else [f"ema={ema:g}"]))
    facts = {
        "experiment": run.name,
        "training_seed": run.config.seed,
        "checkpoint": checkpoint,
        "step": run.step,
        "flags": " ".join(flags),
        "samples_sha256": "",
    }
    turned = _turn(algorithm, run.state, seed) if y is not None and turn else None
    named = classes_of(data.load(dataset, "train"))
    return Candidate(path, x, y, untrained, facts, named, turned, run.private), dataset


def refuse_translation(path: str, run: cli.Restored) -> None:
    """Raises a UserError for a run on two sides or domains: its outputs have right answers, and are no samples."""
    if run.record.dataset and run.record.dataset.parts:
        reason = f"is of {run.name}, which compares outputs with right answers at its end;"
        reason += (
            " result.json and report.html have the numbers, of a run with `measure=all` all of them"
        )
        raise UserError(reason, argument="run", value=path)


def _turn(algorithm: Algorithm, state: Any, seed: int) -> np.ndarray:
    """``[m, k, h, w, c]``: the same m latents under each label."""
    m = max(TURNED // algorithm.classes, 1)
    labels = (np.full(m, label, np.int32) for label in range(algorithm.classes))
    # In batches of what is kept: of many classes that is a few each.
    batch = min(m, 500)
    drawn = [
        cli.draw(algorithm, state, seed=seed, n=m, labels=label, batch=batch) for label in labels
    ]
    return np.stack(drawn, axis=1)


def classes_of(split: data.Dataset) -> classes.Classes:
    """What a dataset calls its classes."""
    named = len(split.class_names) == split.classes
    return classes.Classes(split.classes, split.class_names if named else ())


def draw_labels(algorithm: Algorithm, dataset: str, n: int, seed: int) -> np.ndarray | None:
    """Labels ``[n]`` in the proportions of the training data, in random order; None if the algorithm takes none."""
    if not algorithm.classes:
        return None
    counts = np.asarray(data.load(dataset, "train").counts)
    quantiles = (np.arange(n) + 0.5) / n * counts.sum()
    labels = np.searchsorted(np.cumsum(counts), quantiles, side="right").astype(np.int32)
    return np.random.default_rng(seed).permutation(labels)


def of_files(name: str, n: int, seed: int) -> Candidate:
    """Both splits of a dataset of images as samples; noise stands for the untrained model.

    Args:
      name: of the dataset, such as ``folder:PATH``.
      n: how many of its images, chosen at random; all if they are fewer.
      seed: of the choice.
    """
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
        "samples_sha256": sha256_of(split.sha256 for split in splits),
    }
    return Candidate(name, x, labels, noise, facts, classes_of(splits[0]))


def sha256_of(texts: Iterable[str]) -> str:
    """One hash of several, such as those of the splits of a dataset."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


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
