"""An image classifier (perceptron or convolutional) on backpropagation by hand or by JAX.

Run:     python -m experiments.classifier
         python -m experiments.classifier --net=mlp --gradients=manual
Expect:  test accuracy 0.987 on mnist10k (9,000 training and 1,000 test images) after 12 epochs, in
         20 s on 2 CPU cores; the second command 0.953 in 5 s.
Papers:  Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0; Kingma & Ba 2015, arXiv:1412.6980.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax

from bpgan import backprop, cli, data
from bpgan.algorithms import supervised, turns
from bpgan.nets import dcgan, linen_net, mlp
from bpgan.types import UserError

NETS = {  # name: (Linen module, the same layers by hand)
    "mlp": (mlp.Classifier, backprop.mlp_classifier),
    "cnn": (dcgan.Classifier, backprop.cnn_classifier),
}
OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": lambda lr: optax.sgd(lr, momentum=0.9),
    "adam": optax.adam,
}
CHUNK = 500
"""Test images per call of the network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    dataset: str = cli.field("mnist10k", data.FORMS, locates_data=True)
    net: str = cli.field("cnn", "architecture", choices=NETS)
    gradients: str = cli.field(
        "autodiff", "who computes the gradients", choices=("autodiff", "manual")
    )
    optimizer: str = cli.field("adam", "momentum: 0.9", choices=OPTIMIZERS)
    lr: float = cli.field(2e-3, "step size", low=0, exclusive_low=True, sweepable=True)
    lr_half_life: float = cli.field(
        3.0, "epochs in which the step size halves", low=0, exclusive_low=True, sweepable=True
    )
    epochs: float = cli.field(12.0)
    batch_size: int = cli.field(64)
    sample_every: str = cli.field("0")
    checkpoint_every: str = cli.field("4ep")


PRESETS = {
    "smoke": dict(net="mlp", batch_size=16, steps=8, log_every="4", checkpoint_every="4"),
}


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The classifier that ``cfg`` describes, its data, and its accuracy on the test split."""
    train, test = (data.load(cfg.dataset, split) for split in ("train", "test"))
    return of_data(cfg, train, test, axis_name)


def of_data(
    cfg: Config, train: data.Dataset, test: data.Dataset, axis_name: str | None = None
) -> cli.Experiment:
    """The same, trained and tested on other data than ``cfg`` names."""
    dtype = jnp.dtype(cfg.precision)
    held = None
    if cfg.eval_every.value:
        train, held = data.hold_out(train)
    classes = max(train.classes, test.classes)
    if classes < 2:
        raise UserError("has no labels, or all of one class", argument="dataset", value=cfg.dataset)
    if cfg.net == "cnn" and min(train.shape[:2]) < 4:
        h, w, _ = train.shape
        raise UserError(
            f"needs images of at least 4x4, those of {cfg.dataset} are {h}x{w}",
            argument="net",
            value="cnn",
            beside=["dataset"],
        )
    module, layers = NETS[cfg.net]
    net = linen_net(module(classes=classes, dtype=dtype))
    if cfg.gradients == "manual":
        gradient = backprop.value_and_grad(layers(), backprop.cross_entropy)
    else:
        gradient = backprop.autodiff(net, backprop.cross_entropy.value)
    # A function of the step alone, so that a run can be made longer.
    halving = cfg.lr_half_life * train.length / cfg.batch_size
    algorithm = supervised.make(
        net.init,
        gradient,
        OPTIMIZERS[cfg.optimizer](lambda step: cfg.lr * 0.5 ** (step / halving)),
        data_shape=train.shape,
        dtype=dtype,
        metrics={"accuracy": supervised.accuracy},
        axis_name=axis_name,
    )
    source = data.source(
        train, seed=cfg.seed, batch_size=cfg.batch_size, dtype=dtype, feed=cfg.feed
    )

    def accuracy(state: turns.State, images: data.Dataset) -> float:
        variables, correct = state.players[supervised.NET].variables, 0
        for i in range(0, images.length, CHUNK):
            x, labels = images.read(np.arange(i, min(i + CHUNK, images.length)))
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
        prefers="max:eval/accuracy",
    )


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
