"""An image classifier (perceptron or convolutional) on backpropagation by hand or by JAX.

Run:     python -m experiments.classifier
         python -m experiments.classifier --net=mlp --gradients=manual
Expect:  test accuracy 0.987 on mnist10k (9,000 training and 1,000 test images) after 12 epochs, in
         20 s on 2 CPU cores; the second command 0.953 in 5 s.
Papers:  Rumelhart, Hinton & Williams 1986, doi:10.1038/323533a0; Kingma & Ba 2015, arXiv:1412.6980.
"""

import dataclasses

import jax.numpy as jnp
import optax

from bpgan import backprop, cli, data
from bpgan.evaluation import classifier
from bpgan.nets import dcgan, linen_net, mlp, storage_dtype
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    dataset: cli.Parsed[data.Name] = cli.field(
        "mnist10k", data.forms, parse=data.parse, locates_data=True
    )
    net: str = cli.field("cnn", "architecture", choices=NETS)
    gradients: str = cli.field(
        "autodiff",
        "autodiff, or hand-written backpropagation (manual)",
        choices=("autodiff", "manual"),
    )
    optimizer: str = cli.field("adam", "momentum: 0.9", choices=OPTIMIZERS)
    lr: float = cli.field(2e-3, "step size", low=0, exclusive_low=True, sweepable=True)
    lr_half_life: float = cli.field(
        3.0, "epochs in which the step size halves", low=0, exclusive_low=True, sweepable=True
    )
    precision: str = cli.NETWORK_PRECISION
    epochs: float = cli.field(12.0)
    batch_size: int = cli.field(64)
    sample_every: str = cli.field("0")
    checkpoint_every: str = cli.field("4ep")


PRESETS = {
    "smoke": dict(net="mlp", batch_size=16, steps=8, log_every="4", checkpoint_every="4"),
}


def build(cfg: Config, axis_name: str | None = None) -> cli.Experiment:
    """The classifier that ``cfg`` describes, its data, and its accuracy on the test split."""
    if cfg.gradients == "manual" and cfg.precision == "bfloat16":
        reason = "must be float32 or float64 with `gradients=manual`"
        raise UserError(reason, argument="precision", value=cfg.precision, beside=["gradients"])
    train, test = (data.load(cfg.dataset.value, split) for split in ("train", "test"))
    held = None
    if cfg.eval_every.value:
        train, held = data.hold_out(train)
    classes = classifier.classes_of(train, test)
    if cfg.net == "cnn":
        classifier.check_size(train)
    module, layers = NETS[cfg.net]
    net = linen_net(module(classes=classes, dtype=jnp.dtype(cfg.precision)))
    if cfg.gradients == "manual":
        gradient = backprop.value_and_grad(layers(), backprop.cross_entropy)
    else:
        gradient = backprop.autodiff(net, backprop.cross_entropy.value)
    lr = classifier.halving(cfg.lr, cfg.lr_half_life, train, cfg.batch_size)
    return classifier.build(
        net,
        gradient,
        OPTIMIZERS[cfg.optimizer](lr),
        train,
        test,
        seed=cfg.seed,
        batch_size=cfg.batch_size,
        held=held,
        feed=cfg.feed.value,
        dtype=storage_dtype(cfg.precision),
        axis_name=axis_name,
    )


if __name__ == "__main__":
    cli.main(Config, build, PRESETS)
