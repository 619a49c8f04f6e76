"""A classifier to train on a dataset: the experiment ``classifier``, the feature nets, and the metric ``cas``."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from bpgan import backprop, cli, data
from bpgan.algorithms import supervised
from bpgan.measures import Goal
from bpgan.nets import dcgan, exact, linen_net
from bpgan.types import Net, Network, UserError

_CHUNK = 500  # test images per call of the network
_LEAST = 4  # pixels that the convolutional network needs on either side


def classes_of(train: data.Dataset, test: data.Dataset) -> int:
    """How many classes there are. Raises a UserError if there is one only."""
    classes = max(train.classes, test.classes)
    if classes < 2:
        raise UserError("has no labels, or all of one class", argument="dataset", value=train.name)
    return classes


def check_size(train: data.Dataset) -> None:
    """Raises a UserError if images are too small for ``nets.dcgan.Classifier``."""
    h, w, _ = train.shape
    if min(h, w) < _LEAST:
        raise UserError(
            f"needs images of at least {_LEAST}x{_LEAST}, those of {train.name} are {h}x{w}",
            argument="net",
            value="cnn",
            beside=["dataset"],
        )


def halving(
    lr: float, half_life: float, train: data.Dataset, batch_size: int
) -> Callable[[Any], Any]:
    """The step size ``lr 2^(-epochs / half_life)``: of the step alone, so that a run can be made longer."""
    steps = half_life * train.length / batch_size
    return lambda step: lr * 0.5 ** (step / steps)


def build(
    net: Net,
    gradient: supervised.Gradient,
    tx: optax.GradientTransformation,
    train: data.Dataset,
    test: data.Dataset,
    *,
    seed: int,
    batch_size: int,
    held: data.Dataset | None = None,
    feed: str | data.Feed = "auto",
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
) -> cli.Experiment:
    """A classifier by its network, its gradient and its descent, its data, and its accuracy on the test split.

    Args:
      net: ``x[b, h, w, c] -> logits[b, k]``, of images in [-1, 1].
      gradient, tx: as of ``supervised.make``.
      train, test: trained on, and tested on at the end.
      seed, batch_size, feed, dtype: as of ``data.source``.
      held: images on which it is evaluated while it is trained, if any.
      axis_name: as of ``supervised.make``.
    """
    algorithm = supervised.make(
        net.init,
        gradient,
        tx,
        data_shape=train.shape,
        dtype=dtype,
        metrics={"accuracy": supervised.accuracy},
        axis_name=axis_name,
    )
    classifier = Network(
        lambda state: state.players[supervised.NET].variables,
        lambda variables, x: net.apply(variables, x, train=False)[0],
    )
    algorithm = algorithm._replace(networks={"classifier": classifier})
    source = data.source(train, seed=seed, batch_size=batch_size, dtype=dtype, feed=feed)

    def accuracy(state: Any, images: data.Dataset) -> float:
        variables, correct = state.players[supervised.NET].variables, 0
        for i in range(0, images.length, _CHUNK):
            x, labels = images.read(np.arange(i, min(i + _CHUNK, images.length)))
            logits, _ = net.apply(variables, jnp.asarray(x, dtype) / 127.5 - 1, train=False)
            correct += np.sum(np.argmax(np.asarray(logits), axis=1) == labels)
        return float(correct / images.length)

    return cli.Experiment(
        algorithm,
        source,
        evaluate=lambda state: {
            "test_accuracy": accuracy(state, test),
            "test_images": float(test.length),
        },
        title=f"{train.summary()}\n{test.summary()}",
        validate=(lambda state: {"accuracy": accuracy(state, held)}) if held else None,
        prefers=Goal("max", "eval/accuracy"),
    )


def convolutional(
    train: data.Dataset, test: data.Dataset, *, seed: int, half_life: float, feed: str = "auto"
) -> cli.Experiment:
    """The classifier that metrics use: ``nets.dcgan.Classifier``, by Adam on batches of 64, in full 32 bits.

    Args:
      train, test: as of ``build``.
      seed: of the parameters and the batches.
      half_life: epochs in which the step size, 2e-3 at first, halves.
      feed: as of ``data.source``.

    Raises:
      UserError: if there are no labels, or the images are smaller than 4x4.
    """
    classes = classes_of(train, test)
    check_size(train)
    net = exact(linen_net(dcgan.Classifier(classes=classes, dtype=jnp.dtype("float32"))))
    return build(
        net,
        backprop.autodiff(net, backprop.cross_entropy.value),
        optax.adam(halving(2e-3, half_life, train, 64)),
        train,
        test,
        seed=seed,
        batch_size=64,
        feed=feed,
    )
