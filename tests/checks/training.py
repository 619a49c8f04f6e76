"""A small run of everything that a run keeps."""

import pathlib

import numpy as np
import optax

from bpgan import data
from bpgan.algorithms import gan
from bpgan.losses import LOSSES
from bpgan.nets import dcgan, linen_net
from bpgan.penalties import PENALTIES, weighted
from bpgan.report.page import update_report
from bpgan.runtime import records, train
from bpgan.runtime.checkpoint import Keep
from bpgan.runtime.program import axis_name

SHAPE = (8, 8, 1)


IMAGES = np.random.default_rng(0).integers(0, 256, (50, *SHAPE), dtype=np.uint8)


def small_gan(mode="jit", lr=1e-2, tx=None, loss="relativistic", more=()):
    """A DCGAN with every kind of state: batch statistics, Adam moments, an average of G, lazy penalties."""
    tx = tx or optax.adam(lr, b1=0.5)
    axis = axis_name(mode)
    return gan.make(
        gan.Networks(
            linen_net(dcgan.Generator(shape=SHAPE, widths=(4, 4), axis_name=axis)),
            linen_net(dcgan.Discriminator(widths=(4,))),
            gan.normal_latents(3),
            SHAPE,
        ),
        LOSSES[loss],
        gan.Optimizers(tx, tx),
        penalties=[weighted(0.1, PENALTIES["r1"], 2), *more],
        ema_decay=0.9,
        axis_name=axis,
    )


def source(batch_size=16, seed=0):
    return data.in_memory(IMAGES, np.zeros(50, np.int32), seed=seed, batch_size=batch_size)


def fit(workdir, steps, *, algorithm=None, **options):
    options = {
        "name": "test",
        "config": {"lr": 0.01, "steps": steps},
        "restart_safe": frozenset({"steps"}),
        "seed": 3,
        "log_every": 4,
        "checkpoint_every": 3,
        "keep": Keep(100),
        "tensorboard": False,
        "report": update_report,
    } | options
    mode = options.pop("mode", "jit")
    own = {name: options.pop(name) for name in train.RunSpec._fields if name in options}
    return train.fit(
        algorithm or small_gan(mode),
        source(),
        train.RunSpec(workdir=workdir, **own),
        train.Plan(steps=steps, **options),
        mode=mode,
    )


def logged(workdir):
    """The log without its clock."""
    lines = records.read_log(pathlib.Path(workdir) / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]
