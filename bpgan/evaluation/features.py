"""Feature nets by name: the project's classifiers, published ones, and a user's own by ``module:name``."""

import contextlib
import functools
import os
import pathlib
import sys
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bpgan import cli, data
from bpgan.algorithms import supervised
from bpgan.data import cache
from bpgan.evaluation import classifier
from bpgan.evaluation.images import embed_split, progress
from bpgan.lookup import find
from bpgan.metrics.features import Extractor, effnet, inception, kept, plug
from bpgan.metrics.features import classifier as hidden_layer
from bpgan.types import UserError
from bpgan.version import __version__

SEEDS = (0, 1)
"""Of the classifiers whose features are used: distances change by a third from one to the other."""


def pixels(images: np.ndarray) -> np.ndarray:
    """Every fourth pixel as features: for trying out, and an example of ``--features=MODULE:FUNCTION``."""
    return images[:, ::4, ::4].reshape(len(images), -1).astype(np.float64)


def _classifiers(dataset: str) -> list[Extractor]:
    return [load_classifier(dataset, seed) for seed in SEEDS]


def _inception(preset: str, file: str, dataset: str) -> list[Extractor]:
    del dataset
    path = pathlib.Path(file).expanduser() if file else inception.download(cache.directory())
    return [inception.extractor(path, preset)]


Make = Callable[[str], list[Extractor]]

_PRESETS = {"inception": "tf1"} | {f"inception-{preset}": preset for preset in inception.PRESETS}

EXTRACTORS: dict[str, Make] = {
    "classifier": _classifiers,
    "effnet": lambda dataset: [effnet.extractor()],
    "pixels": lambda dataset: [plug(pixels, "pixels")],
    **{name: functools.partial(_inception, preset, "") for name, preset in _PRESETS.items()},
}
"""By the names of ``--features``: ``make(dataset) -> extractors``, several if numbers are to be had of several nets."""


def parse(text: str) -> Make:
    """What ``--features`` names: ``make(dataset) -> extractors``.

    An entry of ``EXTRACTORS``; ``inception-tf1:FILE`` with weights of the user's; or ``module:name``, an ``Extractor``
    or a function ``images uint8 [n, h, w, c] -> features [n, f]``. Classifiers are trained when they are made, if they
    have not been yet; ``make`` raises a UserError if there are no labels to train one on, or weights cannot be had.

    Raises:
      ValueError: if there is none of this name, saying what is allowed.
    """
    name, _, file = text.partition(":")
    if file and name in _PRESETS:
        return functools.partial(_inception, _PRESETS[name], file)
    found = find(EXTRACTORS, text, "a feature net")
    if text in EXTRACTORS:
        return found
    extractor = found if isinstance(found, Extractor) else plug(found, text)
    return lambda dataset: [extractor]


FEATURES: Any = cli.field(
    "classifier",
    "classifier (trained on the dataset if need be), effnet (ImageNet), inception-tf1, -torch or -clean (:FILE of the"
    " weights, downloaded without it), pixels, or MODULE:NAME, images -> features",
    parse=parse,
)
"""The flag of every experiment that compares images: ``features: cli.Parsed[Make] = FEATURES``."""


class Recipe(NamedTuple):
    """How a classifier is trained: its seed, its epochs, and those in which its step size halves."""

    seed: int
    epochs: float
    half_life: float

    def __str__(self) -> str:
        """What a net is kept under: the flags of the experiment ``classifier``, as they once were."""
        return (
            f"Config(workdir='', seed={self.seed}, epochs={self.epochs}, steps=0, pause_at=1.0, batch_size=64,"
            " log_every='1ep', sample_every='0', checkpoint_every='4ep', eval_every='0', keep='3', feed='auto',"
            " on_anomaly='flag', parallel='jit', precision='float32', tensorboard=False, dataset='mnist10k',"
            " net='cnn', gradients='autodiff', optimizer='adam', lr=0.002,"
            f" lr_half_life={self.half_life})"
        )


@functools.cache
def load_classifier(dataset: str, seed: int) -> Extractor:
    """The features of a classifier trained on a dataset, which is kept by the content of the data and its settings.

    Trained in the same way it is the same net, so a damaged one is trained again. Several processes of one run use the
    same one: if one of them has none, or another, they train it together.

    Raises:
      UserError: if there are no labels, or such a net cannot be trained on these data.
    """
    train = data.load(dataset, "train")
    if train.classes < 2:
        raise UserError(
            f"{dataset} has no labels to train it on; effnet needs none",
            argument="features",
            value="classifier",
        )
    return classifier_of(train, data.load(dataset, "test"), seed)


def classifier_of(train: data.Dataset, test: data.Dataset, seed: int) -> Extractor:
    """As ``load_classifier``, of two splits with labels, which need have no name."""
    from bpgan.runtime import distributed

    recipe = Recipe(seed, 12.0, 3.0) if train.length < 20_000 else Recipe(seed, 4.0, 1.0)
    key = zlib.crc32(f"{__version__} {recipe}".encode())
    path = cache.directory() / "features" / f"{train.sha256[:16]}-{key:08x}.npz"
    say = functools.partial(print, flush=True) if distributed.is_lead() else lambda *_, **__: None
    net = _kept_by_all(path, train, seed)
    if net is None:
        lead = distributed.is_lead()
        with kept.turn(path.with_suffix(".lock")) if lead else contextlib.nullcontext():
            # Of the runs of a sweep, which ask for it together, the first one trains it.
            net = _kept_by_all(path, train, seed)
            if net is None:
                if os.path.lexists(path):
                    say(f"warning: {path} is damaged; it is made again", file=sys.stderr)
                say(f"training the feature net of seed {seed} on {train.name}, once: {path}")
                params = train_classifier(train, test, recipe)
                net = _extractor(params, train, seed)
                if lead and (reason := hidden_layer.save(path, params)):
                    say(f"warning: {path} cannot be written ({reason})", file=sys.stderr)
    found = embed_split(test, net, logits=True)
    assert found.logits is not None and found.y is not None
    accuracy = np.mean(found.logits.argmax(1) == found.y)
    say(f"feature net of seed {seed}: accuracy {accuracy:.4f} on the test split")
    return net


def _kept_by_all(path: pathlib.Path, train: data.Dataset, seed: int) -> Extractor | None:
    """The net that is kept, if every process of the run has the same one."""
    from bpgan.runtime import distributed

    params = hidden_layer.load(path, train.shape, classes=train.classes)
    net = _extractor(params, train, seed) if params else None
    marks = distributed.agree(1 + int(net.sha256[:7], 16) if net else 0)
    return net if marks.all() and (marks == marks[0]).all() else None


def _extractor(params: Any, train: data.Dataset, seed: int) -> Extractor:
    return hidden_layer.extractor(params, classes=train.classes, name=f"classifier{seed}")


def train_classifier(train: data.Dataset, test: data.Dataset, recipe: Recipe) -> Any:
    """The parameters of a classifier after its training, in 32 bits whatever the run that asks for it has."""
    try:
        with jax.enable_x64(False):
            experiment = classifier.convolutional(
                train, test, seed=recipe.seed, half_life=recipe.half_life
            )
            steps = round(recipe.epochs * experiment.source.steps_per_epoch)
            tell = progress("training the feature net", steps, "steps")
            state = cli.train(experiment, seed=recipe.seed, steps=steps, progress=tell)
            return jax.device_get(state.players[supervised.NET].params)
    except UserError as error:
        reason = f"the net could not be trained on {train.name} ({cli.message_of(error)})"
        raise UserError(reason, argument="features", value="classifier") from None
