"""Adding one thing touches one file, and that one may lie anywhere.

Each thing below is the whole text of one file outside the package. It is used as its author would use it, by commands
from the folder that it lies in: trained, resumed, swept and evaluated.
"""

import csv
import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from checks.harness import arrays

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.medium


class Thing(NamedTuple):
    """What is added.

    Attributes:
      text: of its file, ``my_<name>.py``.
      experiment: that uses it: one of the project's, or the file itself.
      flags: that use it.
      swept: an axis of a sweep that has it in both of its runs.
      metric: of an evaluation.
    """

    text: str
    experiment: str
    flags: tuple[str, ...] = ()
    swept: str = "seed=0,1"
    metric: str = "fd"


LOSS = '''
"""A loss of my own: squares, with targets that nobody else uses."""

from bpgan.types import AdversarialLoss

loss = AdversarialLoss(
    d=lambda real, fake: (real - 2) ** 2 + (fake + 2) ** 2, g=lambda real, fake: (fake - 2) ** 2
)
'''

PENALTY = '''
"""A penalty of my own: logits that leave their running mean. It counts the updates, too."""

import jax.numpy as jnp
import numpy as np

from bpgan.penalties import Regularizer


def apply(scene, memory):
    mean = jnp.mean(scene.logits[0])
    kept = {"mean": 0.9 * memory["mean"] + 0.1 * mean, "count": memory["count"] + 1}
    return (mean - memory["mean"]) ** 2, kept


drift = Regularizer(apply, {"mean": np.float32(0), "count": np.float32(0)}, players="d")
'''

NET = '''
"""An architecture of my own: one dense layer for each player, of any width."""

import jax.numpy as jnp
from flax import linen as nn

from bpgan.nets.architecture import Architecture, Network


class Generator(nn.Module):
    shape: tuple
    width: int
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, z, *, train=False):
        h, w, c = self.shape
        x = nn.tanh(nn.Dense(self.width, dtype=self.dtype)(z))
        return nn.tanh(nn.Dense(h * w * c, dtype=self.dtype)(x)).reshape(-1, h, w, c)


class Discriminator(nn.Module):
    width: int
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.leaky_relu(nn.Dense(self.width, dtype=self.dtype)(x.reshape(len(x), -1)), 0.2)
        return nn.Dense(1, dtype=self.dtype)(x)[:, 0]


thin = Architecture(
    Network(lambda shape, size, **given: Generator(shape, size, **given), conditions=()),
    Network(lambda shape, size, **given: Discriminator(size, **given), conditions=()),
    size=8,
)
'''

METRIC = '''
"""A metric of my own: how much darker the samples are than the reference."""


def darkness(fake, real, train, seed):
    return {"darkness": float(real.x.mean() - fake.x.mean())}
'''

DATASET = '''
"""A dataset of my own: stripes, upright or level."""

import numpy as np


def stripes(split):
    rng = np.random.default_rng(split == "test")
    y = rng.integers(0, 2, 64)
    waves = np.sin(np.arange(16)[None] * rng.uniform(0.5, 2, (64, 1)))
    x = np.broadcast_to((127 * waves + 128).astype(np.uint8)[:, None], (64, 16, 16))
    return np.where(y[:, None, None] == 1, x, x.transpose(0, 2, 1)), y
'''

EXPERIMENT = '''
"""A GAN of my own, whose players are straight lines."""

import dataclasses

import optax

from bpgan import cli, data
from bpgan.algorithms import gan
from bpgan.losses import LOSSES
from bpgan.nets import linen_net, mlp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(cli.RunConfig):
    dataset: str = cli.field("mnist10k", locates_data=True)
    lr: float = cli.field(1e-3, "step size", low=0, sweepable=True)
    steps: int = 8
    batch_size: int = 16


def build(cfg, axis_name=None):
    images = data.load(cfg.dataset)
    g = linen_net(mlp.Generator(images.shape, widths=()))
    d = linen_net(mlp.Discriminator(widths=()))
    algorithm = gan.make(
        gan.Networks(g, d, gan.normal_latents(4), images.shape),
        LOSSES["hinge"],
        gan.Optimizers(optax.sgd(cfg.lr), optax.sgd(cfg.lr)),
    )
    source = data.source(images, seed=cfg.seed, batch_size=cfg.batch_size, feed=cfg.feed)
    return cli.Experiment(algorithm, source)


if __name__ == "__main__":
    cli.main(Config, build)
'''

# No schedule, for one over 4 steps is another than one over 8.
SMALL = ("--net=mlp", "--latents=normal:4", "--batch_size=16", "--lr=1e-3", "--ema=0")
THINGS = {
    "loss": Thing(LOSS, "image_gan", ("--loss=my_loss:loss", *SMALL)),
    "penalty": Thing(PENALTY, "image_gan", ("--penalty=my_penalty:drift=0.5/2", *SMALL)),
    "net": Thing(NET, "image_gan", ("--net=my_net:thin:4/my_net:thin", *SMALL[1:])),
    "metric": Thing(METRIC, "image_gan", SMALL, metric="my_metric:darkness"),
    "dataset": Thing(DATASET, "image_gan", ("--dataset=my_dataset:stripes", *SMALL)),
    "experiment": Thing(EXPERIMENT, "my_experiment.py", ("--batch_size=8",), swept="lr=0.01,0.02"),
}
QUICK = ("--log_every=2", "--sample_every=0", "--checkpoint_every=3", "--tensorboard=false")


def say(folder: pathlib.Path, *command: str) -> str:
    """What a command prints that is given in a folder."""
    unset = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES", "PYTHONPATH")
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k not in unset} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def log(run: pathlib.Path) -> list[dict]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


@pytest.fixture(scope="module")
def thing(request, tmp_path_factory):
    """One of them, in a folder of its own, trained for 8 steps."""
    found, folder = THINGS[request.param], tmp_path_factory.mktemp(request.param)
    (folder / f"my_{request.param}.py").write_text(found.text)
    say(folder, *train(found, "straight", 8))
    return found, folder


def train(thing: Thing, workdir: str, steps: int) -> list[str]:
    """The command of a run."""
    own = thing.experiment.endswith(".py")
    program = [thing.experiment] if own else ["-m", f"experiments.{thing.experiment}"]
    return [*program, *thing.flags, *QUICK, f"--workdir={workdir}", f"--steps={steps}"]


def first(*names: str) -> pytest.MarkDecorator:
    """Runs a test with these things, and with the others in the slow tier: what is tested is the same path."""
    params = [
        pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in THINGS
    ]
    return pytest.mark.parametrize("thing", params, indirect=True)


@first("experiment")
def test_a_run_is_resumed_bit_for_bit(thing):
    found, folder = thing
    say(folder, *train(found, "resumed", 4))
    say(folder, *train(found, "resumed", 8))
    straight, resumed = folder / "straight", folder / "resumed"
    a, b = arrays(straight, 8), arrays(resumed, 8)
    assert a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert log(straight)[-1] == log(resumed)[-1]
    if "drift" in found.text:  # 8 updates, of which the penalty sees every second one
        assert [float(np.ravel(a[k])[0]) for k in a if "count" in k and "memory" in k] == [4.0]


@first("experiment")
@pytest.mark.parametrize("vectorize", ["on", pytest.param("off", marks=pytest.mark.slow)])
def test_a_sweep_trains_it(thing, vectorize):
    found, folder = thing
    root = f"sweep_{vectorize}"
    say(
        folder, str(ROOT / "launch.py"), f"--experiment={found.experiment}", f"--sweep={found.swept}", "--steps=4",
        *found.flags, *QUICK, f"--root={root}", f"--vectorize={vectorize}",
    )  # fmt: skip
    (table,) = (folder / root).rglob("sweep_*.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["status"], row["step"]) for row in rows] == [("done", "4")] * 2


@first("experiment")
def test_its_run_is_evaluated(thing):
    found, folder = thing
    say(
        folder, "-m", "experiments.evaluate", "--run=straight", f"--metrics={found.metric}", "--features=pixels",
        "--n=50", "--workdir=evaluated", "--trust",
    )  # fmt: skip
    kept = json.loads((folder / "straight" / "metrics.json").read_text())
    values = [row["value"] for row in kept]
    assert values and np.isfinite(values).all()
    if found.metric != "fd":
        assert {row["metric"].partition("-")[0] for row in kept} == {"darkness"}


@first("net", "metric", "dataset", "experiment")
def test_no_file_of_the_project_was_touched(thing):
    """The folder holds one file of code, and the project none that is new."""
    _, folder = thing
    assert len(list(folder.glob("*.py"))) == 1
    for package in ("bpgan", "experiments"):
        assert not list((ROOT / package).glob("**/my_*.py"))
